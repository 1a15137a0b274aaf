"""`llama2q replay`, the receipts that `generate` writes, and --rope-scaling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import llama2q
from llama2q import Receipt


def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llama2q", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **env},
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def receipt(mini_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("receipt") / "king.json"
    options = ["--max-tokens", "12", "--seed", "5", "--kv", "int8", "--logit-bias", "300=-inf"]
    result = run("generate", mini_file, "The king", *options, "--receipt", path)
    assert result.returncode == 0
    return path


def test_proven(mini_file: Path, receipt: Path) -> None:
    result = run("replay", receipt, mini_file)
    assert result.returncode == 0
    assert result.stdout.startswith("proven: the same 12 tokens (sha256 ")
    assert result.stderr == ""


@pytest.mark.parametrize("isa", llama2q._core.isas())
def test_json_on_every_instruction_set(mini_file: Path, receipt: Path, isa: str) -> None:
    result = run("replay", receipt, mini_file, "--json", LLAMA2Q_ISA=isa)
    values = json.loads(result.stdout)
    recorded = Receipt.from_json(receipt.read_text())
    assert values["proven"] is True
    assert values["differences"] == []
    assert len(values["token_ids"]) == values["n_tokens"] == recorded.n_tokens
    with llama2q.load(mini_file, kv_dtype="int8") as llm:
        expected = llm.generate("The king", max_tokens=12, seed=5, logit_bias={300: -float("inf")})
    assert (values["text"], values["output_sha256"]) == (expected.text, recorded.output_sha256)


def test_differs(mini_file: Path, receipt: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps({**json.loads(receipt.read_text()), "seed": 6}))
    result = run("replay", changed, mini_file)
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr.startswith("differs: tokens: ")
    assert run("replay", changed, mini_file, "--json").returncode == 3


def test_not_proven(
    convert_mini: Callable[..., Path], mini_file: Path, receipt: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_bytes(b"\xff\xfe")
    for arguments, words in [
        ((receipt, convert_mini("int8")), "is of the model"),
        ((broken, mini_file), "not a receipt"),
        ((mini_file, mini_file), "not a receipt"),
        ((tmp_path / "none.json", mini_file), "none.json"),
    ]:
        result = run("replay", *arguments)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert words in result.stderr


def test_receipts_of_json(mini_file: Path) -> None:
    options = ["--n", "2", "--seed", "5", "--max-tokens", "6", "--logit-bias", "9=-inf", "--json"]
    values = json.loads(run("generate", mini_file, "The king", *options).stdout)
    for sample in (values, *values["others"]):
        receipt = Receipt.from_dict(sample["receipt"])
        assert llama2q.replay(receipt, mini_file).token_ids == tuple(sample["token_ids"])


def test_a_receipt_is_of_one_sample(mini_file: Path, tmp_path: Path) -> None:
    result = run("generate", mini_file, "The king", "--n", "2", "--receipt", tmp_path / "r")
    assert result.returncode == 1
    assert "--receipt is of one sample" in result.stderr


def test_rope_scaling(mini_file: Path) -> None:
    options = ["--rope-scaling", "yarn:2", "--seed", "5", "--max-tokens", "9", "--json"]
    values = json.loads(run("generate", mini_file, "The king", *options).stdout)
    assert values["receipt"]["rope"]["scaling"] == "yarn"
    assert values["receipt"]["rope"]["factor"] == 2.0
    with llama2q.load(mini_file, rope_scaling={"type": "yarn", "factor": 2.0}) as llm:
        assert llm.generate("The king", seed=5, max_tokens=9).text == values["text"]
    plan = json.loads(
        run("plan", mini_file, "--ctx", "8192", "--rope-scaling", "ntk", "--json").stdout
    )
    assert (plan["n_ctx"], plan["rope"]["factor"]) == (8192, 2.0)
    result = run("score", mini_file, "The king", "--rope-scaling", "yarn:x")
    assert result.returncode == 1
    assert "expected TYPE or TYPE:FACTOR" in result.stderr
