"""csrc/cuda's attention, embed, select and copies under the emulation: the CPU's bytes, float64.

Logic only. `check_attention` (tests/cuda/attention) compiled by nvcc checks a device.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from emulated_programs import MARKS, SANITIZED, build, checks_of, expect_check

pytestmark = MARKS


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention")
    build("attention", folder)
    return folder / "check_attention"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    build("attention", folder, *SANITIZED)
    return folder / "check_attention"


@pytest.mark.parametrize(("capability", "seed"), [("7.5", 0), ("9.0", 1), ("9.0", 2)])
@pytest.mark.parametrize("check", checks_of("attention"))
def test_attention(program: Path, check: str, capability: str, seed: int) -> None:
    """In any order of threads and blocks; on 9.0 launches overlap."""
    expect_check(
        program, check, CUDA_EMULATION_CAPABILITY=capability, CUDA_EMULATION_SEED=str(seed)
    )


@pytest.mark.slow
@pytest.mark.parametrize("check", checks_of("attention"))
def test_attention_under_sanitizers(sanitized: Path, check: str) -> None:
    expect_check(sanitized, check, CUDA_EMULATION_CAPABILITY="9.0", CUDA_EMULATION_SEED="3")
