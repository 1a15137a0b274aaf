"""What tools/check_wheel.py finds: each fault of a wheel, and none in a sound one."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import check_wheel
import fat_binary
from check_cuda import ARCHITECTURES

NAME = "llama2q-0.1.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"
PREFIX = "llama2q-0.1.0-cp311-cp311-"

needs_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="compiles and reads libraries of Linux x86-64",
)

SHOWN = 'extern "C" __attribute__((visibility("default"))) '
INIT = f"{SHOWN} void* PyInit__core() {{ return nullptr; }}\n"
TABLE = f"{SHOWN} int llama2q_device_table() {{ return 1; }}\n"
VECTOR = """\
typedef float Wide __attribute__((vector_size(32)));
static __attribute__((noinline, target("avx"))) void add(Wide* x) { *x += *x; }
__attribute__((visibility("hidden"))) void NAME(void* x) { add(static_cast<Wide*>(x)); }
"""
UNITS = {name: VECTOR.replace("NAME", f"use_{name[:-4]}") for name in check_wheel.ISA_UNITS}


@pytest.mark.parametrize(
    ("platforms", "n_faults"),
    [
        ("manylinux_2_28_x86_64", 0),
        ("manylinux_2_17_x86_64.manylinux2014_x86_64", 0),
        ("manylinux_2_28_x86_64.manylinux_2_34_x86_64", 1),
        ("linux_x86_64", 1),
        ("manylinux_2_28_aarch64", 1),
    ],
)
def test_tags(platforms: str, n_faults: int) -> None:
    assert len(check_wheel.tag_faults(f"{PREFIX}{platforms}.whl")) == n_faults


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("FUNC GLOBAL DEFAULT 12 PyInit__core", None),
        ("FUNC GLOBAL DEFAULT UND malloc@GLIBC_2.2.5 (3)", None),
        ("FUNC GLOBAL DEFAULT UND preadv2@GLIBC_2.26 (9)", None),
        ("NOTYPE GLOBAL DEFAULT UND PyErr_Occurred", None),
        ("NOTYPE WEAK DEFAULT UND __cxa_thread_atexit_impl", None),
        ("NOTYPE LOCAL DEFAULT UND ", None),
        ("FUNC GLOBAL DEFAULT UND preadv2", "needs preadv2, which the glibc"),
        ("FUNC GLOBAL DEFAULT UND fstat@GLIBC_2.33 (4)", "needs fstat@GLIBC_2.33; GLIBC 2.28"),
        ("FUNC GLOBAL DEFAULT UND _ZSt4cerr@GLIBCXX_3.4.24 (5)", None),
        ("FUNC GLOBAL DEFAULT UND _ZSt4cerr@GLIBCXX_3.4.29 (5)", "needs _ZSt4cerr@GLIBCXX_3.4.29"),
        ("FUNC GLOBAL DEFAULT UND _Unwind_Resume@GCC_3.0 (5)", None),
        ("FUNC GLOBAL DEFAULT UND __cxa_call@CXXABI_1.3.15 (5)", "needs __cxa_call@CXXABI_1.3.15"),
        ("FUNC GLOBAL DEFAULT 12 _Znwm", "other libraries see its symbol _Znwm"),
        ("OBJECT WEAK DEFAULT 15 _ZTIFivE", "other libraries see its symbol _ZTIFivE"),
    ],
)
def test_symbols(line: str, fault: str | None) -> None:
    faults = check_wheel.symbol_faults(f"     1: 0000000000129e60     0 {line}")
    assert len(faults) == (fault is not None)
    assert faults == [] or faults[0].startswith(str(fault))


def test_libraries() -> None:
    line = " 0x01 (NEEDED)             Shared library: [{}]\n"
    assert check_wheel.library_faults(line.format("libc.so.6")) == []
    assert check_wheel.library_faults(line.format("libstdc++.so.6")) == [
        "needs libstdc++.so.6, which is no system library"
    ]
    assert check_wheel.library_faults(" 0x1d (RUNPATH)  Library runpath: [/opt]") == [
        "has a search path for libraries of its own"
    ]


@pytest.mark.parametrize(
    ("instruction", "newer"),
    [
        ("mulps  %xmm1,%xmm0", False),
        ("pshufd $0xe,%xmm1,%xmm0", False),
        ("rep stos %al,%es:(%rdi)", False),
        ("tzcnt  %rax,%rax", False),
        ("cvtss2sd %xmm0,%xmm0", False),
        ("verr   %ax", False),
        ("vmulps %ymm1,%ymm0,%ymm0", True),
        ("kmovw  %eax,%k1", True),
        ("pshufb %xmm1,%xmm0", True),
        ("pmulld %xmm1,%xmm0", True),
        ("popcnt %rax,%rax", True),
        ("roundss $0x9,%xmm0,%xmm0", True),
        ("shlx   %rax,%rbx,%rcx", True),
    ],
)
def test_instructions(instruction: str, newer: bool) -> None:
    symbols = "     5: 0000000000001000    32 FUNC    LOCAL  DEFAULT   12 run\n"
    faults = check_wheel.misplaced_instructions(symbols, f"    1004:\t{instruction}\n")
    assert any(fault.startswith("run holds ") for fault in faults) == newer


def test_sdist(tmp_path: Path) -> None:
    def sdist(*names: str) -> Path:
        with tarfile.open(tmp_path / "llama2q-0.1.0.tar.gz", "w:gz") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(f"llama2q-0.1.0/{name}"))
        return tmp_path / "llama2q-0.1.0.tar.gz"

    files = [f"{name}/a.cpp" if name in ("csrc", "src") else name for name in check_wheel.SOURCES]
    assert check_wheel.sdist_faults(sdist(*files)) == []
    assert check_wheel.sdist_faults(sdist(*files, "build/csrc/a.cpp.o")) == [
        "holds build, which is no source",
        "holds llama2q-0.1.0/build/csrc/a.cpp.o, which is no source",
    ]
    files.remove("LICENSE")
    assert check_wheel.sdist_faults(sdist(*files)) == ["LICENSE is missing"]


def library(folder: Path, sources: dict[str, str], *options: str) -> Path:
    """Compile and link a shared library, a unit a source."""
    folder.mkdir()
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    output = folder / "_core.cpython-311-x86_64-linux-gnu.so"
    subprocess.run(
        ["g++", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-o", output, *options]
        + [folder / name for name in sources],
        check=True,
    )
    return output


def wheel(
    folder: Path,
    extension: Path,
    name: str = NAME,
    left_out: str = "",
    cuda: Path | None = None,
) -> Path:
    """Pack a library as the package's wheels are."""
    members = ["llama2q/__init__.py", *check_wheel.REQUIRED]
    members.append("llama2q-0.1.0.dist-info/licenses/LICENSE")
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member in members:
            if member != left_out:
                archive.writestr(member, "")
        archive.write(extension, f"llama2q/{extension.name}")
        if cuda is not None:
            archive.write(cuda, check_wheel.CUDA_LIBRARY)
    return folder / name


