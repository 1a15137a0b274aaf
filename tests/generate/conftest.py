"""Models for the tests of generation: a scripted one, and the demo model for real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llama2q
from fake_model import FakeLlama, FakeModel, LogitsOf, by_hash
from llama2q import Llama
from llama2q.engine import Engine


@pytest.fixture(scope="session")
def mini_file(convert_mini: Callable[..., Path]) -> Path:
    """The demo model in int4."""
    return convert_mini()


@pytest.fixture(scope="session")
def mini(mini_file: Path) -> Iterator[Llama]:
    """The demo model, loaded."""
    with llama2q.load(mini_file) as llm:
        yield llm


@pytest.fixture
def fake_llama(mini_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLlama]:
    """Make a Llama whose model is a FakeModel; afterwards, check that no block is still held."""
    made: list[Llama] = []

    def make(logits_of: LogitsOf | None = None, **options: Any) -> tuple[Llama, FakeModel]:
        models: list[FakeModel] = []

        def build(file: Any, *, n_blocks: int, **rest: Any) -> FakeModel:
            logits = logits_of or by_hash(file.config.vocab_size)
            models.append(FakeModel(logits, n_blocks))
            return models[0]

        monkeypatch.setattr("llama2q.engine.build_model", build)
        made.append(Llama(Engine(mini_file, **options)))
        return made[-1], models[0]

    yield make
    for llm in made:
        pool = llm.engine.pool
        assert pool.n_available == pool.n_free == pool.n_blocks
        llm.close()
