"""The options by which commands load a model."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import llama2q
from llama2q.cli.loading import LoadOptions
from llama2q.cli.main import app
from llama2q.errors import InvalidArgumentError

COMMANDS = {
    "chat": ["chat", "x.l2q"],
    "generate": ["generate", "x.l2q", "a text"],
    "score": ["score", "x.l2q", "a text"],
    "perplexity": ["perplexity", "x.l2q", __file__],
}
GIVEN = {
    "--ctx": "640",
    "--rope-scaling": "yarn:4",
    "--kv": "int8",
    "--threads": "3",
    "--device": "cuda:1",
    "--gpu-layers": "7",
    "--gpu-memory": "5GB",
    "--stream-prefill": "none",
}
EXPECTED = {
    "n_ctx": 640,
    "rope_scaling": {"type": "yarn", "factor": 4.0},
    "kv_dtype": "int8",
    "n_threads": 3,
    "device": "cuda:1",
    "gpu_layers": 7,
    "gpu_memory": "5GB",
    "stream_prefill": None,
}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `llama2q.load` is asked for; it ends the command."""
    asked: dict[str, Any] = {}

    def load(file: Path, **options: Any) -> None:
        asked.update(options)
        raise InvalidArgumentError("that is all")

    monkeypatch.setattr(llama2q, "load", load)
    return asked


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_option_reaches_load(command: list[str], loaded: dict[str, Any]) -> None:
    given = [part for option in GIVEN.items() for part in option]
    result = CliRunner().invoke(app, [*command, *given])
    assert result.exit_code == 1, result.output
    assert loaded == EXPECTED
    assert len(GIVEN) == len(dataclasses.fields(LoadOptions))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_defaults_are_those_of_load(
    command: list[str], loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(app, command).exit_code == 1
    monkeypatch.undo()
    defaults = inspect.signature(llama2q.load).parameters
    assert loaded == {name: defaults[name].default for name in EXPECTED}
