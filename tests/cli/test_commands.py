"""The commands as a user runs them: exit codes, what goes to stdout, what goes to stderr."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import llama2q

CONVERT = "from llama2q.cli.convert import main; main()"


def run(*arguments: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `llama2q` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "llama2q", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        input=stdin,
        env={**os.environ, **env},
        timeout=120,
        check=False,
    )


def run_convert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `llama2q-convert` to its end; it rounds to nearest unless asked for something else."""
    chosen = {"--quant", "--method", "--fast"} & set(map(str, arguments))
    method = () if chosen else ("--method", "rtn")
    return subprocess.run(
        [sys.executable, "-c", CONVERT, *map(str, arguments), *method],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def model(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini()


def assert_one_error_line(result: subprocess.CompletedProcess[str], part: str) -> None:
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr


def test_generate(model: Path) -> None:
    result = run("generate", model, "Once upon a time", "--max-tokens", "20", "--seed", "7")
    with llama2q.load(model) as llm:
        expected = llm.generate("Once upon a time", max_tokens=20, seed=7)
    assert result.returncode == 0
    assert result.stdout == expected.text + "\n"
    assert "tok/s" in result.stderr
    assert "seed 7" in result.stderr


def test_generate_json_and_prompt_from_stdin(model: Path) -> None:
    options = ["--max-tokens", "9", "--seed", "3", "--kv", "int8", "--json"]
    result = run("generate", model, "-", *options, stdin="Once upon a time")
    values = json.loads(result.stdout)
    with llama2q.load(model, kv_dtype="int8") as llm:
        expected = llm.generate("Once upon a time", max_tokens=9, seed=3)
    assert values["text"] == expected.text
    assert values["token_ids"] == list(expected.token_ids)
    assert values["seed"] == 3
    assert values["usage"]["completion_tokens"] == len(expected.token_ids)


def test_generate_takes_the_sampling_settings(model: Path) -> None:
    options = [
        "--max-tokens", "12", "--min-tokens", "3", "--seed", "3", "--repetition-penalty", "1.3",
        "--presence-penalty", "0.5", "--frequency-penalty", "0.25", "--logit-bias", "300=2.5",
        "--logit-bias", "301=-inf", "--ignore-eos", "--logprobs", "2", "--echo", "--json",
    ]  # fmt: skip
    values = json.loads(run("generate", model, "Once upon a time", *options).stdout)
    with llama2q.load(model) as llm:
        expected = llm.generate(
            "Once upon a time", max_tokens=12, min_tokens=3, seed=3, repetition_penalty=1.3,
            presence_penalty=0.5, frequency_penalty=0.25, logit_bias={300: 2.5, 301: -math.inf},
            ignore_eos=True, logprobs=2, echo=True,
        )  # fmt: skip
    assert values["token_ids"] == list(expected.token_ids)
    assert values["prompt"] == "Once upon a time"
    assert expected.logprobs is not None
    for found, entry in zip(values["logprobs"], expected.logprobs, strict=True):
        assert {int(token) for token in found} == set(entry)
        assert all(found[str(token)]["logprob"] == entry[token].logprob for token in entry)


def test_generate_several_samples(model: Path) -> None:
    options = ["--max-tokens", "9", "--seed", "3", "--n", "3", "--echo"]
    result = run("generate", model, "The king", *options)
    with llama2q.load(model) as llm:
        expected = llm.generate("The king", max_tokens=9, seed=3, n=3)
    assert result.stdout == "".join(
        f"--- {sample.index}\nThe king{sample.text}\n" for sample in expected.samples
    )
    values = json.loads(run("generate", model, "The king", *options, "--json").stdout)
    texts = [values["text"], *[other["text"] for other in values["others"]]]
    assert texts == [sample.text for sample in expected.samples]


def test_generate_echo_streams_the_prompt(model: Path) -> None:
    result = run("generate", model, "The king", "--max-tokens", "5", "--seed", "1", "--echo")
    assert result.stdout.startswith("The king")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--logit-bias", "7"], "--logit-bias is '7'; expected ID=X"),
        (["--logit-bias", "x=1"], "--logit-bias is 'x=1'"),
        (["--logprobs", "3"], "add --json"),
        (["--n", "2", "--temperature", "0"], "n is 2 and temperature 0"),
        (["--min-tokens", "9", "--max-tokens", "3"], "min_tokens is 9, more than max_tokens"),
    ],
)
def test_generate_refuses(model: Path, options: list[str], part: str) -> None:
    assert_one_error_line(run("generate", model, "The king", *options), part)


def test_score(model: Path) -> None:
    with llama2q.load(model) as llm:
        expected = llm.score("The king was old")
    text = run("score", model, "The king was old")
    lines = text.stdout.splitlines()
    assert len(lines) == len(expected.logprobs)
    assert lines[0].split()[:2] == [f"{expected.logprobs[0]:.4f}", str(expected.token_ids[1])]
    assert f"perplexity {expected.perplexity:.4f}" in text.stderr
    values = json.loads(run("score", model, "-", "--json", stdin="The king was old").stdout)
    assert values["logprobs"] == list(expected.logprobs)
    assert values["total"] == expected.total
    assert_one_error_line(run("score", model, ""), "leaves none to score")


