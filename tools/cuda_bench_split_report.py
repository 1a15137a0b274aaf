"""Sections of bench_cuda.py's report about models that device and host share."""

from __future__ import annotations

from cuda_bench_run import Recorder, Row
from markdown_table import markdown_table


def split_section(recorder: Recorder) -> str:
    """Compare measured steps with the formula of DESIGN.md, section 7.

    t = B_gpu / rate_gpu + B_cpu / rate_cpu + 2 t_hop. The rates are those that the whole model
    reaches on the device alone and on the host alone, in this run.
    """
    rows = []
    for row in recorder.of("split", kind="decode"):
        if not row.get("tokens_per_second"):
            continue
        load = _load(recorder, row)
        if load is None:
            continue
        memory = _first(recorder.of("split", kind="memory", shape=row["shape"],
                                    memory=row["memory"]))  # fmt: skip
        predicted = predict(recorder, row, load)
        rows.append(
            [
                row["shape"],
                row["memory"],
                f"{load['device_layers']} of {load['n_layers']}",
                f"{row.get('depth', 0)}",
                f"{row['tokens_per_second']:.2f}",
                f"{1 / predicted:.2f}" if predicted else "",
                f"{100 * predicted / row['seconds']:.0f} %" if predicted else "",
                _number(load.get("predicted_tokens_per_second")),
                f"{memory['peak_bytes'] / 1e9:.2f}" if memory else "",
                f"{memory['planned_bytes'] / 1e9:.2f}" if memory else "",
                f"{100 * memory['over_plan']:+.1f} %" if memory and memory["planned_bytes"] else "",
            ]
        )
    for row in recorder.of("split", kind="load"):
        for key in ("error", "skipped"):
            if key in row:
                rows.append([row["shape"], row["memory"], row[key], *[""] * 8])
    if not rows:
        return ""
    head = ["model", "device memory", "layers on it", "depth", "tok/s", "formula", "of it", "plan"]
    return markdown_table([*head, "peak, GB", "planned, GB", "over"], rows)


def predict(recorder: Recorder, row: Row, load: Row) -> float | None:
    """Return the seconds that a step should take by the formula, or None if a rate is missing."""
    if not load["device_layers"]:
        return None
    kv = load["kv_bytes_per_token"] * (row.get("depth", 0) + (row["tokens"] + 1) / 2)
    share = load["device_layers"] / load["n_layers"]
    on_device = load["device_weight_bytes"] + kv * share
    on_host = load["host_weight_bytes"] + kv * (1 - share)
    device = _rate(recorder.of("speed", shape=row["shape"], kind="decode"))
    host = _rate(recorder.of("split", shape=row["shape"], kind="decode", memory="none"))
    if device is None or (on_host and host is None):
        return None
    seconds = float(on_device / device)
    if on_host and host is not None:
        seconds += on_host / host + hops(recorder)
    return seconds


def _number(value: float | None) -> str:
    return f"{value:.2f}" if value else ""


def hops(recorder: Recorder) -> float:
    """Return the seconds of a row's way to the device and back."""
    total = 0.0
    for way in ("to", "from"):
        small = recorder.of("limits", limit=f"copy {way} the device, pinned")
        total += min((row["us"] for row in small), default=0.0) / 1e6
    return total


def _rate(rows: list[Row]) -> float | None:
    """Return bytes per second of decoding one sequence from an empty cache."""
    for row in rows:
        if row.get("depth", 0) == 0 and row.get("sequences", 1) == 1 and row.get("read_bytes"):
            return float(row["read_bytes"] / row["seconds"])
    return None


def _load(recorder: Recorder, row: Row) -> Row | None:
    loads = recorder.of("split", kind="load", shape=row["shape"], memory=row["memory"])
    return _first([load for load in loads if "n_layers" in load])


def _first(rows: list[Row]) -> Row | None:
    return rows[0] if rows else None


def stream_section(recorder: Recorder) -> str:
    """Say from how many tokens on streaming the host's weights to the device pays."""
    skipped = [row["skipped"] for row in recorder.of("stream") if "skipped" in row]
    if skipped:
        return f"Left out: {skipped[0]}."
    seconds: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for row in recorder.of("stream", kind="prefill"):
        if "seconds" in row:
            seconds[row["streamed"]][row["tokens"]] = row["seconds"]
    both = sorted(set(seconds[True]) & set(seconds[False]))
    if not both:
        return ""
    rows = [
        [f"{n}", f"{1e3 * seconds[True][n]:.1f}", f"{1e3 * seconds[False][n]:.1f}"] for n in both
    ]
    faster = [n for n in both if seconds[True][n] < seconds[False][n]]
    result = _chosen(recorder)
    result += (
        f"Streaming is faster from {faster[0]} tokens on." if faster else "It never is faster."
    )
    table = markdown_table(["tokens", "streamed, ms", "on the host, ms"], rows)
    return f"{table}\n\n{result}"


def _chosen(recorder: Recorder) -> str:
    """Say what `stream_prefill="auto"` took for the model that was measured."""
    (measured,) = {(row["shape"], row["memory"]) for row in recorder.of("stream")}
    loads = recorder.of("split", kind="load", shape=measured[0], memory=measured[1])
    chosen = [load["plan"].get("stream_tokens") for load in loads if "plan" in load]
    return f'"auto" takes {chosen[0]} tokens. ' if chosen and chosen[0] else ""
