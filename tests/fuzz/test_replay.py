"""Replays the corpora that the fuzzing campaigns left (`tools/fuzz.py` runs a campaign)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fuzz import fuzz_checkpoint, fuzz_l2q

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
TARGETS = {"checkpoint": fuzz_checkpoint, "l2q": fuzz_l2q}
MAX_CORPUS_BYTES = 2_000_000


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_readers(target: ModuleType) -> None:
    inputs = sorted((CORPUS / target.__name__.removeprefix("fuzz.fuzz_")).iterdir())
    assert len(inputs) > 5
    for path in inputs:
        try:
            target.run_one(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.name}: not a Llama2qError but {error!r}") from error


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_targets_notice(target: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of another kind comes out of a target."""

    def broken(*_: object) -> None:
        raise KeyError("a fault of the reader")

    monkeypatch.setattr(target, "ShardFile" if target is fuzz_checkpoint else "L2qFile", broken)
    with pytest.raises(KeyError):
        target.run_one(b"\0anything")


def test_corpora_are_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < MAX_CORPUS_BYTES


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="links g++'s sanitizers")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_core_under_sanitizers(tmp_path: Path) -> None:
    """Build the target with the address and undefined sanitizers and run the corpus through it."""

    def run(*command: str | Path, seconds: int) -> str:
        # cmake and ninja may be installed beside Python and nowhere else.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=seconds,
            env={**os.environ, "PATH": path}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    run(
        "cmake", "-S", HERE.parents[1], "-B", tmp_path, "-G", "Ninja", "-DLLAMA2Q_FUZZ=ON",
        "-DCMAKE_CXX_COMPILER=g++", "-DLLAMA2Q_SANITIZE=address,undefined",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DLLAMA2Q_WERROR=ON", seconds=120,
    )  # fmt: skip
    run("cmake", "--build", tmp_path, "--parallel", "2", seconds=560)
    inputs = len(list((CORPUS / "core").iterdir()))
    said = run(tmp_path / "tests/fuzz/cpp/fuzz_core", CORPUS / "core", seconds=560)
    assert said == f"{inputs} inputs replayed\n"