def test_inspect(model: Path) -> None:
    text = run("inspect", model)
    assert text.returncode == 0
    assert "vocabulary    4096" in text.stdout
    assert "Traceback" not in text.stderr
    values = json.loads(run("inspect", model, "--json", "--tensors").stdout)
    assert values["quant"] == "int4"
    assert values["config"]["n_kv_heads"] == 2
    assert values["tensors"][-1]["name"] == "tokenizer.model"
    assert values["bytes"] == model.stat().st_size
    assert 4.25 < values["bits_per_weight"] < 8.5


def test_perplexity(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 100)
    values = json.loads(run("perplexity", model, text, "--chunks", "1", "--json").stdout)
    assert (values["protocol"], values["n_chunks"], values["n_tokens"]) == ("llama.cpp", 1, 255)
    assert 1 < values["perplexity"] < 4096
    plain = run("perplexity", model, text, "--chunks", "1")
    assert plain.stdout.startswith(f"{values['perplexity']:.4f} +/- ")
    assert "255 tokens scored" in plain.stderr
    assert_one_error_line(run("perplexity", model, tmp_path / "none.txt"), "none.txt: No such file")


def test_convert(mini_checkpoint: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.l2q"
    first = run_convert(mini_checkpoint, "-o", output, "--method", "rtn")
    assert first.returncode == 0
    assert first.stdout == f"{output}\n"
    assert output.read_bytes() == model.read_bytes()
    assert_one_error_line(run_convert(mini_checkpoint, "-o", output), "out.l2q")
    options = ["--force", "--json", "--quant", "int8", "--group-size", "32"]
    values = json.loads(run_convert(mini_checkpoint, "-o", output, *options).stdout)
    assert values["path"] == str(output)
    assert values["output_bytes"] == output.stat().st_size
    assert values["recipe"]["quant"] == "int8"
    assert values["config"]["dim"] == 256


def test_convert_says_beforehand_what_it_takes(mini_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.l2q"
    dry = run_convert(mini_checkpoint, "-o", output, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.startswith(f"{output}: ")
    assert "bits a weight, about " in dry.stdout
    values = json.loads(run_convert(mini_checkpoint, "-o", output, "--dry-run", "--json").stdout)
    assert values["fits"] is True
    assert not output.exists()
    real = run_convert(mini_checkpoint, "-o", output, "--method", "rtn")
    assert real.stderr.startswith(dry.stdout.removeprefix(f"{output}: ").partition(", about ")[0])
    assert values["output_bytes"] == output.stat().st_size
    refused = run_convert(mini_checkpoint, "-o", output, "--dry-run")
    assert refused.returncode == 1
    assert "exists; pass overwrite=True (--force)" in refused.stdout
    assert run_convert(mini_checkpoint, "-o", output, "--dry-run", "--force").returncode == 0


def test_errors_are_one_line(mini_checkpoint: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.l2q"
    assert_one_error_line(run("generate", missing, "x"), "none.l2q")
    assert_one_error_line(run("inspect", mini_checkpoint / "params.json"), "params.json")
    assert_one_error_line(run_convert(tmp_path), str(tmp_path.name))


def test_settings_out_of_range(model: Path) -> None:
    assert_one_error_line(run("generate", model, "x", "--top-p", "1.5"), "top_p is 1.5")
    assert_one_error_line(run("generate", model, "x", "--ctx", "9999999"), "n_ctx is 9999999")
    assert run("generate", model, "x", "--kv", "f8").returncode == 2
    assert run_convert("x", "--quant", "int3").returncode == 2


def test_version_and_help() -> None:
    assert run("--version").stdout == f"llama2q {llama2q.__version__}\n"
    assert "perplexity" in run("--help").stdout


def test_output_is_utf8_whatever_the_locale(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "modèle 🦙.l2q"
    copy.write_bytes(model.read_bytes())
    result = run("inspect", copy, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "modèle 🦙.l2q" in result.stdout


def start_generating(model: Path) -> subprocess.Popen[bytes]:
    """Start a long generation and wait for its first text."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llama2q", "generate", str(model), "Once upon a time"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    return process


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c(model: Path) -> None:
    with start_generating(model) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.decode() == "interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_reader_goes_away(model: Path) -> None:
    with start_generating(model) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
        process.wait(timeout=30)
    assert process.returncode == 141
    assert stderr == b""


def test_import_is_cheap() -> None:
    """What only some calls need is imported by them."""
    code = (
        "import sys, llama2q; "
        "names = 'typer rich sentencepiece psutil llama2q.converter llama2q.evaluate'.split(); "
        "print([name for name in names if name in sys.modules]); "
        "print(llama2q.convert.__name__, llama2q.ConvertReport.__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert result.stdout == "[]\nconvert ConvertReport\n"
    assert all(hasattr(llama2q, name) for name in llama2q.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llama2q.nothing  # type: ignore[attr-defined]
