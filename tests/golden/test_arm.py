"""Arm under emulation: bit for bit what x86's scalar kernels gave."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import check_isa_units
import count_instructions
from golden.build import PROJECT, build_driver

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
CPUS = {
    "cortex-a53": ["scalar"],
    "neoverse-n1": ["scalar", "neon"],
    "max": ["scalar", "neon", "neon_i8mm"],
}
"""CPU -> the instruction sets it has, the fastest last."""
FEATURES = {"cortex-a53": [], "neoverse-n1": ["asimddp"], "max": ["asimddp", "i8mm", "bf16"]}

MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"no {' and no '.join(MISSING)} on the PATH; on Debian: apt install "
        "g++-aarch64-linux-gnu qemu-user-static",
    ),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, for aarch64, without shared libraries."""
    return build_driver(
        tmp_path_factory.mktemp("aarch64"),
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )


def build_of(driver: Path) -> Path:
    return driver.parents[3]


def replay(driver: Path, cpu: str, path: Path) -> None:
    """Replay a golden file on the CPU's instruction sets; on scalar where there is no other."""
    isas = CPUS[cpu][1:] or CPUS[cpu]

    def run(isa: str) -> list[str]:
        command = [EMULATOR, "-cpu", cpu, driver, "--isa", isa, path]
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=500,
            check=False, env={},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    with ThreadPoolExecutor(2) as pool:
        said = dict(zip(isas, pool.map(run, isas), strict=True))
    for isa, lines in said.items():
        assert lines[0] == f"default: {CPUS[cpu][-1]}"
        assert lines[1].split() == ["available:", *CPUS[cpu]]
        assert lines[2].split() == ["features:", *FEATURES[cpu]]
        assert lines[3].startswith(f"{isa}: ")
        assert lines[3].endswith(" cases equal")


@pytest.mark.parametrize("cpu", CPUS)
def test_kernels(cpu: str, driver: Path, golden_kernels: Path) -> None:
    replay(driver, cpu, golden_kernels)


@pytest.mark.parametrize("cpu", CPUS)
def test_steps(cpu: str, driver: Path, golden_steps: Path) -> None:
    """Whole steps of the demo model, on one thread and on three."""
    replay(driver, cpu, golden_steps)


def test_units_leak_nothing(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check_isa_units", str(build_of(driver))])
    assert check_isa_units.main() == 0
    assert len(list(build_of(driver).rglob("isa/*.cpp.o"))) == 3


def test_hot_loops_stay_in_registers(driver: Path) -> None:
    for kernel in count_instructions.KERNELS:
        loop = count_instructions.hot_loop(build_of(driver), kernel)
        assert loop.on_stack == 0, kernel
        products = sum(loop.mnemonics[name] for name in count_instructions.PRODUCTS)
        # Four int8 products a lane, four lanes, twice that for smmla's two tokens.
        each = 32 if loop.mnemonics["smmla"] else 16
        assert products * each == kernel.codes * kernel.tokens


def test_counts_are_stated(driver: Path) -> None:
    """The table in csrc/README.md is this compiler's."""
    version = subprocess.run(
        [COMPILER, "-dumpversion"], capture_output=True, text=True, check=True
    ).stdout.strip()
    text = (PROJECT / "csrc" / "README.md").read_text(encoding="utf-8")
    if f"g++ {version}" not in text:
        pytest.skip(f"csrc/README.md counts another compiler's instructions than g++ {version}'s")
    assert "\n".join(count_instructions.table(build_of(driver))) in text
