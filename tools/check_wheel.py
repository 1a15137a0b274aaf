"""Reads a Linux x86-64 wheel: it must run on the systems and CPUs that its name promises.

A wheel must be small, stripped, tagged for glibc 2.28 or older and need no newer symbol of it
(auditwheel passes over a symbol without a version: one that the tagged glibc does not have); its
extension shows other libraries its init function alone. The library of CUDA kernels, if it has
one, shows its table alone and holds machine code for every architecture. A wheel that still has its
symbol table is disassembled: outside the units of instruction sets it holds baseline x86-64 alone.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import check_cuda
import fat_binary

MAX_BYTES = 5_000_000
MAX_BYTES_WITH_CUDA = 40_000_000
NEWEST_GLIBC = (2, 28)
NEWEST = {"GLIBC": NEWEST_GLIBC, "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
"""Versions of symbols that a system of manylinux_2_28 has: those of glibc 2.28 and GCC 8."""
SYSTEM_LIBRARIES = {
    *("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"),
    "ld-linux-x86-64.so.2",
}
CUDA_LIBRARY = "llama2q/libllama2q_cuda.so"
CUDA_NEEDS = SYSTEM_LIBRARIES | {"libstdc++.so.6", "libgcc_s.so.1"}
"""Libraries that the library of CUDA kernels may need: nvcc compiles for GCC's C++ library."""
CUDA_SYMBOL = "llama2q_device_table"
REQUIRED = (
    *("llama2q/py.typed", "llama2q/_core.pyi", "llama2q/FORMAT.md"),
    *("llama2q/calibrate/calibration.txt", "llama2q/calibrate/README.md"),
)
ISA_UNITS = {"avx2.cpp", "avxvnni.cpp", "avx512vnni.cpp"}
"""Source files that may hold more than baseline instructions."""
SOURCES = {
    *("csrc", "src", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "PKG-INFO"),
    *(".clang-format", ".gitattributes", ".gitignore"),
}
"""What lies at the top of an sdist."""

_NEWER = re.compile(
    # VEX and EVEX; then SSE3, SSSE3, SSE4, POPCNT, LZCNT, BMI, MOVBE, ADX, AES, SHA. Not tzcnt:
    # compilers write it where the older bsf, which it is to older CPUs, does as well.
    r"v(?!er[rw]$)\w+|k(?:mov|or|and|xor|not|add|shift|unpck|test)\w+"
    r"|addsubp[sd]|hsubp[sd]|haddp[sd]|lddqu|mov(?:s[hl]|d)dup|fisttp\w*"
    r"|pshufb|ph(?:add|sub)\w+|pmaddubsw|pmulhrsw|psign[bwd]|pabs[bwd]|palignr"
    r"|p?blend\w+|dpp[sd]|extractps|insertps|mpsadbw|packusdw|pcmp(?:eqq|gtq|[ei]str[im])"
    r"|pextr[bdq]|phminposuw|pinsr[bdq]|pmax(?:sb|sd|ud|uw)|pmin(?:sb|sd|ud|uw)"
    r"|pmov[sz]x\w+|pmul(?:dq|ld)|ptest|round[ps][sd]|movntdqa|crc32\w*"
    r"|popcnt\w*|lzcnt\w*|andn|bextr|bls(?:i|msk|r)|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx"
    r"|movbe\w*|ad[co]x|aes\w+|pclmul\w*|sha(?:1|256)\w+|gf2p8\w+|xsave\w*|xrstor\w*"
)
_INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t(?:(?:rep|repz|repnz|lock|data16|bnd|cs) )*(\w+)")
_SYMBOL = re.compile(
    r"^ *\d+: +([0-9a-f]+) +(\d+|0x[0-9a-f]+) +(\w+) +(\w+) +\w+ +(\w+)(?: +(\S+))?"
)
_VERSION = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    return report(parser.parse_args().wheel, faults_of)


def report(wheel: Path, check: Callable[[Path], list[str]]) -> int:
    """Print what a check finds wrong with a wheel or sdist; return an exit code."""
    faults = check(wheel)
    for fault in faults:
        print(f"{wheel.name}: {fault}", file=sys.stderr)
    what = " ".join(check.__name__.removesuffix("_of").split("_"))
    print(f"{wheel.name}: {wheel.stat().st_size} bytes, {what}: {len(faults)}")
    return 1 if faults else 0


