"""The Markdown report of bench_cuda.py, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from cuda_bench_run import Context, Recorder, Row
from cuda_bench_split_report import split_section, stream_section
from markdown_table import markdown_table

GOALS = (
    ("tok/s at batch 1", "7b", 750.0),
    ("tok/s at batch 1", "13b", 450.0),
    ("tok/s at batch 1", "70b", 100.0),
)
_LARGE_SHARE, _SMALL_SHARE, _PREFILL = 0.85, 0.70, 200e12


def write(context: Context) -> None:
    """Write `report.md` from the rows that there are."""
    text = report(context.recorder)
    (context.recorder.folder / "report.md").write_text(text, encoding="utf-8")


def report(recorder: Recorder) -> str:
    """Lay everything out."""
    sections = (
        ("", _facts),
        ("Parts", _parts),
        ("Errors", _errors),
        ("Checks", _checks),
        ("Limits", _limits),
        ("Goals", _goals),
        ("Whole models", _speed),
        ("Device and host", split_section),
        ("Prompts of the host's layers through the device", stream_section),
        ("llama.cpp", _peers),
        ("Kernels", _kernels),
    )
    blocks = ["# CUDA backend, measured"]
    if recorder.of("facts", dry=True):
        blocks.append(
            "A dry run on the emulation: it shows that everything runs. No figure counts."
        )
    for title, make in sections:
        text = _made(make, recorder)
        if text:
            blocks += [f"## {title}", text] if title else [text]
    return "\n\n".join(blocks) + "\n"


def _made(make: Callable[[Recorder], str], recorder: Recorder) -> str:
    """Make a section; one that cannot be made must not cost the others."""
    try:
        return make(recorder)
    except Exception as error:
        return f"This section could not be made ({type(error).__name__}: {error})."


def summary(context: Context) -> str:
    """Say in a few lines how the run went."""
    rows = context.recorder.rows
    errors = [row for row in rows if "error" in row or row.get("outcome") in ("failed", "error")]
    parts = [
        f"{row['key']} {row['name']}: {row.get('error') or row.get('skipped') or 'done'} "
        f"({row['seconds']:.0f} s)"
        for row in context.recorder.of("parts")
    ]
    where = context.recorder.folder
    return "\n".join([*parts, f"{len(rows)} rows, {len(errors)} errors: {where}/report.md"])


def limit_of(recorder: Recorder, name: str) -> float | None:
    """Return the best measured rate of a limit, per second."""
    rates = [row["per_second"] for row in recorder.of("limits", limit=name) if "per_second" in row]
    return max(rates, default=None)


def _facts(recorder: Recorder) -> str:
    lines = []
    for row in recorder.of("facts"):
        for key, value in row.items():
            if key != "part":
                text = ", ".join(f"{k} {v}" for k, v in value.items()) if _is_map(value) else value
                lines.append(f"- {key}: {text}")
    return "\n".join(lines)


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _parts(recorder: Recorder) -> str:
    rows = [
        [
            f"{row['key']} {row['name']}",
            f"{row['seconds']:.0f}",
            str(row.get("error") or row.get("skipped") or "done"),
        ]
        for row in recorder.of("parts")
    ]
    return markdown_table(["part", "seconds", "outcome"], rows) if rows else ""


def _errors(recorder: Recorder) -> str:
    lines = []
    for row in recorder.rows:
        if "error" in row and row["part"] != "parts":
            about = [
                f"{key} {row[key]}"
                for key in ("shape", "op", "program", "tool", "kind", "tokens", "memory")
                if row.get(key) is not None
            ]
            lines.append(f"- {row['part']} {', '.join(about)}: {row['error']}")
    return "\n".join(lines)


def _checks(recorder: Recorder) -> str:
    lines = []
    cases: Counter[str] = Counter()
    for row in recorder.of("check"):
        if "test" in row:
            message = f": {row['message']}" if "message" in row else ""
            facts = [
                f"{key} {value}"
                for key, value in row.items()
                if key not in ("part", "test", "seconds", "outcome", "message")
            ]
            # Cases that have nothing of their own to say are counted.
            name = row["test"] if facts else row["test"].partition("[")[0]
            cases["; ".join([f"{name}: {row['outcome']}{message}", *facts])] += 1
    for line, count in cases.items():
        lines.append(f"- {line}" + (f" ({count} cases)" if count > 1 else ""))
    for row in recorder.of("check") + recorder.of("sanitize"):
        if "program" in row:
            tool = f"{row['tool']}, " if "tool" in row else ""
            found = f"{row.get('passed', '?')} checks passed, {len(row.get('failed', []))} failed"
            found = row.get("summary", found) if row["program"] == "model" else found
            more = f"; {row['summary']}" if "summary" in row and "passed" in row else ""
            bad = f"; {' / '.join(row['failed'])}" if row.get("failed") else ""
            error = f"; {row['error']}" if "error" in row else ""
            lines.append(f"- {tool}{row['program']}: {found}{more}{bad}{error}")
        elif "skipped" in row:
            lines.append(f"- {row['part']}: left out: {row['skipped']}")
    return "\n".join(lines)


def _limits(recorder: Recorder) -> str:
    rows = []
    for row in recorder.of("limits"):
        if "us" not in row:
            continue
        rate = row.get("per_second")
        scale, unit = (1e12, "TOP/s") if "mma" in row["limit"] else (1e9, "GB/s")
        size = f", {row['bytes'] / 1e6:.3g} MB" if "bytes" in row else ""
        value = f"{rate / scale:.0f} {unit}" if rate else f"{row['us']:.2f} us"
        rows.append([f"{row['limit']}{size}", value, f"{row['us']:.1f}", row.get("way", "")])
    return markdown_table(["limit", "rate", "us", "how"], rows) if rows else ""


def _goals(recorder: Recorder) -> str:
    rows = []
    for what, shape, goal in GOALS:
        for row in recorder.of("speed", shape=shape):
            alone = row["kind"] in ("decode", "largest", "generate")
            alone = alone and row.get("depth", 0) == 0 and row.get("sequences", 1) == 1
            if alone and row.get("tokens_per_second"):
                whole = row["layers"] == row["whole_layers"]
                note = "" if whole else f" ({row['layers']} of {row['whole_layers']} layers)"
                rows.append([f"{shape}: {what}, {name_of(row)}{note}",
                             f"{row['tokens_per_second']:.0f}", f"{goal:.0f}"])  # fmt: skip
    read = limit_of(recorder, "read")
    for row in recorder.of("kernels", tokens=1, limit="read"):
        counts = row["shape"] != "tiny" and row.get("weights") in ("int4", "int8")
        if read and counts and "us" in row:
            is_large = row["weight_bytes"] > 20e6
            goal = _LARGE_SHARE if is_large else _SMALL_SHARE
            share = row["bytes"] / row["us"] * 1e6 / read
            name = (
                f"{row['shape']}: {row['op']} {row['weights']}, {row['weight_bytes'] / 1e6:.0f} MB"
            )
            rows.append([name, f"{100 * share:.0f} %", f"{100 * goal:.0f} %"])
    for row in recorder.of("speed", kind="prefill"):
        if "ops" in row and row.get("tokens", 0) >= 2048:
            rate = row["ops"] / row["seconds"]
            rows.append([f"{row['shape']}: prefill {row['tokens']}", f"{rate / 1e12:.0f} TFLOP/s",
                         f"{_PREFILL / 1e12:.0f} TFLOP/s"])  # fmt: skip
    return markdown_table(["what", "measured", "goal"], rows) if rows else ""


def name_of(row: Row) -> str:
    """Name a measurement of a whole model."""
    if row["kind"] == "decode":
        sequences = row.get("sequences", 1)
        many = f"{sequences} sequences" if sequences > 1 else "decode"
        return f"{many} at depth {row.get('depth', 0)}"
    if row["kind"] == "generate":
        return f"generate {row.get('tokens')}, greedy"
    if row["kind"] == "largest":
        return "decode, the largest logit alone"
    return f"{row['kind']} {row.get('tokens', '')}".strip()


def _speed(recorder: Recorder) -> str:
    read, dots = limit_of(recorder, "read"), limit_of(recorder, "int8 mma")
    rows = []
    for row in recorder.of("speed"):
        if not row.get("tokens_per_second"):
            continue
        share = ""
        if row.get("read_bytes") and read:
            share = f"{100 * row['read_bytes'] / row['seconds'] / read:.0f} % of reading"
        elif row.get("ops") and dots:
            share = f"{100 * row['ops'] / row['seconds'] / dots:.0f} % of int8 mma"
        layers = "" if row["layers"] == row["whole_layers"] else f" ({row['layers']} layers)"
        beside = "while " + " and ".join(row["beside"]) + " ran" if "beside" in row else ""
        rows.append(
            [
                f"{row['shape']}{layers}",
                name_of(row),
                f"{row['tokens_per_second']:.1f}",
                f"{1e3 * row['seconds']:.3f}",
                share,
                beside,
            ]
        )
    for row in recorder.of("speed", kind="memory"):
        rows.append([row["shape"], "memory", "", "", *_memory(row)])
    return markdown_table(["model", "row", "tok/s", "ms", "share", ""], rows) if rows else ""


def _memory(row: Row) -> list[str]:
    over = row["over_plan"]
    planned = f"{row['planned_bytes'] / 1e9:.2f} GB planned"
    return [f"{row['peak_bytes'] / 1e9:.2f} GB, {planned}",
            f"{100 * over:+.1f} %" if over is not None else ""]  # fmt: skip


def _peers(recorder: Recorder) -> str:
    lines = [f"- left out: {row['skipped']}" for row in recorder.of("peer") if "skipped" in row]
    rows = []
    for row in recorder.of("peer"):
        if "tokens_per_second" not in row:
            continue
        same = [
            ours
            for ours in recorder.of("speed", shape=row["shape"], kind=row["kind"])
            if ours.get("tokens_per_second")
            and ours["layers"] == row["layers"]
            and ours.get("depth", 0) == row["depth"]
            and ours.get("sequences", 1) == row["sequences"]
            and (row["kind"] == "decode" or ours["tokens"] == row["tokens"])
        ]
        ours = same[0]["tokens_per_second"] if same else None
        rows.append(
            [
                row["shape"],
                name_of(row),
                f"{ours:.1f}" if ours else "",
                f"{row['tokens_per_second']:.1f}",
                f"{ours / row['tokens_per_second']:.2f}" if ours else "",
            ]
        )
    if rows:
        lines.append(markdown_table(["model", "row", "llama2q", "llama.cpp", "ratio"], rows))
    return "\n".join(lines)


def _kernels(recorder: Recorder) -> str:
    rows = []
    for row in recorder.of("kernels"):
        if "us" not in row:
            continue
        limit = limit_of(recorder, row["limit"])
        work = row["bytes"] if row["limit"] == "read" else row["ops"]
        rate = work / row["us"] * 1e6 if row["us"] else 0.0
        unit = f"{rate / 1e9:.0f} GB/s" if row["limit"] == "read" else f"{rate / 1e12:.0f} TOP/s"
        where = [f"depth {row['depth']:g}"] if row.get("depth") is not None else []
        where += [f"{row['sequences']:g} sequences"] if row.get("sequences", 1) > 1 else []
        rows.append(
            [
                row["shape"],
                f"{row['op']} {row.get('weights') or row.get('kv') or ''}".strip(),
                f"{row['tokens']:g}",
                ", ".join(where),
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['us']:.2f}",
                f"{row['us_p10']:.2f} to {row['us_p90']:.2f}",
                f"{row['serial_us']:.2f}" if "serial_us" in row else "",
                unit,
                f"{100 * rate / limit:.0f} %" if limit else "",
            ]
        )
    if not rows:
        return ""
    head = ["model", "op", "tokens", "where", "MB", "us", "10 % to 90 %", "us, one by one"]
    note = (
        "A launch in a chain of launches over distinct buffers; `one by one` without programmatic "
        "overlap. The share is of the measured limit: reading, or products."
    )
    return note + "\n\n" + markdown_table([*head, "rate", "share"], rows)
