"""`llama2q bench` as a user runs it: its JSON, its table, its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llama2q.cli.main import app

QUICK = ("--prefill", "8", "--decode", "2", "--depth", "0,70", "--step", "2", "--batch", "2")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2q.bench._STEP_SECONDS", 0.0)


@pytest.fixture(scope="module")
def model(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_json(model: Path) -> None:
    result = run(model, *QUICK, "--kv", "int8", "--threads", "2", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert {"rows", "load_seconds", "peak_rss_bytes", "anonymous_bytes", "limits"} <= values.keys()
    assert values["kv_dtype"] == "int8"
    assert values["n_threads"] == 2
    assert values["load_seconds"] > 0
    found = [(row["kind"], row["tokens"], row["depth"]) for row in values["rows"]]
    assert found == [
        ("prefill", 8, 0),
        ("decode", 2, 0),
        ("step", 2, 0),
        ("decode", 2, 70),
        ("step", 2, 70),
        ("batch", 2, 0),
    ]
    assert all(row["tokens_per_second"] > 0 for row in values["rows"])


def test_table(model: Path) -> None:
    result = run(model, *QUICK)
    assert result.exit_code == 0, result.output
    for part in ("limits: reads", "memory: peak", "prompt of 8", "decode 2 at 70", "2 sequences"):
        assert part in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefill", "12,x"), "--prefill is '12,x'; expected numbers"),
        (("--prefill", "-3"), "--prefill is '-3'"),
        (("--depth", "1,,2"), "--depth is '1,,2'"),
        (("--batch", "9999999999"), "--batch is"),
        (("--prefill", "0"), "prefill is 0; expected an integer >= 1"),
        (("--decode", "-1"), "decode is -1"),
        (("--repeat", "0"), "repeat is 0"),
        (("--threads", "0"), "n_threads is 0"),
        (("--depth", "90000"), "the model's context holds"),
    ],
)
def test_errors(model: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(model, *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_no_file(tmp_path: Path) -> None:
    result = run(tmp_path / "none.l2q")
    assert result.exit_code == 1
    assert "none.l2q" in result.stderr
