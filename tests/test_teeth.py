"""Injected faults must be caught: each makes one of the tests named with it fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from golden import test_arm
from llama2q import _core
from teeth.cuda import CUDA
from teeth.mutant import Mutant
from teeth.native import NATIVE
from teeth.python import PYTHON
from teeth.sessions import SESSIONS
from teeth.workbench import Edit, Workbench

PROJECT = Path(__file__).resolve().parents[1]
SHARED = PROJECT.parent / "shared"
IN_PYTHON = PYTHON + SESSIONS
ISAS = [name for name in ("scalar", "avx2", "avx512vnni") if name in _core.isas()]
EMULATED = [] if test_arm.MISSING else ["neon", "neon_i8mm"]


@pytest.fixture(scope="module")
def python_bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A copy that uses the installed extension: for faults in Python."""
    return Workbench(PROJECT, tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def native_bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A copy with its own build of the extension: for faults in C++."""
    return Workbench(PROJECT, tmp_path_factory.mktemp("native"), ISAS)


@pytest.fixture(scope="module")
def cuda_bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A copy that also builds the libraries that stand in for CUDA's."""
    if sys.platform != "linux":
        pytest.skip("the emulation reads ELF files")
    return Workbench(PROJECT, tmp_path_factory.mktemp("cuda"), ISAS[-1:], libraries=True)


def expect_clean(bench: Workbench, mutants: tuple[Mutant, ...]) -> None:
    """Without a fault every test named in the table passes: none is caught for free."""
    targets = sorted({target for mutant in mutants for target in mutant.tests})
    outcome = bench.pytest(targets, stop_at_first=False)
    assert (outcome.failed, outcome.errors) == (0, 0), outcome.output
    assert outcome.passed >= len(targets), outcome.output


def expect_caught(bench: Workbench, mutant: Mutant) -> None:
    if mutant.isa is not None and mutant.isa not in ISAS + EMULATED:
        pytest.skip(f"this machine neither has nor emulates {mutant.isa}")
    with bench.edited(mutant.edits):
        outcome = bench.pytest(mutant.tests)
    assert outcome.errors == 0, outcome.output
    if not outcome.failed and outcome.skipped and not SHARED.is_dir():
        pytest.skip(f"no folder ../shared, without which {outcome.skipped} of its tests do not run")
    assert outcome.failed >= 1, f"{mutant.name} went unnoticed:\n{outcome.output}"


def test_table() -> None:
    """Names are unique, and every fault's text stands in the sources exactly once."""
    mutants = NATIVE + IN_PYTHON + CUDA
    assert len({mutant.name for mutant in mutants}) == len(mutants) >= 24
    for mutant in mutants:
        for edit in mutant.edits:
            assert edit.new != edit.old
            assert (PROJECT / edit.path).read_text().count(edit.old) == 1, (mutant.name, edit.old)


def test_a_text_that_is_gone_is_an_error(python_bench: Workbench) -> None:
    edit = Edit("src/llama2q/errors.py", "no such text", "")
    with pytest.raises(ValueError, match="0 times"), python_bench.edited([edit]):
        pass


def test_clean_python(python_bench: Workbench) -> None:
    expect_clean(python_bench, IN_PYTHON)


@pytest.mark.parametrize("mutant", IN_PYTHON, ids=lambda mutant: mutant.name)
def test_python_fault(python_bench: Workbench, mutant: Mutant) -> None:
    expect_caught(python_bench, mutant)


@pytest.mark.slow
def test_clean_native(native_bench: Workbench) -> None:
    expect_clean(native_bench, NATIVE)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", NATIVE, ids=lambda mutant: mutant.name)
def test_native_fault(native_bench: Workbench, mutant: Mutant) -> None:
    expect_caught(native_bench, mutant)


@pytest.mark.slow
def test_clean_cuda(cuda_bench: Workbench) -> None:
    expect_clean(cuda_bench, CUDA)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", CUDA, ids=lambda mutant: mutant.name)
def test_cuda_fault(cuda_bench: Workbench, mutant: Mutant) -> None:
    expect_caught(cuda_bench, mutant)
