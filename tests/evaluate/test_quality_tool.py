"""The tool that measures all ways of quantizing: its rows, its outputs, its refusals."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import quality
from llama2q.evaluate.divergence import Estimate
from wikitext import as_prose

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 200
ONLY = "none,int8 64,int4 64 nonuniform gptq,int4 32 nonuniform rtn"


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture(autouse=True)
def _always_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_SAY_EVERY_SECONDS", -1.0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(*arguments: str | Path) -> int:
    return quality.main([*map(str, arguments)])


def test_table_json_and_page(
    mini_checkpoint: Path, text: Path, temp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures = text.with_name("page.md"), text.with_name("figures.json")
    begin, end = "<!-- quality mini: begin -->", "<!-- quality mini: end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    outputs = ("--json", figures, "--write", page)
    code = run(mini_checkpoint, "--text", text, "--tokens", "300", "--only", ONLY, *outputs)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "none: 4 of 4 windows\n" in printed.err
    assert "int8 64: 2 of 2 windows\n" in printed.err
    values = json.loads(figures.read_text(encoding="utf-8"))
    found = {(row["name"], row["b"]["kv_dtype"]): row for row in values["rows"]}
    assert list(found) == [
        ("none", "f16"),
        ("none", "int8"),
        ("int8 64", "f32"),
        ("int4 32 nonuniform rtn", "f32"),
        ("int4 64 nonuniform gptq", "f32"),
        ("int4 64 nonuniform gptq", "f16"),
        ("int4 64 nonuniform gptq", "int8"),
    ]
    means = {key: row["kl_mean"]["value"] for key, row in found.items()}
    assert (
        0 < means["none", "f16"] < means["none", "int8"] < means["int4 64 nonuniform gptq", "f32"]
    )
    assert 0 < means["int8 64", "f32"] < means["int4 32 nonuniform rtn", "f32"]
    bits = {key: row["b"]["bits_per_weight"] for key, row in found.items()}
    assert bits["int8 64", "f32"] == 8.25
    assert bits["int4 32 nonuniform rtn", "f32"] == 4.5
    assert all(row["n_tokens"] == 510 for row in values["rows"])
    assert values["checkpoint"] == "mini"
    assert "path" not in json.dumps(values)
    table = page.read_text(encoding="utf-8")
    assert table == f"before\n{begin}\n{printed.out}{end}\nafter\n"
    assert table.count("\n| ") == 8
    assert "Checkpoint mini as bf16 with a KV cache in f32: perplexity" in table
    assert list(temp.iterdir()) == []


def test_the_variants() -> None:
    names = [variant.name for variant in quality.VARIANTS]
    assert len(names) == len(set(names)) == 1 + 3 + 3 * 2 + 3 * 4
    methods = [f"int4 nonuniform {method}" for method in ("rtn", "search", "calibrated", "gptq")]
    series = ["", "int8", "int4 uniform rtn", "int4 uniform gptq", *methods]
    assert list(dict.fromkeys(variant.series for variant in quality.VARIANTS)) == series


def row(name: str, series: str, bits: float, kl: float, kv: str = "f32") -> Any:
    """Stand in for a row; only what the plot reads."""
    side = namedtuple("side", "bits_per_weight kv_dtype")
    result = namedtuple("result", "a b kl_mean")
    found = result(side(16.0, "f32"), side(bits, kv), Estimate(kl, 0.1 * kl))
    return quality.QualityRow(name, series, found)


def test_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = quality.QualityReport({}, "mini", "text", "00")
    report.rows += [
        row("none", "", 16, 1e-6, "f16"),
        row("int4 32", "int4", 4.5, 0.01),
        row("int4 64", "int4", 4.25, 0.02),
        row("int4 64", "int4", 4.25, 0.03, "int8"),
        row("int8 64", "int8", 8.25, 0.001),
    ]
    assert {series: [bits for bits, _, _ in at] for series, at in report.series().items()} == {
        "int4": [4.25, 4.5],
        "int8": [8.25],
    }
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.plot(tmp_path / "plot.svg") == "no plot: matplotlib is not installed"
    assert not (tmp_path / "plot.svg").exists()


def test_what_is_said_of_peers() -> None:
    report = quality.QualityReport({}, "mini", "text", "00")
    report.rows += [row("int4 64", "int4", 4.25, 0.02), row("none", "", 16, 1e-6, "f16")]
    assert report._about_peers() == []
    report.rows.append(replace(row("llama.cpp Q6_K", "llama.cpp", 6.5, 0.005), types="42 Q6_K"))
    (types,) = report._about_peers()
    assert types == "Matrices of the layers, and the others:\n\n- llama.cpp Q6_K: 42 Q6_K"
    report.rows.append(replace(row("llama.cpp Q4_K_M", "llama.cpp", 4.7, 0.01), types="38 Q4_K"))
    assert report._about_peers()[1] == (
        "Mean KL divergence over that of llama.cpp Q4_K_M: int4 64 2.000; llama.cpp Q6_K 0.500; "
        "llama.cpp Q4_K_M 1.000."
    )


def test_refusals(
    mini_checkpoint: Path,
    text: Path,
    temp: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(mini_checkpoint, "--text", text, "--only", "int5") == 1
    assert "leaves nothing of: none, int8 32" in capsys.readouterr().err
    assert run(mini_checkpoint, "--text", text.with_name("missing")) == 1
    assert "missing" in capsys.readouterr().err
    assert run(text.parent, "--text", text) == 1
    assert capsys.readouterr().err.startswith("error: ")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 20_000_000))
    assert run(mini_checkpoint, "--text", text) == 1
    assert "are needed in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(mini_checkpoint, "--text", text, "--tokens", "0")
    assert list(temp.iterdir()) == []


def test_prose() -> None:
    tokenized = (
        ' = <unk> = \n He had a guest @-@ starring role ( in 1 @,@ 000 plays ) , as " Craig " ; '
        "it was n't Teddy 's at 2 @.@ 5 %\n"
    )
    assert as_prose(tokenized) == (
        ' = something = \n He had a guest-starring role (in 1,000 plays), as "Craig"; '
        "it was n't Teddy's at 2.5 %\n"
    )
