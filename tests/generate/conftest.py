"""The demo model, loaded, for the tests of generation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import llama2q
from llama2q import Llama


@pytest.fixture(scope="session")
def mini(mini_file: Path) -> Iterator[Llama]:
    """The demo model, loaded."""
    with llama2q.load(mini_file) as llm:
        yield llm