@needs_linux
@pytest.mark.slow
def test_files(tmp_path: Path) -> None:
    sound = library(tmp_path / "sound", {"main.cpp": INIT}, "-s")
    assert check_wheel.faults_of(wheel(tmp_path, sound)) == []
    missing = wheel(tmp_path, sound, left_out="llama2q/py.typed")
    assert check_wheel.faults_of(missing) == ["llama2q/py.typed is missing"]
    unlicensed = wheel(tmp_path, sound, left_out="llama2q-0.1.0.dist-info/licenses/LICENSE")
    assert check_wheel.faults_of(unlicensed) == ["the licence is missing"]


@needs_linux
@pytest.mark.slow
def test_not_stripped(tmp_path: Path) -> None:
    whole = library(tmp_path / "whole", {"main.cpp": INIT})
    assert check_wheel.faults_of(wheel(tmp_path, whole)) == [
        f"not stripped: {whole.name} has a section .symtab"
    ]


@needs_linux
@pytest.mark.slow
def test_leaked_symbol_and_library(tmp_path: Path) -> None:
    text = f"#include <string>\n{SHOWN} void leak(int n) {{ throw std::to_string(n); }}\n{INIT}"
    leaking = library(tmp_path / "leaking", {"main.cpp": text}, "-s")
    faults = check_wheel.faults_of(wheel(tmp_path, leaking))
    assert "needs libstdc++.so.6, which is no system library" in faults
    assert "other libraries see its symbol leak" in faults


