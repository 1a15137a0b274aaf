"""Parts of bench_cuda.py before anything is measured: facts, and the build."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cuda_bench_run import ROOT, Context, PartError

PROGRAMS = ("cuda_limits", "cuda_kernels")
CHECKS = ("check_intrinsics", "check_matmul", "check_attention")
_FIELDS = (
    "name", "driver_version", "compute_cap", "memory.total", "memory.used", "clocks.sm",
    "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "power.draw",
    "temperature.gpu", "ecc.mode.current", "pcie.link.gen.current", "pcie.link.width.current",
)  # fmt: skip


def has_gpu() -> bool:
    """Whether the driver lists one."""
    return bool(query("name"))


def query(*fields: str) -> list[str]:
    """Return what nvidia-smi says of the first GPU; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if result.returncode != 0 or not result.stdout.strip():
        return []
    return [value.strip() for value in result.stdout.splitlines()[0].split(",")]


def facts(context: Context) -> None:
    """Record what a reader needs to judge the figures."""
    asked: tuple[str, ...] = next((f for f in (_FIELDS, _FIELDS[:4]) if query(*f)), ())
    values = dict(zip(asked, query(*asked), strict=True)) if asked else {}
    memory = dict(
        line.split(":", 1)
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        if line.startswith(("MemTotal", "MemAvailable"))
    )
    cpu = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    compiler = context.run("nvcc", ["nvcc", "--version"], 20)
    commit = context.settings.commit
    if not commit:
        told = context.run("git", ["git", "describe", "--always", "--dirty"], 20)
        commit = "unknown" if told.failed else told.output.strip()
    context.recorder.add(
        "facts",
        {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "commit": commit,
            "dry": context.settings.dry,
            "device": values or "none",
            "CPU": f"{cpu[0] if cpu else platform.processor()}, {os.cpu_count()} threads",
            "memory": {key: value.strip() for key, value in memory.items()},
            "disk": {
                str(folder): f"{shutil.disk_usage(folder).free / 1e9:.0f} GB free"
                for folder in {context.settings.work, Path("/tmp"), Path("/dev/shm")}
                if folder.is_dir()
            },
            "system": f"{platform.system()} {platform.release()}",
            "Python": platform.python_version(),
            "nvcc": compiler.output.strip().splitlines()[-1:] or "",
        },
    )


def build(context: Context) -> None:
    """Build the package for this device, and the programs beside it, in one go."""
    settings = context.settings
    if settings.installed:
        context.package = context.settings.work  # nothing of it is on PYTHONPATH's first place
        context.recorder.add("build", {"package": "installed"})
        return
    folder = settings.built or settings.work / "build"
    started = time.monotonic()
    wanted = _targets(settings.dry)
    if settings.built is None:
        _compile(context, folder, wanted)
    seconds = time.monotonic() - started
    beside = {
        name: path
        for name, path in _libraries(folder, settings.dry).items()
        if path is not None and path.is_file()
    }
    if set(beside) != {"_core", "library"}:
        raise PartError(f"no {' and no '.join({'_core', 'library'} - set(beside))} was built")
    context.package = _package(folder, list(beside.values()))
    if settings.dry:
        context.library = beside["library"]
    programs = folder / "tools" / "cuda"
    there = [name for name in wanted[2:] if (programs / name).is_file()]
    if there:
        context.programs = programs
    context.recorder.add(
        "build",
        {
            "seconds": seconds,
            "package": str(context.package),
            "library_bytes": beside["library"].stat().st_size,
            "programs": there,
            "missing": [name for name in wanted[2:] if name not in there],
        },
    )


def _targets(dry: bool) -> list[str]:
    if dry:
        return ["_core", "llama2q_cuda_emulated", *PROGRAMS]
    return ["_core", "llama2q_cuda", *PROGRAMS, *CHECKS]


def _compile(context: Context, folder: Path, targets: list[str]) -> None:
    options = ["-DLLAMA2Q_CUDA_BENCH=ON", "-DCMAKE_BUILD_TYPE=Release"]
    if context.settings.dry:
        options.append("-DLLAMA2Q_TEST_LIBRARIES=ON")
    else:
        capability = (query("compute_cap") or [""])[0].replace(".", "")
        if not capability.isdigit():
            raise PartError("nvidia-smi does not tell the compute capability")
        options += ["-DLLAMA2Q_CUDA=ON", f"-DLLAMA2Q_CUDA_ARCHITECTURES={capability}"]
    found = context.run("pybind11", [sys.executable, "-m", "pybind11", "--cmakedir"], 30)
    if found.failed:
        raise PartError(f"pybind11: {found.why()}")
    configured = context.run(
        "configure",
        ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={found.output.strip().splitlines()[-1]}", *options],
        context.part_left(),
    )  # fmt: skip
    if configured.failed:
        raise PartError(f"configuring: {configured.why()}")
    # What fails leaves the rest to be built.
    jobs = str(os.cpu_count() or 1)
    compiled = context.run(
        "compile",
        ["cmake", "--build", folder, "-j", jobs, "--target", *targets, "--", "-k", "0"],
        context.part_left(),
    )
    if compiled.failed:
        errors = [line for line in compiled.output.splitlines() if "error" in line.lower()]
        why = " / ".join(errors[:5]) or compiled.why()
        context.recorder.add("build", {"error": f"compiling: {why}"[:1500]})


def _libraries(folder: Path, dry: bool) -> dict[str, Path | None]:
    library = (
        folder / "tests" / "cuda" / "libllama2q_cuda_emulated.so"
        if dry
        else folder / "csrc" / "cuda" / "libllama2q_cuda.so"
    )
    return {"_core": next(folder.glob("_core*.so"), None), "library": library}


def _package(folder: Path, libraries: list[Path]) -> Path:
    """Put the Python sources around what was built; return what PYTHONPATH needs."""
    target = folder / "python"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        ROOT / "src" / "llama2q",
        target / "llama2q",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    for path in libraries:
        shutil.copy2(path, target / "llama2q")
    return target
