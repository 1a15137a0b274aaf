"""csrc/cuda's attention, embed, select and copies under the emulation: the CPU's bytes, float64.

Logic only. `check_attention` (tests/cuda/attention) compiled by nvcc checks a device.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent / "attention"
CSRC = SOURCE.parents[2] / "csrc" / "cuda"
LIMIT_S = 560
CHECKS = (
    re.findall(r'\{"(\w+)", check_\w+\}', (SOURCE / "main.cpp").read_text(encoding="utf-8"))
    if SOURCE.is_dir()
    else []
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the emulation reads ELF files"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not beside the tests"),
]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # cmake and ninja may be installed beside Python and nowhere else.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        [str(part) for part in command], env={**os.environ, "PATH": path, **environment},
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


def build(folder: Path, *options: str) -> Path:
    """Build the program, warnings as errors."""
    for command in (
        ("cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja", "-DLLAMA2Q_WERROR=ON", *options),
        ("cmake", "--build", folder, "--parallel", "2"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "check_attention"


def expect_success(program: Path, check: str, **environment: str) -> None:
    done = run(program, check, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"ok {check}", "1 run, 0 failed"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("attention"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        tmp_path_factory.mktemp("sanitized"), "-DLLAMA2Q_SANITIZE=address,undefined",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    )  # fmt: skip


@pytest.mark.parametrize(("capability", "seed"), [("7.5", 0), ("9.0", 1), ("9.0", 2)])
@pytest.mark.parametrize("check", CHECKS)
def test_attention(program: Path, check: str, capability: str, seed: int) -> None:
    """In any order of threads and blocks; on 9.0 launches overlap."""
    expect_success(
        program, check, CUDA_EMULATION_CAPABILITY=capability, CUDA_EMULATION_SEED=str(seed)
    )


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_attention_under_sanitizers(sanitized: Path, check: str) -> None:
    expect_success(sanitized, check, CUDA_EMULATION_CAPABILITY="9.0", CUDA_EMULATION_SEED="3")
