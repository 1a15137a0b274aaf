"""csrc/cuda/intrinsics.h, compiled by nvcc: each function becomes the instruction that is meant."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

USES = Path(__file__).resolve().parent / "emulation" / "checks" / "uses.cu"
CSRC = USES.parents[4] / "csrc"
NVDISASM = os.environ.get("LLAMA2Q_NVDISASM", "nvdisasm")
"""Of a CUDA toolkit; triton's wheels hold one too."""
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

EXPECTED = {
    "use_lane": {75: r"S2R \w+, SR_LANEID"},
    "use_shuffle_xor": {75: r"SHFL\.BFLY"},
    "use_shuffle": {75: r"SHFL\.IDX"},
    "use_sync_block": {75: r"STS .* BAR\.SYNC.* LDS"},
    "use_permute_bytes": {75: r"PRMT"},
    "use_dot4": {75: r"IDP\.4A\.S8\.S8"},
    "use_dot4_us": {75: r"IDP\.4A\.U8\.S8"},
    "use_mma_us8": {75: r"(IMMA\.8816\.U8\.S8.*){4}", 80: r"IMMA\.16832\.U8\.S8"},
    "use_mma_ss8": {75: r"(IMMA\.8816\.S8\.S8.*){4}", 80: r"IMMA\.16832\.S8\.S8"},
    "use_mma_f16": {75: r"(HMMA\.1688\.F32.*){2}", 80: r"HMMA\.16816\.F32"},
    "use_float_to_half": {75: r"F2F\.F16\.F32", 80: r"F2FP"},
    "use_half_to_float": {75: r"HADD2\.F32"},
    "use_pack_halves": {75: r"(F2F\.F16\.F32.*){2}", 80: r"F2FP"},
    "use_halves": {75: r"(HADD2\.F32.*){2}"},
    "use_add_halves": {75: r"HADD2 "},
    "use_multiply_halves": {75: r"HMUL2 "},
    "use_exp2_approximate": {75: r"MUFU\.EX2"},
    "use_copies": {
        75: r"LDG\.E\.128.*STS\.128.*BAR\.SYNC.*LDS",
        80: r"LDGSTS\.E\.BYPASS\.128.*LDGDEPBAR.*DEPBAR\.LE SB0, 0x1.*DEPBAR\.LE SB0, 0x0.*"
            r"BAR\.SYNC.*LDS",
    },
    "use_load_matrix_x4": {75: r"LDSM\.16\.M88\.4"},
    "use_load_matrix_x4_trans": {75: r"LDSM\.16\.MT88\.4"},
    # Volatile: the load stays before the wait.
    "use_load_streamed": {
        75: r"LDG\.E\.NA\.128\.CONSTANT.*STG",
        90: r"LDG\.E\.NA\.128\.CONSTANT.*PREEXIT.*ACQBULK.*STG",
    },
    # One barrier before, invalidated caches after.
    "use_take_ticket": {75: r"MEMBAR\.ALL\.GPU.*ATOMG\.E\.ADD\.STRONG\.GPU.*CCTL\.IVALL"},
    "use_fence": {75: r"STG.*MEMBAR\.SC\.GPU.*STG"},
    "use_raise_fault": {75: r"ATOMG\.E\.CAS\.STRONG\.GPU"},
}  # fmt: skip
"""Kernel -> architecture -> its instructions, from that architecture on."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not beside the tests"),
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH"),
]


def compile_uses(folder: Path, architecture: int) -> Path:
    cubin = folder / f"uses_{architecture}.cubin"
    done = subprocess.run(
        ["nvcc", "-std=c++20", "-fmad=false", f"-arch=sm_{architecture}", "-cubin",
         "-Werror", "all-warnings", f"-I{CSRC}", USES, "-o", cubin],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return cubin


def disassemble(cubin: Path) -> dict[str, str]:
    """Kernel -> its instructions, without addresses."""
    done = subprocess.run(
        [NVDISASM, "-c", cubin], capture_output=True, text=True, timeout=300, check=True
    )
    kernels: dict[str, list[str]] = {}
    current: list[str] = []
    for line in done.stdout.splitlines():
        if found := re.match(r"\s*\.text\.(\w+):", line):
            current = kernels.setdefault(found[1], [])
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s*(.*?)\s*;", line):
            current.append(found[1])
    return {name: " ; ".join(lines) for name, lines in kernels.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_instructions(tmp_path: Path, architecture: int) -> None:
    cubin = compile_uses(tmp_path, architecture)
    if shutil.which(NVDISASM) is None:
        pytest.skip(f"compiled, but no {NVDISASM} to look at it: set LLAMA2Q_NVDISASM")
    kernels = disassemble(cubin)
    assert kernels.keys() == EXPECTED.keys()
    for name, by_architecture in EXPECTED.items():
        pattern = by_architecture[max(a for a in by_architecture if a <= architecture)]
        assert re.search(pattern, kernels[name]), f"{name}: {kernels[name]}"
