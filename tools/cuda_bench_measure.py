"""Parts of bench_cuda.py that measure: limits, kernels, whole models, the split, a profile."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from cuda_bench_run import ROOT, Context, PartError, Row

WORKER = ROOT / "tools" / "cuda_bench_worker.py"
MODELS = ROOT / "tools" / "cuda_bench_models.py"
DEPTHS = (0, 1024, 4000)
PROMPTS = (512, 2048)
BATCHES = (8, 32)
N_CTX = 4096
SPLITS = {"7b": ("7GB",), "13b": ("7GB",), "70b": ("24GB", "16GB", "12GB", "8GB")}
"""Memory of the device that a shape may take."""
_TINY_SPLIT = "that of two layers"
_STREAM_TOKENS = (16, 32, 64, 128, 256, 512)


def start_models(context: Context) -> None:
    """Begin to write the model files, beside what does not need them."""
    settings = context.settings
    peers = settings.llama_cpp is not None and "h" in settings.parts
    forms = [*(["l2q"] if {"f", "g"} & set(settings.parts) else []), *(["gguf"] if peers else [])]
    if not forms:
        return
    folder = files_folder(context)
    command: list[str | Path] = [
        *(sys.executable, MODELS, "--folder", folder),
        *("--shapes", ",".join(settings.shapes), "--forms", ",".join(forms), "--seconds", "150"),
    ]
    context.start("models", lambda: _write_models(context, command))


def _write_models(context: Context, command: list[str | Path]) -> None:
    context.rows("models", "model files", command, context.left())


def files_folder(context: Context) -> Path:
    """Return where large files go: memory if there is plenty, which takes no writing to a disk."""
    shared = Path("/dev/shm")
    needed = 60e9 if "70b" in context.settings.shapes else 16e9
    if not context.settings.dry and shared.is_dir() and shutil.disk_usage(shared).free > needed:
        folder = shared / "llama2q-bench"
    else:
        folder = context.settings.work / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def model_file(context: Context, shape: str, form: str = "l2q") -> Row:
    """Wait for a model file and return its row.

    Raises
    ------
    PartError
        It was not written.
    """
    name = f"{shape}.{form}"
    while not context.recorder.of("models", file=name):
        if context.part_left() <= 0:
            raise PartError(f"{name} was not written in time")
        if context.wait("models", 0.2) and not context.recorder.of("models", file=name):
            raise PartError(f"{name} was not written")
    row = context.recorder.of("models", file=name)[0]
    if "path" not in row:
        raise PartError(f"{name}: {row.get('error')}")
    return row


def limits(context: Context) -> None:
    """Measure bandwidth, tensor cores, launches, copies."""
    assert context.programs is not None
    size = ["--megabytes", "1", "--seconds", "0"] if context.settings.dry else []
    context.rows("limits", "limits", [context.programs / "cuda_limits", *size], context.part_left())


def kernels(context: Context) -> None:
    """Measure each op of a layer, of each shape."""
    assert context.programs is not None
    shapes = sorted(context.settings.shapes, key=["7b", "70b", "13b", "tiny"].index)
    for done, shape in enumerate(shapes):
        quick = ["--quick"] if context.settings.dry else ["--seconds", "0.04"]
        seconds = context.part_left() / (len(shapes) - done)
        command: list[str | Path] = [context.programs / "cuda_kernels", "--shape", shape, *quick]
        context.rows("kernels", f"kernels of {shape}", command, seconds)


def profile(context: Context) -> None:
    """Keep what the hardware's counters say of one kernel."""
    assert context.programs is not None
    op = context.settings.profile
    tool = shutil.which("ncu", path=context.environment()["PATH"])
    if op is None or tool is None or context.settings.dry:
        why = "no --profile" if op is None else "a dry run" if tool is not None else "no ncu"
        context.recorder.add("profile", {"skipped": why})
        return
    sections = (
        *("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy"),
        *("SchedulerStats", "WarpStateStats"),
    )
    name, _, tokens = op.partition(":")
    shape = context.settings.shapes[0]
    program: list[str | Path] = [context.programs / "cuda_kernels", "--shape", shape]
    done = context.run(
        "profile",
        [tool, "--clock-control", "none", "--launch-count", "4",
         *(part for section in sections for part in ("--section", section)),
         *program, "--only", name, "--tokens", tokens or "1", "--seconds", "0"],
        context.part_left(),
    )  # fmt: skip
    (context.settings.out / "profile.txt").write_text(done.output, encoding="utf-8")
    row: Row = {"op": name, "tokens": tokens or "1", "shape": shape, "seconds": done.seconds}
    context.recorder.add("profile", row | ({"error": done.why()} if done.failed else {}))