@needs_linux
@pytest.mark.slow
def test_units(tmp_path: Path) -> None:
    sound = library(tmp_path / "sound", {"main.cpp": INIT, **UNITS})
    assert check_wheel.instruction_faults(wheel(tmp_path, sound)) == []
    beside = {"main.cpp": INIT + VECTOR.replace("NAME", "use_main"), **UNITS}
    leaking = library(tmp_path / "leaking", beside)
    (fault,) = check_wheel.instruction_faults(wheel(tmp_path, leaking))
    assert fault.endswith("beyond baseline x86-64")
    without = {name: text for name, text in UNITS.items() if name != "avx2.cpp"}
    lacking = library(tmp_path / "lacking", {"main.cpp": INIT, **without})
    assert check_wheel.instruction_faults(wheel(tmp_path, lacking)) == [
        "no instruction of avx2.cpp was found"
    ]
    stripped = library(tmp_path / "stripped", {"main.cpp": INIT, **UNITS}, "-s")
    assert check_wheel.instruction_faults(wheel(tmp_path, stripped)) == [
        "it has no symbol table, by which to tell the units apart"
    ]


def container(*entries: tuple[int, int]) -> bytes:
    """A fat binary: for each kind (1: PTX, 2: machine code) and architecture 24 bytes of code."""
    body = b"".join(
        struct.pack("<HHIQ12xI32x", kind, 0x101, 64, 24, architecture) + bytes(24)
        for kind, architecture in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_fat_binary() -> None:
    section = container((2, 75), (2, 90), (1, 90)) + container((2, 120))
    assert list(fat_binary.parse(section)) == [
        fat_binary.Entry("elf", 75, 24),
        fat_binary.Entry("elf", 90, 24),
        fat_binary.Entry("ptx", 90, 24),
        fat_binary.Entry("elf", 120, 24),
    ]
    with pytest.raises(ValueError, match="no fat binary at byte 192"):
        list(fat_binary.parse(container((2, 75), (2, 90)) + b"a sentence of prose"))
    with pytest.raises(ValueError, match="unknown kind 3"):
        list(fat_binary.parse(container((3, 75))))
    with pytest.raises(ValueError, match="ends inside a header"):
        list(fat_binary.parse(container((2, 75), (2, 90))[:120]))


def cuda_library(folder: Path, code: bytes, text: str = "") -> Path:
    """Link a library that looks like that of the CUDA kernels."""
    values = ", ".join(map(str, code))
    section = '__attribute__((section(".nv_fatbin"), used)) '
    source = f"{section} static const unsigned char code[] = {{ {values} }};\n{TABLE}{text}"
    return library(folder, {"main.cpp": source}, "-s")


@needs_linux
@pytest.mark.slow
def test_cuda_library(tmp_path: Path) -> None:
    every = [(2, architecture) for architecture in ARCHITECTURES]
    newest = (1, ARCHITECTURES[-1])
    extension = library(tmp_path / "extension", {"main.cpp": INIT}, "-s")

    def faults(cuda: Path) -> list[str]:
        packed = wheel(tmp_path, extension, cuda=cuda)
        assert check_wheel.has_cuda(packed)
        return check_wheel.faults_of(packed)

    assert faults(cuda_library(tmp_path / "sound", container(*every, newest))) == []
    assert faults(cuda_library(tmp_path / "lacking", container(*every[1:], newest))) == [
        f"has elf for {list(ARCHITECTURES[1:])}; expected {list(ARCHITECTURES)}"
    ]
    assert faults(cuda_library(tmp_path / "no-text", container(*every))) == [
        f"has ptx for []; expected {[ARCHITECTURES[-1]]}"
    ]
    # The C++ library may be needed here; other symbols are not shown here either.
    text = f"#include <string>\n{SHOWN} void leak(int n) {{ throw std::to_string(n); }}\n"
    leaking = faults(cuda_library(tmp_path / "leaking", container(*every, newest), text))
    assert "other libraries see its symbol leak" in leaking
    assert not any("libstdc++" in fault for fault in leaking)
    empty = library(tmp_path / "empty", {"main.cpp": TABLE}, "-s")
    assert faults(empty) == [f"{Path(check_wheel.CUDA_LIBRARY).name} has no section .nv_fatbin"]
