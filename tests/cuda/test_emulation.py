"""The emulation of CUDA: intrinsics against plain C++, its own promises, sanitizers.

Logic only. The same programs, compiled by nvcc, check a device: emulation/README.md.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import native_build
from emulated_programs import MARKS, build, run

EMULATION = Path(__file__).resolve().parent / "emulation"
CSRC = EMULATION.parents[2] / "csrc" / "cuda"
LIMIT_S = 560
SEEDS = (0, 1, 2, 3)
DEATHS = {
    "static_shared": ("global-buffer-overflow|insufficient space", "beyond_static_shared<32>"),
    "dynamic_shared": ("heap-buffer-overflow", "beyond_dynamic_shared"),
    "index": ("index 8 out of bounds", "beyond_index"),
    "device_memory": ("heap-buffer-overflow", "reads"),
    "freed_memory": ("heap-use-after-free", "reads"),
    "misaligned_vector": ("misaligned address", "reads_vector"),
    "signed_overflow": ("signed integer overflow", "overflows"),
    "stack": ("stack-buffer-overflow|insufficient space", "beyond_stack"),
    "host_access": ("use-after-poison", None),
}
"""Mistake -> what the report says, and the kernel in which thread 3 of block 1 made it."""

pytestmark = MARKS


def build_checks(folder: Path, compiler: str, *options: str) -> Path:
    """Build the programs; the folder they lie in."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on the PATH")
    build(
        "emulation", folder, f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *options,
    )  # fmt: skip
    return folder / "checks"


def expect_success(program: Path, **environment: str) -> None:
    done = run(program, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    *cases, summary = done.stdout.splitlines()
    assert summary == f"{len(cases)} run, 0 failed"
    assert len(cases) > 20
    assert all(line.startswith("ok ") for line in cases)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checks(tmp_path_factory.mktemp("emulation"), "g++")


@pytest.fixture(scope="module", params=["g++", "clang++"])
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = request.param
    if compiler == "clang++":
        compiler = native_build.find_clang() or compiler
    return build_checks(
        tmp_path_factory.mktemp("sanitized"), compiler, "-DLLAMA2Q_SANITIZE=address,undefined"
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("capability", ["7.5", "9.0"])
def test_intrinsics(programs: Path, seed: int, capability: str) -> None:
    expect_success(
        programs / "check_intrinsics",
        CUDA_EMULATION_SEED=str(seed), CUDA_EMULATION_CAPABILITY=capability,
    )  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_emulation(programs: Path, seed: int) -> None:
    expect_success(programs / "check_emulation", CUDA_EMULATION_SEED=str(seed))


def test_unknown_check(programs: Path) -> None:
    """A name that no check has is no success."""
    assert run(programs / "check_intrinsics", "mma_u8").returncode == 1


@pytest.mark.slow
def test_ucontext(tmp_path: Path) -> None:
    """The switch of fibers for processors that have none of their own."""
    folder = build_checks(tmp_path, "g++", "-DCMAKE_CXX_FLAGS=-DCUDA_EMULATION_PORTABLE")
    expect_success(folder / "check_intrinsics", CUDA_EMULATION_SEED="1")


@pytest.mark.slow
def test_checks_under_sanitizers(sanitized: Path) -> None:
    expect_success(sanitized / "check_intrinsics", CUDA_EMULATION_SEED="1")
    expect_success(sanitized / "check_emulation")


@pytest.mark.slow
@pytest.mark.parametrize("mistake", DEATHS)
def test_deaths(sanitized: Path, mistake: str) -> None:
    """Sanitizers see what kernels do, and the report names the thread."""
    report, kernel = DEATHS[mistake]
    done = run(sanitized / "check_deaths", mistake)
    assert done.returncode != 0
    assert f"ok {mistake}" not in done.stdout
    assert re.search(report, done.stderr), done.stderr
    place = f"kernel (anonymous namespace)::{kernel}, block (1, 0, 0), thread (3, 0, 0): "
    assert (place in done.stderr) == (kernel is not None), done.stderr