def faults_of(wheel: Path) -> list[str]:
    """Return what is wrong with a finished wheel, a sentence each."""
    faults = tag_faults(wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    most = MAX_BYTES_WITH_CUDA if CUDA_LIBRARY in names else MAX_BYTES
    if wheel.stat().st_size > most:
        faults.append(f"{wheel.stat().st_size} bytes; at most {most} were expected")
    faults += [f"{name} is missing" for name in REQUIRED if name not in names]
    if not any(name.endswith("/LICENSE") for name in names):
        faults.append("the licence is missing")
    libraries = [name for name in names if ".so" in Path(name).suffixes and name != CUDA_LIBRARY]
    if len(libraries) != 1:
        return [*faults, f"shared libraries {libraries}; expected the extension alone"]
    with tempfile.TemporaryDirectory() as folder:
        faults += _stripped_faults(extension := _extracted(wheel, Path(folder), libraries[0]))
        faults += library_faults(_readelf("--dynamic", extension))
        faults += symbol_faults(_readelf("--dyn-syms", extension))
        if CUDA_LIBRARY in names:
            faults += cuda_faults(_extracted(wheel, Path(folder), CUDA_LIBRARY))
    return faults


def cuda_faults(library: Path) -> list[str]:
    """Return what is wrong with a library of CUDA kernels, a sentence each."""
    faults = _stripped_faults(library)
    faults += library_faults(_readelf("--dynamic", library), CUDA_NEEDS)
    faults += symbol_faults(_readelf("--dyn-syms", library), CUDA_SYMBOL)
    try:
        entries = fat_binary.read(library)
    except ValueError as error:
        return [*faults, str(error)]
    expected = {
        "elf": set(check_cuda.ARCHITECTURES),
        "ptx": {max(check_cuda.ARCHITECTURES)},
    }
    for kind, architectures in expected.items():
        n_bytes = {entry.architecture: 0 for entry in entries if entry.kind == kind}
        for entry in entries:
            if entry.kind == kind:
                n_bytes[entry.architecture] += entry.n_bytes
        sizes = ", ".join(f"{name}: {n_bytes[name]}" for name in sorted(n_bytes))
        print(f"{library.name}: {kind} bytes for {sizes}")
        if set(n_bytes) != architectures:
            faults.append(f"has {kind} for {sorted(n_bytes)}; expected {sorted(architectures)}")
    return faults


def has_cuda(wheel: Path) -> bool:
    """Whether a wheel holds the library of CUDA kernels."""
    with zipfile.ZipFile(wheel) as archive:
        return CUDA_LIBRARY in archive.namelist()


def _stripped_faults(library: Path) -> list[str]:
    sections = _readelf("--section-headers", library)
    return [
        f"not stripped: {library.name} has a section {name}"
        for name in (".symtab", ".debug_info")
        if re.search(rf"\s{re.escape(name)}\s", sections)
    ]


def sdist_faults(sdist: Path) -> list[str]:
    """Return what is wrong with the files of an sdist, a sentence each."""
    with tarfile.open(sdist) as archive:
        names = [member.name for member in archive if member.isfile()]
    found = {name.split("/")[1] for name in names}
    compiled = [name for name in names if Path(name).suffix in (".o", ".so", ".pyc")]
    return [
        *(f"holds {name}, which is no source" for name in [*sorted(found - SOURCES), *compiled]),
        *(f"{name} is missing" for name in sorted(SOURCES - found) if not name.startswith(".")),
    ]


def tag_faults(name: str) -> list[str]:
    """Return what is wrong with the platform in a wheel's name."""
    platforms = name.removesuffix(".whl").split("-")[-1].split(".")
    faults = []
    for platform in platforms:
        found = re.fullmatch(r"manylinux_(\d+)_(\d+)_x86_64", platform)
        if platform == "manylinux2014_x86_64":
            continue
        if found is None or (int(found[1]), int(found[2])) > NEWEST_GLIBC:
            faults.append(f"tagged {platform}; expected manylinux_2_28_x86_64 or older")
    return faults


def library_faults(dynamic: str, allowed: Set[str] = SYSTEM_LIBRARIES) -> list[str]:
    """Return what is wrong with the libraries in `readelf --dynamic`'s output."""
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    faults = [f"needs {name}, which is no system library" for name in needed - allowed]
    if re.search(r"\((?:RPATH|RUNPATH)\)", dynamic):
        faults.append("has a search path for libraries of its own")
    return sorted(faults)


def symbol_faults(dynamic_symbols: str, shown: str = "PyInit__core") -> list[str]:
    """Return what is wrong with the symbols in `readelf --dyn-syms`'s output.

    Parameters
    ----------
    dynamic_symbols : str
    shown : str
        The symbol that other libraries may see.
    """
    faults = []
    for _, _, kind, binding, section, name in _symbols(dynamic_symbols):
        if not name or kind == "SECTION":
            continue
        if section != "UND":
            if name != shown:
                faults.append(f"other libraries see its symbol {name}")
        elif (version := _VERSION.search(name)) is not None:
            if tuple(int(part) for part in version[2].split(".")) > NEWEST[version[1]]:
                newest = ".".join(map(str, NEWEST[version[1]]))
                faults.append(f"needs {name}; {version[1]} {newest} or older was expected")
        elif binding != "WEAK" and not name.startswith(("Py", "_Py")):
            faults.append(f"needs {name}, which the glibc it was linked for does not have")
    return faults


def instruction_faults(wheel: Path) -> list[str]:
    """Return the functions beyond baseline x86-64 outside the ISA units; needs its symbols."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if re.match(r"llama2q/_core\..*\.so$", n))
        extension = _extracted(wheel, Path(folder), name)
        symbols = _readelf("--syms", extension)
        if "'.symtab'" not in symbols:
            return ["it has no symbol table, by which to tell the units apart"]
        text = subprocess.run(
            ["objdump", "--disassemble", "--no-show-raw-insn", str(extension)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    return misplaced_instructions(symbols, text)


def misplaced_instructions(symbols: str, disassembly: str) -> list[str]:
    """Find newer instructions outside the ISA units, or units without any.

    Parameters
    ----------
    symbols : str
        What `readelf --syms --wide` says: local functions follow the name of their source file.
    disassembly : str
        What `objdump --disassemble --no-show-raw-insn` says.

    Returns
    -------
    list of str
        A sentence per function at fault, and per unit in which no newer instruction was found.
    """
    functions: list[tuple[int, int, str, str]] = []
    unit = ""
    for address, size, kind, binding, _, name in _symbols(symbols):
        if kind == "FILE":
            unit = name
        elif kind == "FUNC" and size:
            functions.append((address, size, name, unit if binding == "LOCAL" else ""))
    functions.sort()
    starts = [address for address, *_ in functions]
    found: dict[str, str] = {}
    seen: set[str] = set()
    for line in disassembly.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction is None or _NEWER.fullmatch(instruction[2]) is None:
            continue
        address = int(instruction[1], 16)
        at = bisect_right(starts, address) - 1
        known = at >= 0 and address < starts[at] + functions[at][1]
        name, source = functions[at][2:] if known else (f"the code at {address:#x}", "")
        if source in ISA_UNITS:
            seen.add(source)
        else:
            found.setdefault(name, instruction[2])
    return [
        *(f"{name} holds {newer}, beyond baseline x86-64" for name, newer in found.items()),
        *(f"no instruction of {unit} was found" for unit in sorted(ISA_UNITS - seen)),
    ]


def _symbols(table: str) -> Iterator[tuple[int, int, str, str, str, str]]:
    """Yield address, size, type, binding, section and name of readelf's lines."""
    for line in table.splitlines():
        if (found := _SYMBOL.match(line)) is not None:
            address, size, kind, binding, section, name = found.groups()
            yield int(address, 16), int(size, 0), kind, binding, section, name or ""


def _extracted(wheel: Path, folder: Path, name: str) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(name, folder))


def _readelf(what: str, path: Path) -> str:
    return subprocess.run(
        ["readelf", "--wide", what, str(path)], check=True, capture_output=True, text=True
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
