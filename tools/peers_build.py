"""llama.cpp for bench_peers.py: its source as llama-cpp-python ships it, built once per tier."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama2q import _core

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "peers"
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
_DRIVER = ROOT / "tools" / "peers" / "llama_cpp_driver.cpp"
_LIBRARIES = (
    "src/libllama.a",
    "ggml/src/libggml.a",
    "ggml/src/libggml-cpu.a",
    "ggml/src/libggml-base.a",
)
_COMMON = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_SERVER=OFF",
    "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_OPENSSL=OFF",
    "GGML_CCACHE=OFF",
)
_AVX2 = tuple(f"GGML_{name}=ON" for name in ("AVX", "AVX2", "BMI2", "FMA", "F16C"))


@dataclass(frozen=True, slots=True)
class Tier:
    """Instructions that both sides are held to.

    Attributes
    ----------
    name : str
    isa : str or None
        Our instruction set; None takes the fastest.
    options : tuple of str
        CMake options of llama.cpp.
    """

    name: str
    isa: str | None
    options: tuple[str, ...]

    @property
    def is_available(self) -> bool:
        """Whether this CPU and build of ours have it.

        Ours may run a tier in another encoding, for tests; the peer needs the instructions.
        """
        return self.isa is None or (self.isa in _core.isas() and self.isa in _core.cpu_features())


TIERS = {
    tier.name: tier
    for tier in (
        Tier("native", None, ("GGML_NATIVE=ON", "LLAMA_BUILD_TOOLS=ON")),
        Tier("avxvnni", "avxvnni", ("GGML_NATIVE=OFF", *_AVX2, "GGML_AVX_VNNI=ON")),
        Tier("avx2", "avx2", ("GGML_NATIVE=OFF", *_AVX2)),
    )
}


def build_driver(tier: Tier) -> Path:
    """Return the program that times llama.cpp for a tier, built if it is not there or has changed.

    Raises
    ------
    SystemExit
        If something is missing; what failed is on stderr.
    """
    folder = FOLDER / tier.name
    source = _source()
    if not all((folder / library).exists() for library in _LIBRARIES):
        tools = "LLAMA_BUILD_TOOLS=ON" in tier.options
        options = (*_COMMON, *tier.options, f"LLAMA_BUILD_COMMON={'ON' if tools else 'OFF'}")
        if not tools:
            options = (*options, "LLAMA_BUILD_TOOLS=OFF")
        print(f"building llama.cpp for {tier.name} (once; 10 to 30 minutes)", file=sys.stderr)
        _run(["cmake", "-S", source, "-B", folder, *(f"-D{option}" for option in options)])
        targets = ("llama", "llama-bench") if tools else ("llama",)
        jobs = str(_core.default_threads())
        _run(["cmake", "--build", folder, "-j", jobs, "--target", *targets])
    driver = folder / "driver"
    newest = max(path.stat().st_mtime for path in [_DRIVER, folder / _LIBRARIES[0]])
    if not driver.exists() or driver.stat().st_mtime < newest:
        includes = [source / "include", source / "ggml" / "include"]
        _run(
            [
                *(os.environ.get("CXX", "c++"), "-std=c++17", "-O2"),
                *(f"-I{path}" for path in includes),
                *(_DRIVER, "-o", driver),
                *(folder / library for library in _LIBRARIES),
                *("-fopenmp", "-lpthread", "-ldl", "-lm"),
            ]
        )
    return driver


def llama_bench() -> Path:
    """Return the peer's own benchmark program of the native build."""
    return FOLDER / "native" / "bin" / "llama-bench"


def _source() -> Path:
    """Return the folder of llama.cpp's source, fetched if it is not there."""
    folder = FOLDER / f"{PACKAGE.replace('-', '_')}-{VERSION}"
    source = folder / "vendor" / "llama.cpp"
    if source.is_dir():
        return source
    FOLDER.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps"]
    _run([*download, "--dest", FOLDER, f"{PACKAGE}=={VERSION}"])
    archive = FOLDER / f"{folder.name}.tar.gz"
    with tarfile.open(archive) as file:
        file.extractall(FOLDER, filter="data")
    archive.unlink()
    return source


def _run(command: Sequence[str | Path]) -> None:
    """Run a command politely; show its output only if it fails."""
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    result = subprocess.run(
        [*nice, *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        print(result.stdout[-4000:], file=sys.stderr)
        raise SystemExit(f"{Path(command[0]).name} failed; cmake and a C++ compiler are needed")
