"""Each hostile checkpoint: its named error and sentence, nothing run, nothing left, in bounds."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llama2q
from hostile.bench import TESTS, Bench
from hostile.cases import CASES
from hostile.pickles import LIVE
from llama2q.errors import UnreadableFileError

Results = dict[str, dict[str, Any]]
MOST_SECONDS = 10.0
"""CPU time that no case may take; they take some hundredths."""


def environment(canary: Path) -> dict[str, str]:
    places = [str(TESTS), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "LLAMA2Q_CANARY": str(canary)}


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Run all cases; a process that dies is started again behind the case that killed it."""
    canary = tmp_path_factory.mktemp("canary") / "canary.txt"
    found: Results = {}
    names = list(CASES)
    while names:
        folder = tmp_path_factory.mktemp("hostile")
        done = subprocess.run(
            [sys.executable, "-m", "hostile.runner", str(folder), *names],
            env=environment(canary),
            capture_output=True,
            encoding="utf-8",
            timeout=400,
            check=False,
        )
        for line in done.stdout.splitlines():
            result = json.loads(line)
            found[result.pop("name")] = result
        names = [name for name in names if name not in found]
        if names:
            found[names.pop(0)] = {"died": f"{done.returncode}: {done.stderr[-2000:]}"}
    return found


def test_there_are_enough() -> None:
    assert len(CASES) >= 150


@pytest.mark.parametrize("name", CASES)
def test_case(results: Results, name: str) -> None:
    case, result = CASES[name], results[name]
    assert "died" not in result, result
    if "skip" in result:
        pytest.skip(result["skip"])
    assert (result["error"], case.sentence in result["message"]) == (
        case.error.__name__,
        True,
    ), result
    assert result["events"] == []
    assert not {"hostile.canary", "torch", "pty", "webbrowser"} & set(result["modules"])
    assert not result["canary"]
    assert result["left"] == []
    assert result["seconds"] < MOST_SECONDS
    assert len(result["message"]) < 2000
    assert result["message"].isprintable(), "no control characters reach a terminal"


@pytest.mark.parametrize("name", ["consolidated.00.pth", "params.json", "tokenizer.model"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_files_that_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """As the unreadable cases, for users whom no mode bits stop."""
    source = Bench.write_sound(tmp_path / "sound")
    real = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    message = f"{name} cannot be read: {os.strerror(number)}"
    with pytest.raises(UnreadableFileError, match=message):
        llama2q.convert(source, tmp_path / "x.l2q", method="rtn")
    assert [path.name for path in tmp_path.iterdir()] == ["sound"]


@pytest.mark.parametrize("name", LIVE)
def test_the_payloads_are_live(tmp_path: Path, name: str) -> None:
    """Python's own unpickler does run them, so that a silent canary means something."""
    canary = tmp_path / "canary.txt"
    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"],
        input=pickle.dumps(LIVE[name]),
        env=environment(canary),
        check=True,
    )
    assert canary.exists()


def test_the_module_is_live(tmp_path: Path) -> None:
    canary = tmp_path / "canary.txt"
    subprocess.run(
        [sys.executable, "-c", "import hostile.canary"], env=environment(canary), check=True
    )
    assert canary.exists()


CONVERT = "from llama2q.cli.convert import main; main()"
SAMPLE = (
    "call-os-system-then-tensors-protocol-2", "bomb-marks", "zip-encrypted", "cut-at-50-percent",
    "number-bf16-nan-norm", "params-huge", "params-escapes", "tokenizer-noise", "folder-of-models",
    "folder-shard-is-a-pipe", "name-control-characters", "shards-swapped",
    "hf-index-parent", "hf-config-escapes", "hf-overlap", "gguf-43-bytes",
    "gguf-experts",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_command(tmp_path: Path, name: str) -> None:
    """The command: one line that names the fault, exit code 1, no traceback, nothing left."""
    (tmp_path / "case").mkdir()
    source = CASES[name].make(Bench(tmp_path / "case", Bench.write_sound(tmp_path / "sound")))
    output = tmp_path / "out"
    output.mkdir()
    method = () if name.startswith("gguf") else ("--method", "rtn")
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(source), "-o", str(output / "x.l2q"), *method],
        env=environment(tmp_path / "canary.txt"),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    *foreseen, error = done.stderr.splitlines()
    assert len(foreseen) <= 1  # what the conversion takes, where it began
    assert error.startswith("error: ")
    assert CASES[name].sentence in error
    assert list(output.iterdir()) == []
    assert not (tmp_path / "canary.txt").exists()
