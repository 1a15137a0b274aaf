"""Tables, JSON and plot of bench_peers.py."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markdown_table import markdown_table, marks, write_between

if TYPE_CHECKING:
    from bench_peers import Result

BEGIN, END = marks("bench_peers")


def short_line(result: Result, setting: str) -> str:
    """Say how a row stands, for progress."""
    rates = {name: statistics.median(samples) for name, samples in result.turns[setting].items()}
    peer = rates.pop("peer")
    ours = ", ".join(f"{kv} {rate:.2f}" for kv, rate in rates.items())
    return (
        f"{result.tier}, {result.job.name}: llama2q {ours}; llama.cpp ({setting}) {peer:.2f} tok/s"
    )


def line_of(result: Result) -> dict[str, Any]:
    """Return a row of the report: the turns with the peer's best setting, and their medians.

    A ratio is the median of the ratios turn by turn. The spread is the widest range of a side's
    samples, over their median.
    """
    medians = {name: statistics.median(turns["peer"]) for name, turns in result.turns.items()}
    setting = max(medians, key=medians.__getitem__)
    turns = result.turns[setting]
    peer = turns["peer"]
    ours = {kv: samples for kv, samples in turns.items() if kv != "peer"}
    ratios = {
        kv: statistics.median(a / b for a, b in zip(samples, peer, strict=True))
        for kv, samples in ours.items()
    }
    rates = {kv: statistics.median(samples) for kv, samples in ours.items()}
    shares = {
        kv: None if bound is None else bound * rates[kv] / result.job.rate(1.0)
        for kv, (_, bound) in result.bounds.items()
    }
    return {
        "tier": result.tier,
        "file": result.model,
        "row": result.job.name,
        **asdict(result.job),
        "ours": rates,
        "peer": medians[setting],
        "peer_setting": setting,
        "ratio": ratios,
        "spread": max((max(s) - min(s)) / statistics.median(s) for s in turns.values()),
        "limit": {kv: limit for kv, (limit, _) in result.bounds.items()},
        "share_of_limit": shares,
        "turns": result.turns,
    }


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    machine: dict[str, str]
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    fairness: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return everything as Markdown, which reads as plain text too."""
        facts = "; ".join(f"{key} {value}" for key, value in self.machine.items())
        blocks = [f"Machine: {facts}."]
        if self.limits:
            blocks.append(self._limits())
        if self.rows:
            blocks.append(self._rows())
        if self.loads:
            blocks.append(self._loads())
        if self.fairness:
            blocks.append(self._fairness())
        blocks.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(blocks)

    def _fairness(self) -> str:
        check = self.fairness
        return (
            f"Same weights on both sides: the demo model as Q4_0 and as int4 (uniform grid, groups "
            f"of 32) over {check['tokens']} tokens: the likeliest token is the same at "
            f"{100 * check['same_argmax']:.0f} % of the positions, KL divergence "
            f"{check['kl_divergence']:.1e} nats, perplexity {check['perplexity_ours']:.2f} "
            f"(llama.cpp: {check['perplexity_peer']:.2f})."
        )

    def _limits(self) -> str:
        rows = [
            [
                tier,
                f"{rates['read_bytes_per_second'] / 1e9:.1f}",
                f"{rates['int8_ops_per_second'] / 1e9:.0f}",
            ]
            for tier, rates in self.limits.items()
        ]
        return markdown_table(["limits", "read GB/s", "int8 GOPS"], rows)

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
                    f"{100 * line['spread']:.0f} %",
                ]
            )
        head = ["tier", "row", "llama2q", "int8 KV", "llama.cpp", "its setting", "ratio"]
        return markdown_table(
            [*head, "ratio, int8 KV", "llama2q's share of the limit", "spread"], rows
        )

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
        return markdown_table(head, rows)

    def write_into(self, path: Path) -> None:
        """Put the table between the two marks of a Markdown file.

        Raises
        ------
        ValueError
            If the marks are not there.
        """
        write_between(path, "bench_peers", self.table())

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
