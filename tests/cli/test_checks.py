"""The commands that look before they leap: plan, verify, doctor; licences in inspect."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import llama2q
from cli.test_commands import assert_one_error_line, run, run_convert
from converter.hf_files import change_json, hf_folder
from l2q_files import overwrite_tensor


@pytest.fixture(scope="module")
def model(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini()


def test_plan(model: Path) -> None:
    fits = run("plan", model, "--memory", "1GB", "--ctx", "1000", "--kv", "int8")
    expected = llama2q.plan(model, memory="1GB", n_ctx=1000, kv_dtype="int8")
    message, prediction = fits.stdout.splitlines()
    assert (fits.returncode, message, fits.stderr) == (0, str(expected), "")
    assert re.fullmatch(
        r"About [0-9.e+]+ tokens/s predicted, one sequence at a short context\.", prediction
    )
    tight = run("plan", model, "--memory", "20MB", "--sequences", "2", "--json")
    values = json.loads(tight.stdout)
    assert tight.returncode == 1
    assert (values["fits"], values["n_sequences"]) == (False, 2)
    assert values["would_fit"][0]["total_bytes"] <= 20 * 10**6
    assert_one_error_line(run("plan", model, "--memory", "20"), "'20' is not a size")
    assert_one_error_line(run("plan", model, "--ctx", "5000"), "n_ctx is 5000")


def test_a_hugging_face_folder(mini_checkpoint: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "mini-hf", mini_checkpoint, "safetensors-sharded")
    path = tmp_path / "x.l2q"
    done = run_convert(folder, "-o", path, "--chat-template", "zephyr")
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    assert "a Hugging Face checkpoint (config.json): q and k rows un-permuted\n" in done.stderr
    assert "chat template: zephyr\n" in done.stderr
    assert json.loads(run("inspect", path, "--json").stdout)["template"] == "zephyr"
    change_json(folder / "config.json", rope_scaling={"type": "longrope", "factor": 2.0})
    assert_one_error_line(run_convert(folder, "-o", path, "--force"), "of type 'longrope'")
    other = run_convert(folder, "--chat-template", "alpaca")
    assert other.returncode == 2
    assert "alpaca" in other.stderr


def test_verify(model: Path, tmp_path: Path) -> None:
    sound = run("verify", model)
    assert sound.returncode == 0
    assert sound.stdout.startswith(f"{model.name} is sound: 91 tensors, ")
    assert json.loads(run("verify", model, "--json").stdout)["sound"] is True
    path = tmp_path / "x.l2q"
    path.write_bytes(model.read_bytes())
    overwrite_tensor(path, "rope.inv_freq", 8, 1, rehash=True)
    overwrite_tensor(path, "tokenizer.model", 100, 255, rehash=False)
    damaged = run("verify", path)
    assert (damaged.returncode, damaged.stdout) == (1, "")
    first, second, last = damaged.stderr.splitlines()
    assert first.startswith("error: tokenizer.model hashes to ")
    assert second.startswith("error: rope.inv_freq is not theta")
    assert last == "x.l2q is damaged: 2 fault(s); copy or convert it again"
    values = json.loads(run("verify", path, "--json").stdout)
    assert [fault["error"] for fault in values["faults"]] == ["CorruptDataError"] * 2


def test_verify_of_a_header_that_is_wrong(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    path.write_bytes(model.read_bytes()[:-1])
    result = run("verify", path, "--json")
    assert result.returncode == 1
    assert [fault["error"] for fault in json.loads(result.stdout)["faults"]] == [
        "TruncatedFileError"
    ]
    assert_one_error_line(run("verify", tmp_path / "none.l2q"), "none.l2q: No such file")


def test_doctor() -> None:
    report = run("doctor", "--report")
    assert report.returncode == 0
    assert report.stdout.startswith("### llama2q doctor\n")
    forced = run("doctor", "--json", LLAMA2Q_ISA="sse9")
    assert forced.returncode == 1
    values = json.loads(forced.stdout)
    assert values["ok"] is True
    assert "sse9" in values["warnings"][0]


def test_licences_and_checksums(mini_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llama" / "mini"
    shutil.copytree(mini_checkpoint, folder)
    licence = "\n\x1b[2JLLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date\n"
    (folder.parent / "LICENSE").write_text(licence)
    (folder / "USE_POLICY.md").write_text("# Llama 2 Acceptable Use Policy\n")
    shard = folder / "consolidated.00.pth"
    digest = hashlib.md5(shard.read_bytes()).hexdigest()
    (folder / "checklist.chk").write_text(f"{digest}  {shard.name}\n")
    output = tmp_path / "x.l2q"
    converted = run_convert(folder, "-o", output)
    assert converted.returncode == 0
    assert converted.stderr.count("Llama 2 Community License") == 1
    assert "1 checksums right" in converted.stderr
    text = run("inspect", output).stdout
    assert "LICENSE: [2JLLAMA 2 COMMUNITY LICENSE AGREEMENT\n" in text
    assert "USE_POLICY.md: # Llama 2 Acceptable Use Policy\n" in text
    values = json.loads(run("inspect", output, "--json").stdout)
    assert list(values["licences"]) == ["LICENSE", "USE_POLICY.md"]
    texts = run("inspect", output, "--licences").stdout
    assert "==> LICENSE <==" in texts
    assert "Llama 2 Version Release Date" in texts
    assert "\x1b" not in texts
    whole = json.loads(run("inspect", output, "--licences", "--json").stdout)
    assert whole["licence_texts"]["LICENSE"] == licence
    (folder / "checklist.chk").write_text(f"{'0' * 32}  {shard.name}\n")
    damaged = run_convert(folder, "-o", output, "--force")
    assert (damaged.returncode, damaged.stdout) == (1, "")
    foreseen, error = damaged.stderr.splitlines()
    assert "bits a weight, about " in foreseen
    assert error.startswith("error: ")
    assert digest in error
    assert run_convert(folder, "-o", output, "--force", "--no-checksums").returncode == 0


def test_own_weights_have_no_terms_of_meta(mini_checkpoint: Path, tmp_path: Path) -> None:
    assert "Meta" not in run_convert(mini_checkpoint, "-o", tmp_path / "x.l2q").stderr
