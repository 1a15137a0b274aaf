"""Types of the fixtures."""

from __future__ import annotations

from typing import Any, Protocol

from fake_model import FakeModel, LogitsOf

from llama2q import Llama


class FakeLlama(Protocol):
    """Makes a Llama over a FakeModel; keywords go to Engine."""

    def __call__(
        self, logits_of: LogitsOf | None = None, **options: Any
    ) -> tuple[Llama, FakeModel]: ...
