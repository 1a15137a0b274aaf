"""`llama2q compare` as a user runs it: its table, its JSON, its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import llama2q
from llama2q.cli.main import app

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20
SMALL = ("--ctx", "64", "--tokens", "70")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def none(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini(quant="none")


@pytest.fixture(scope="module")
def int4(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_json(none: Path, int4: Path, text: Path) -> None:
    result = run(none, int4, text, *SMALL, "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    expected = llama2q.compare(none, int4, TEXT, n_ctx=64, n_tokens=70).to_dict()
    assert values.pop("seconds") > 0
    del expected["seconds"]
    assert values == expected
    assert values["n_tokens"] == 93
    assert result.stderr.startswith("93 tokens scored in ")


def test_table(none: Path, int4: Path, text: Path) -> None:
    result = run(none, int4, text, *SMALL)
    assert result.exit_code == 0, result.output
    found = llama2q.compare(none, int4, TEXT, n_ctx=64, n_tokens=70)
    for part in (
        f"A: {none.name}: bf16, 16 bits per weight of the layers, 13.7 MB, KV f32",
        f"B: {int4.name}: int4/64/nonuniform, 4.25 bits per weight",
        "3 windows of 64 tokens (protocol llama.cpp), 93 tokens scored",
        f"mean {found.kl_mean.value:.6f} +/- {found.kl_mean.standard_error:.6f}",
        "median          90 %          95 %          99 %        99.9 %           max",
        f"{found.kl_percentiles['100']:.6f}",
        f"same likeliest token      {100 * found.same_top.value:.3f} +/- ",
        f"mean {100 * found.delta_p_mean.value:.4f} +/- ",
        f"B {found.perplexity_b.value:.4f} +/- ",
        f"B/A {found.perplexity_ratio.value:.5f} +/- ",
    ):
        assert part in result.stdout


def test_one_window_shows_no_error(int4: Path, text: Path) -> None:
    result = run(int4, int4, text, "--ctx", "64", "--tokens", "1")
    assert "same likeliest token      100.000 %" in result.stdout


@pytest.mark.parametrize(
    ("options", "kv_dtypes"),
    [
        ((), ("f16", "f16")),
        (("--kv", "int8"), ("int8", "int8")),
        (("--kv", "int8", "--kv-a", "f16"), ("f16", "int8")),
        (("--kv-b", "int8"), ("f16", "int8")),
        (("--kv-a", "f32"), ("f32", "f32")),
        (("--kv", "f32", "--kv-b", "auto"), ("f32", "f16")),
    ],
)
def test_kv_types(
    int4: Path, text: Path, options: tuple[str, ...], kv_dtypes: tuple[str, str]
) -> None:
    values = json.loads(run(int4, int4, text, *SMALL, *options, "--json").stdout)
    assert (values["a"]["kv_dtype"], values["b"]["kv_dtype"]) == kv_dtypes
    assert (values["kl_mean"]["value"] == 0) == (kv_dtypes[0] == kv_dtypes[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ctx", "2"), "a window of 2 tokens"),
        (("--tokens", "0"), "n_tokens is 0"),
        (("--threads", "0"), "n_threads is 0"),
        (("--protocol", "gptq"), "the text has"),
        (("--ctx", "50000"), "windows of 50000 tokens; the context of"),
    ],
)
def test_errors(int4: Path, text: Path, options: tuple[str, ...], message: str) -> None:
    result = run(int4, int4, text, *options)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_missing_files(int4: Path, text: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for arguments in ((missing, int4, text), (int4, missing, text), (int4, int4, missing)):
        result = run(*arguments, *SMALL)
        assert result.exit_code == 1
        assert "missing" in result.stderr
