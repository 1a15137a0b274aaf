"""Fixtures that every test folder shares."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fake_model import FakeLlama, FakeModel, LogitsOf
    from llama2q import Llama

PROJECT = Path(__file__).resolve().parents[1]

# Timings are no part of a test's verdict: a busy machine must not fail one.
settings.register_profile("llama2q", deadline=None, derandomize=True)
settings.load_profile("llama2q")

ConvertMini = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A run started in the background inherits an ignored SIGINT; its children must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mini_checkpoint() -> Path:
    """Folder of the demo model in Meta's form."""
    return PROJECT / "tests" / "data" / "mini"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of files that are read in place and are no part of the project."""
    folder = PROJECT.parent / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip("no folder ../shared with checkpoints and texts beside the project")
    return folder


@pytest.fixture(scope="session")
def convert_mini(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertMini:
    """Convert the demo model once per recipe; call it as `convert_mini(quant="int8")`."""
    import llama2q

    folder = tmp_path_factory.mktemp("mini")
    done: dict[tuple[str, int, str], Path] = {}

    def convert(quant: str = "int4", group_size: int = 64, grid: str = "nonuniform") -> Path:
        key = (quant, group_size, grid)
        if key not in done:
            path = folder / f"mini-{quant}-{group_size}-{grid}.l2q"
            method = "rtn" if quant == "int4" else None  # quickly made
            llama2q.convert(
                mini_checkpoint,
                path,
                quant=quant,
                group_size=group_size,
                grid=grid,
                method=method,
            )
            done[key] = path
        return done[key]

    return convert


@pytest.fixture(scope="session")
def mini_file(convert_mini: ConvertMini) -> Path:
    """The demo model in int4."""
    return convert_mini()


@pytest.fixture
def fake_llama(mini_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLlama]:
    """Make a Llama whose model is a FakeModel; afterwards, check that no block is still held."""
    from fake_model import FakeModel, by_hash
    from llama2q import Llama
    from llama2q.engine import Engine

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
