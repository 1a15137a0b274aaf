"""csrc/cuda's matmul under the emulation: exact integer dots, float64 references, bits.

Logic only. `check_matmul` (tests/cuda/matmul) compiled by nvcc checks a device.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from emulated_programs import MARKS, SANITIZED, build, checks_of, expect_check

pytestmark = MARKS


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matmul")
    build("matmul", folder)
    return folder / "check_matmul"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    build("matmul", folder, *SANITIZED)
    return folder / "check_matmul"


@pytest.mark.parametrize(("capability", "seed"), [("7.5", 0), ("9.0", 1), ("9.0", 2)])
@pytest.mark.parametrize("check", checks_of("matmul"))
def test_matmul(program: Path, check: str, capability: str, seed: int) -> None:
    """In any order of threads and blocks; on 9.0 launches overlap."""
    expect_check(
        program, check, CUDA_EMULATION_CAPABILITY=capability, CUDA_EMULATION_SEED=str(seed)
    )


@pytest.mark.slow
@pytest.mark.parametrize("check", checks_of("matmul"))
def test_matmul_under_sanitizers(sanitized: Path, check: str) -> None:
    expect_check(sanitized, check, CUDA_EMULATION_CAPABILITY="9.0", CUDA_EMULATION_SEED="3")
