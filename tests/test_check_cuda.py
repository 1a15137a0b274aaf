"""tools/check_cuda.py: what ptxas says is read, and what goes beyond the budget is named."""

from __future__ import annotations

import re
import shutil
import stat
import sys
from pathlib import Path

import pytest

import check_cuda
import keep_messages
import native_build
from check_cuda import ARCHITECTURES, Usage

MESSAGES = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3runILi8EEvv' for 'sm_75'
ptxas info    : Function properties for _Z3runILi8EEvv
    32 bytes stack frame, 100 bytes spill stores, 36 bytes spill loads
ptxas info    : Function properties for _Z4helpv
    8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 2620 bytes smem, 432 bytes cmem[0]
ptxas info    : Compile time = 49.858 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3runILi8EEvv' for 'sm_120a'
ptxas info    : Function properties for _Z3runILi8EEvv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 432 bytes cmem[0]
ptxas info    : Compile time = 1.5 ms
"""
KERNEL = ("a.cu", "run<8>")


def test_messages() -> None:
    assert check_cuda.parse_messages(MESSAGES) == {
        ("_Z3runILi8EEvv", 75): Usage(registers=64, spills=140, stack=40, shared=2620),
        ("_Z3runILi8EEvv", 120): Usage(registers=40),
    }


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        (
            "void llama2q::cuda::(anonymous namespace)::gemm_kernel<32, 1>(llama2q::cuda::Args)",
            "gemm_kernel<32, 1>",
        ),
        ("void llama2q::cuda::run<(llama2q::cuda::Codes)2>(int (*)(int))", "run<2>"),
        ("void run<llama2q::Shape<llama2q::cuda::Half, 8> >(int)", "run<Shape<Half, 8>>"),
        ("llama2q::cuda::(anonymous namespace)::row_kernel(float*)", "row_kernel"),
    ],
)
def test_names(demangled: str, name: str) -> None:
    assert check_cuda.short_name(demangled) == name


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt on the PATH")
def test_mangled_names() -> None:
    symbols = [
        "_ZN7llama2q4cuda43_GLOBAL__N__a42af8f7_10_prepare_cu_8448fc2b15quantize_kernelILi32EEEv"
        "NS1_7RowArgsE",
        "_ZN7llama2q4cuda43_GLOBAL__N__a42af8f7_10_prepare_cu_8448fc2b10row_kernelENS1_7RowArgsE",
    ]
    assert check_cuda.kernel_names(symbols) == ["quantize_kernel<32>", "row_kernel"]


def test_budget_comes_back() -> None:
    found = {
        KERNEL: {a: Usage(registers=a, shared=16) for a in ARCHITECTURES},
        ("a.cu", "walk"): {a: Usage(registers=8, spills=int(a == 75)) for a in ARCHITECTURES},
        ("b.cu", "run<8>"): {a: Usage(registers=9) for a in ARCHITECTURES},
    }
    text = check_cuda.format_budget(found)
    assert check_cuda.parse_budget(text) == found
    assert '"run<8>" = { registers = 9 }' in text


def budget(usage: Usage) -> check_cuda.Usages:
    return {KERNEL: {75: usage, 90: usage}}


@pytest.mark.parametrize("field", check_cuda.FIELDS)
def test_more_than_the_budget(field: str) -> None:
    allowed = Usage(registers=10, spills=10, stack=10, shared=10)
    values = {name: 10 for name in check_cuda.FIELDS}
    more = budget(Usage(**{**values, field: 11}))
    less = budget(Usage(**{**values, field: 9}))
    assert check_cuda.faults_of(less, budget(allowed), [75, 90]) == []
    assert check_cuda.faults_of(more, budget(allowed), [90]) == [
        f"a.cu: run<8>, sm_90: {field} 11, budget 10"
    ]
    assert len(check_cuda.faults_of(more, budget(allowed), [75, 90])) == 2


def test_unknown_and_vanished_kernels() -> None:
    one = budget(Usage(registers=1))
    other = {("a.cu", "run<4>"): one[KERNEL]}
    assert check_cuda.faults_of(other, one, [75]) == [
        "a.cu: run<4> is not in the budget",
        "a.cu: run<8>, sm_75: in the budget, and was not compiled",
    ]
    assert check_cuda.faults_of(one, {KERNEL: {75: Usage(1)}}, [75, 90]) == [
        "a.cu: run<8>, sm_90: not in the budget"
    ]
    assert check_cuda.faults_of({KERNEL: {75: Usage(1)}}, one, [75, 90]) == [
        "a.cu: run<8>, sm_90: in the budget, and was not compiled"
    ]


def test_committed_budget() -> None:
    """Every kernel in it has a limit for each architecture, and a source that is compiled."""
    sources = Path(check_cuda.__file__).parents[1] / "csrc" / "cuda" / "sources.cmake"
    if not sources.exists():
        pytest.skip("the sources are not beside the tests")
    compiled = re.findall(r"\w+\.cu\b", sources.read_text(encoding="utf-8"))
    committed = check_cuda.parse_budget(check_cuda.BUDGET.read_text(encoding="utf-8"))
    assert {source for source, _ in committed} <= set(compiled)
    assert len(committed) > 20
    for usages in committed.values():
        assert set(usages) == set(ARCHITECTURES)
        assert all(0 < usage.registers <= 255 for usage in usages.values())


def compiler(folder: Path, body: str) -> Path:
    """Write a program that stands in for nvcc."""
    program = folder / "nvcc"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.mark.skipif(sys.platform == "win32", reason="writes a program with #!")
def test_messages_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    says = compiler(tmp_path, f"sys.stderr.write({MESSAGES!r} + 'a warning\\n'); sys.exit(0)\n")
    output = tmp_path / "a.cu.o"
    kept = tmp_path / f"a.cu.o{keep_messages.SUFFIX}"
    assert keep_messages.main([str(says), "-c", "a.cu", "-o", str(output)]) == 0
    assert capfd.readouterr().err == "a warning\n"
    assert len(check_cuda.parse_messages(kept.read_text(encoding="utf-8"))) == 2
    kept.unlink()
    fails = compiler(tmp_path, "sys.stderr.write('a fault\\n'); sys.exit(2)\n")
    assert keep_messages.main([str(fails), "-c", "a.cu", "-o", str(output)]) == 2
    assert capfd.readouterr().err == "a fault\n"
    assert not kept.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="writes a program with #!")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('Cuda compilation tools, release 13.0, V13.0.88')", None),
        ("print('Cuda compilation tools, release 14.2, V14.2.1')", None),
        ("print('Cuda compilation tools, release 12.9, V12.9.1')", "nvcc release 12.9 is too old"),
        ("print('something')", "nvcc of an unknown release is too old"),
        ("sys.exit(1)", "nvcc does not run"),
    ],
)
def test_nvcc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str | None
) -> None:
    monkeypatch.setenv("CUDACXX", str(compiler(tmp_path, body)))
    missing = native_build.nvcc_missing()
    assert missing is None if reason is None else str(missing).startswith(reason)


def test_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native_build.nvcc_missing() == "nvcc is not on the PATH"
