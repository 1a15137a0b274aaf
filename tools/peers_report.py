"""Tables, JSON and plot of bench_peers.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench_peers import Result

BEGIN, END = "<!-- bench_peers: begin -->", "<!-- bench_peers: end -->"


def median(values: Sequence[float]) -> float:
    """Return the middle value."""
    return statistics.median(values)


def best_setting(result: Result) -> str:
    """Return the peer's setting with the highest median."""
    return max(result.peer, key=lambda name: median(result.peer[name]))


def short_line(result: Result) -> str:
    """Say how a row stands, for progress."""
    setting = [*result.peer][-1]
    ours = ", ".join(f"{kv} {median(values):.2f}" for kv, values in result.ours.items())
    return (
        f"{result.tier}, {result.job.name}: llama2q {ours}; llama.cpp ({setting}) "
        f"{median(result.peer[setting]):.2f} tok/s"
    )


def line_of(result: Result) -> dict[str, Any]:
    """Return a row of the report."""
    setting = best_setting(result)
    peer = median(result.peer[setting])
    ours = {kv: median(values) for kv, values in result.ours.items()}
    return {
        "tier": result.tier,
        "file": result.model,
        "row": result.job.name,
        **asdict(result.job),
        "ours": ours,
        "peer": peer,
        "peer_setting": setting,
        "ratio": {kv: value / peer for kv, value in ours.items()},
        "limit": {kv: bound for kv, (bound, _) in result.share.items()},
        "share_of_limit": {kv: share for kv, (_, share) in result.share.items()},
        "samples": {"ours": result.ours, "peer": result.peer},
    }


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    machine: dict[str, str]
    limits: dict[str, dict[str, float]]
    rows: list[dict[str, Any]]
    loads: list[dict[str, Any]]
    fairness: dict[str, float]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return everything as Markdown, which reads as plain text too."""
        facts = "; ".join(f"{key} {value}" for key, value in self.machine.items())
        blocks = [f"Machine: {facts}.", self._limits(), self._rows(), self._loads()]
        check = self.fairness
        blocks.append(
            f"Same weights on both sides: the demo model as Q4_0 and as int4 (uniform grid, groups "
            f"of 32) over {check['tokens']} tokens: the likeliest token is the same at "
            f"{100 * check['same_argmax']:.0f} % of the positions, KL divergence "
            f"{check['kl_divergence']:.1e} nats, perplexity {check['perplexity_ours']:.2f} "
            f"(llama.cpp: {check['perplexity_peer']:.2f})."
        )
        blocks.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(blocks)

    def _limits(self) -> str:
        rows = [
            [
                tier,
                f"{rates['read_bytes_per_second'] / 1e9:.1f}",
                f"{rates['int8_ops_per_second'] / 1e9:.0f}",
            ]
            for tier, rates in self.limits.items()
        ]
        return _markdown(["limits", "read GB/s", "int8 GOPS"], rows)

    def _rows(self) -> str:
        rows = []
        for line in self.rows:
            kinds = [kv for kv in ("f16", "int8") if kv in line["ours"]]
            first = kinds[0]
            share = line["share_of_limit"][first]
            rows.append(
                [
                    f"{line['tier']}",
                    line["row"] + (", same weights" if "uniform-32" in line["file"] else ""),
                    f"{line['ours']['f16']:.2f}" if "f16" in kinds else "",
                    f"{line['ours']['int8']:.2f}" if "int8" in kinds else "",
                    f"{line['peer']:.2f}",
                    line["peer_setting"],
                    f"{line['ratio']['f16']:.2f}" if "f16" in kinds else "",
                    f"{line['ratio']['int8']:.2f}" if "int8" in kinds else "",
                    f"{100 * share:.0f} % of {line['limit'][first]}" if share is not None else "",
                ]
            )
        head = ["tier", "row", "llama2q", "int8 KV", "llama.cpp", "its setting", "ratio"]
        return _markdown([*head, "ratio, int8 KV", "llama2q's share of the limit"], rows)

    def _loads(self) -> str:
        rows = [
            [
                load["side"],
                load["pages"],
                f"{load['ready_seconds']:.2f}",
                f"{load['first_token_seconds']:.2f}",
                f"{load['anonymous_bytes'] / 1e6:.0f}",
                f"{load['mapped_bytes'] / 1e6:.0f}",
            ]
            for load in self.loads
        ]
        head = ["load", "pages", "ready, s", "first token, s", "own memory, MB", "mapped, MB"]
        return _markdown(head, rows)

    def write_into(self, path: Path) -> None:
        """Put the table between the two marks of a Markdown file.

        Raises
        ------
        ValueError
            If the marks are not there.
        """
        text = path.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            raise ValueError(f"{path} needs one line {BEGIN} and one {END}")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        path.write_text(f"{before}{BEGIN}\n{self.table()}\n{END}{after}", encoding="utf-8")

    def plot(self, path: Path) -> str:
        """Draw the ratios as bars, if matplotlib is there; return what was done."""
        try:
            from matplotlib import pyplot
        except ImportError:
            return "no plot: matplotlib is not installed"
        names = [f"{line['row']} ({line['tier']})" for line in self.rows]
        ratios = [max(line["ratio"].values()) for line in self.rows]
        figure, axes = pyplot.subplots(figsize=(8, 0.3 * len(names) + 1))
        axes.barh(names[::-1], ratios[::-1])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xlabel("tokens per second over llama.cpp's")
        figure.tight_layout()
        figure.savefig(path)
        return f"plot: {path}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a table whose source lines up too; numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(cells, widths, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])
