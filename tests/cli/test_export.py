"""`llama2q export` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import llama2q
from llama2q.cli.main import app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def uniform(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uniform") / "mini.l2q"
    llama2q.convert(mini_checkpoint, path, group_size=32, grid="uniform", method="rtn")
    return path


def test_gguf(uniform: Path, tmp_path: Path) -> None:
    out = tmp_path / "mini.gguf"
    result = run(uniform, "--gguf", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert result.stderr.splitlines()[0].startswith("5.0 MB in ")
    assert "drops spaces" in result.stderr
    assert out.read_bytes()[:4] == b"GGUF"
    result = run(uniform, "--gguf", out)
    assert result.exit_code == 1
    assert result.stderr == f"error: {out} exists; pass overwrite=True (--force) to replace it\n"
    result = run(uniform, "--gguf", out, "--force", "--json")
    values = json.loads(result.stdout)
    assert (values["path"], values["bytes"]) == (str(out), out.stat().st_size)
    assert len(values["notes"]) == 1


def test_mlx(uniform: Path, tmp_path: Path) -> None:
    out = tmp_path / "mini-mlx"
    result = run(uniform, "--mlx", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == 4


def test_refusals(mini_file: Path, tmp_path: Path) -> None:
    result = run(mini_file, "--mlx", tmp_path / "x")
    assert result.exit_code == 1
    assert "--grid uniform" in result.stderr
    for arguments in ((), ("--gguf", tmp_path / "x", "--mlx", tmp_path / "y")):
        result = run(mini_file, *arguments)
        assert result.exit_code == 1
        assert "either --gguf OUT or --mlx DIR" in result.stderr
    assert list(tmp_path.iterdir()) == []
