"""The part of bench_cuda.py that measures llama.cpp's CUDA build beside us."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from cuda_bench_build import query
from cuda_bench_measure import BATCHES, DEPTHS, PROMPTS, model_file
from cuda_bench_run import Context, PartError, Row

_OPTIONS = (
    "CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "GGML_CUDA=ON", "GGML_NATIVE=ON",
    "GGML_CCACHE=OFF", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF", "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_SERVER=OFF", "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_UI=OFF", "LLAMA_BUILD_COMMON=ON", "LLAMA_BUILD_TOOLS=ON",
)  # fmt: skip
_TARGETS = ("llama-bench", "llama-batched-bench")
_PACKED = (
    *("CMakeLists.txt", "LICENSE", "cmake", "common", "ggml", "include", "licenses", "src"),
    *("tools", "vendor"),
)
_LEFT_OUT = ("llama.cpp/tools/ui", "llama.cpp/tools/server")


def start_build(context: Context) -> None:
    """Begin to build llama.cpp, beside what does not need the host's cores."""
    settings = context.settings
    if settings.llama_cpp is not None and "h" in settings.parts and not settings.dry:
        context.start("peer build", lambda: _build(context))


def _build(context: Context) -> None:
    source = _source(context)
    folder = context.settings.work / "llama.cpp-build"
    capability = (query("compute_cap") or [""])[0].replace(".", "")
    options = [*_OPTIONS, f"CMAKE_CUDA_ARCHITECTURES={capability}", *_cublas()]
    configured = context.run(
        "configure llama.cpp",
        ["cmake", "-S", source, "-B", folder, "-G", "Ninja", *(f"-D{o}" for o in options)],
        context.left(),
    )
    if configured.failed:
        raise PartError(f"configuring llama.cpp: {configured.why()}")
    jobs = str(max(1, (os.cpu_count() or 2) - 2))
    # Each target by itself: the second may be missing in a source.
    for target in _TARGETS:
        built = context.run(
            f"build {target}",
            ["nice", "-n", "10", "cmake", "--build", folder, "-j", jobs, "--target", target],
            context.left(),
        )
        row: dict[str, Any] = {"built": target, "seconds": built.seconds}
        if built.failed:
            row["error"] = built.why()
        context.recorder.add("peer build", row)


def _source(context: Context) -> Path:
    given = context.settings.llama_cpp
    assert given is not None
    if given.is_file():
        folder = context.settings.work / "llama.cpp"
        if not folder.is_dir():
            with tarfile.open(given) as archive:
                archive.extractall(folder, filter="data")
        given = folder
    found = [given, *sorted(given.glob("*/")), *sorted(given.glob("*/vendor/llama.cpp"))]
    for path in found:
        if (path / "ggml" / "CMakeLists.txt").is_file():
            return path
    raise PartError(f"{given} holds no source of llama.cpp (ggml/CMakeLists.txt)")


def _cublas() -> list[str]:
    """Return options that name cuBLAS where it is not the toolkit's but Python's."""
    for folder in map(Path, sys.path):
        for header in sorted(folder.glob("nvidia/**/cublas_v2.h")):
            root = header.parent.parent
            options = [f"CMAKE_CUDA_FLAGS=-I{header.parent}", f"CMAKE_CXX_FLAGS=-I{header.parent}"]
            for name in ("cublas", "cublasLt"):
                library = next(iter(sorted(root.glob(f"lib*/lib{name}.so*"))), None)
                if library is not None:
                    options.append(f"CUDA_{name}_LIBRARY={library}")
            toolkit = shutil.which("nvcc")
            beside = Path(toolkit).resolve().parents[1] if toolkit else None
            if beside is not None and list(beside.glob("**/cublas_v2.h")):
                return []
            return options
    return []


def peer(context: Context) -> None:
    """Rows of the same models and lengths; the ratios are in the report."""
    settings = context.settings
    if settings.llama_cpp is None or settings.dry:
        why = "a dry run" if settings.dry else "no --llama-cpp"
        context.recorder.add("peer", {"skipped": why})
        return
    if not context.wait("peer build", context.part_left() * 0.7):
        raise PartError("llama.cpp was not built in time")
    programs = settings.work / "llama.cpp-build" / "bin"
    if not (programs / _TARGETS[0]).is_file():
        raise PartError("llama.cpp could not be built; see the rows of its build")
    for done, shape in enumerate(settings.shapes):
        seconds = context.part_left() / (len(settings.shapes) - done)
        try:
            file = model_file(context, shape, "gguf")
        except PartError as error:
            context.recorder.add("peer", {"shape": shape, "error": str(error)})
            continue
        _bench(context, programs / _TARGETS[0], file, seconds * 0.75)
        _batched(context, programs / _TARGETS[1], file, seconds * 0.25)


def _bench(context: Context, program: Path, file: Row, seconds: float) -> None:
    shape, path = file["shape"], file["path"]
    runs: list[list[str]] = [["-p", ",".join(map(str, PROMPTS)), "-n", "0", "-r", "3"]]
    runs.append(["-p", "0", "-n", "32", "-d", ",".join(map(str, DEPTHS)), "-r", "3"])
    for done, run in enumerate(runs):
        ended = context.run(
            f"llama-bench {shape}",
            [program, "-m", path, "-ngl", "99", "-fa", "1", "-o", "jsonl", *run],
            seconds / (len(runs) - done),
            lambda line: _take_bench(context, file, line),
        )
        if ended.failed:
            context.recorder.add("peer", {"shape": shape, "error": ended.why()})


def _take_bench(context: Context, file: Row, line: str) -> None:
    try:
        values = json.loads(line[line.index("{") :])
        row: dict[str, Any] = {
            "shape": file["shape"],
            "layers": file["layers"],
            "kind": "prefill" if values["n_gen"] == 0 else "decode",
            "tokens": values["n_prompt"] or values["n_gen"],
            "depth": values.get("n_depth", 0),
            "sequences": 1,
            "tokens_per_second": values["avg_ts"],
            "stddev": values["stddev_ts"],
            "build": values.get("build_commit"),
        }
    except (ValueError, KeyError, TypeError):
        return
    context.recorder.add("peer", row)


def _batched(context: Context, program: Path, file: Row, seconds: float) -> None:
    shape, path = file["shape"], file["path"]
    if not program.is_file():
        context.recorder.add("peer", {"shape": shape, "error": f"no {program.name} was built"})
        return
    command: list[str | Path] = [
        *(program, "-m", path, "-ngl", "99", "-fa", "on", "-c", "4096", "-npp", "1"),
        *("-ntg", "32", "-npl", ",".join(map(str, BATCHES)), "--output-format", "jsonl"),
    ]

    def take(line: str) -> None:
        try:
            values = json.loads(line[line.index("{") :])  # a log may put something before
            row = {
                "shape": shape,
                "layers": file["layers"],
                "kind": "decode",
                "tokens": values["tg"],
                "depth": 0,
                "sequences": values["pl"],
                "tokens_per_second": values["speed_tg"],
            }
        except (ValueError, KeyError, TypeError):
            return
        context.recorder.add("peer", row)

    ended = context.run(f"llama-batched-bench {shape}", command, seconds, take)
    if ended.failed:
        context.recorder.add("peer", {"shape": shape, "error": ended.why()})


def _packed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name in _LEFT_OUT else entry


def pack(source: Path, target: Path) -> int:
    """Put what the build needs of a source folder into an archive; return its bytes."""
    with tarfile.open(target, "w:gz") as archive:
        for name in _PACKED:
            if (source / name).exists():
                archive.add(source / name, f"llama.cpp/{name}", filter=_packed)
    return target.stat().st_size