def work(
    context: Context,
    part: str,
    file: Row,
    load: dict[str, Any],
    measures: list[dict[str, Any]],
    seconds: float,
    **common: Any,
) -> list[Row]:
    """Load a model in a process of its own and measure."""
    job = {"file": file["path"], "load": {"n_ctx": _context_of(context), **load}}
    shape = str(file["shape"])
    layers = {"layers": file["layers"], "whole_layers": file["whole_layers"]}
    command: list[str | Path] = [sys.executable, WORKER, json.dumps({**job, "measures": measures})]
    title = f"{part} {shape} {common.get('memory', '')}".strip()
    beside = [name for name in context.background if not context.wait(name, 0)]
    if beside:
        # Host figures of this row are lower for it.
        common["beside"] = beside
    return context.rows(part, title, command, seconds, shape=shape, **layers, **common)


def _context_of(context: Context) -> int:
    return 128 if context.settings.dry else N_CTX


def wait(context: Context) -> None:
    """Wait for what runs beside: whole models need the host, too."""
    for name in context.background:
        context.wait(name, context.part_left())


def speed(context: Context) -> None:
    """Measure tokens a second of whole models on the device."""
    dry, shapes = context.settings.dry, context.settings.shapes
    for done, shape in enumerate(shapes):
        seconds = context.part_left() / (len(shapes) - done)
        try:
            file = model_file(context, shape)
        except PartError as error:
            context.recorder.add("speed", {"shape": shape, "error": str(error)})
            continue
        tokens = 2 if dry else 32
        measures: list[dict[str, Any]] = [
            {"kind": "decode", "tokens": tokens, "depth": depth, "repeat": 1 if dry else 5}
            for depth in ((0, 64) if dry else DEPTHS)
        ]
        measures.append({"kind": "largest", "tokens": tokens, "repeat": 1 if dry else 5})
        measures.append({"kind": "generate", "tokens": 4 if dry else 128})
        measures += [
            {"kind": "prefill", "tokens": n, "repeat": 1 if dry else 3}
            for n in ((24,) if dry else PROMPTS)
        ]
        measures += [
            {"kind": "decode", "tokens": tokens, "sequences": n, "repeat": 1 if dry else 3}
            for n in ((2,) if dry else BATCHES)
        ]
        work(context, "speed", file, {"device": "cuda"}, measures, seconds)


def split(context: Context) -> None:
    """Measure models that share device and host, against what the parts should take."""
    dry, shapes = context.settings.dry, context.settings.shapes
    jobs = [(shape, memory) for shape in shapes for memory in (None, *_splits_of(context, shape))]
    for done, (shape, memory) in enumerate(jobs):
        seconds = context.part_left() / (len(jobs) - done + 1)
        try:
            file = model_file(context, shape)
        except PartError as error:
            context.recorder.add("split", {"shape": shape, "error": str(error)})
            continue
        many = 2 if dry else 4 if shape == "70b" else 8
        measures: list[dict[str, Any]] = [
            {"kind": "decode", "tokens": many, "repeat": 1 if dry else 2}
        ]
        if memory is None:
            # The host's share of the formula: the whole model on the CPU.
            work(context, "split", file, {"device": "cpu"}, measures, seconds, memory="none")
            continue
        if shape == "7b":
            measures = [
                {"kind": "decode", "tokens": 32, "depth": depth, "repeat": 3} for depth in DEPTHS
            ]
        tokens = 24 if dry else 512
        measures.append({"kind": "prefill", "tokens": tokens, "repeat": 1, "warm": False})
        load = _device_of(memory)
        work(context, "split", file, load, measures, seconds, memory=memory)
    _stream(context)


def _splits_of(context: Context, shape: str) -> tuple[str, ...]:
    return (_TINY_SPLIT,) if context.settings.dry else SPLITS.get(shape, ())


def _device_of(memory: str) -> dict[str, Any]:
    """Return what `load` is told about the device."""
    if memory == _TINY_SPLIT:
        return {"device": "cuda", "gpu_layers": 2}
    return {"device": "cuda", "gpu_memory": memory}


def _stream(context: Context) -> None:
    """Measure from how many tokens on the device should compute the host's layers, too."""
    dry = context.settings.dry
    split_shapes = [shape for shape in context.settings.shapes if _splits_of(context, shape)]
    if not split_shapes:
        context.recorder.add("stream", {"skipped": "no shape is split"})
        return
    shape = "13b" if "13b" in split_shapes else split_shapes[-1]
    try:
        file = model_file(context, shape)
    except PartError as error:
        context.recorder.add("stream", {"shape": shape, "error": str(error)})
        return
    memory = _splits_of(context, shape)[0]
    counts = (8, 24) if dry else _STREAM_TOKENS
    measures: list[dict[str, Any]] = [
        {"kind": "prefill", "tokens": n, "repeat": 1 if dry else 2} for n in counts
    ]
    for how in (1, None):
        load = {**_device_of(memory), "stream_prefill": how}
        seconds = context.part_left() / (2 if how is not None else 1)
        work(
            context,
            "stream",
            file,
            load,
            measures,
            seconds,
            memory=memory,
            streamed=how is not None,
        )
