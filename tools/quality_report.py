"""Table, JSON and plot of quality.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama2q import Comparison
from llama2q.evaluate.divergence import Estimate
from markdown_table import markdown_table, write_between


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One candidate.

    Attributes
    ----------
    name : str
    series : str
        What joins it with others in the plot; "" where it is not drawn.
    result : Comparison
    types : str
        The types of its matrices one by one, where its name does not tell; else "".
    """

    name: str
    series: str
    result: Comparison
    types: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON; the files were temporary, so their paths are left out."""
        values = self.result.to_dict()
        for side in ("a", "b"):
            del values[side]["path"]
        return {"name": self.name, "series": self.series, "types": self.types, **values}

    def cells(self) -> list[str]:
        """Return the row of the table."""
        result = self.result
        kl = result.kl_percentiles
        return [
            self.name,
            result.b.kv_dtype,
            f"{result.b.bits_per_weight:.3f}",
            f"{result.b.file_bytes / 1e6:.1f}",
            _pair(result.kl_mean, 6),
            f"{kl['50']:.6f}",
            f"{kl['99']:.5f}",
            f"{kl['99.9']:.5f}",
            f"{kl['100']:.4f}",
            _pair(result.same_top, 2, 100),
            _pair(result.delta_p_mean, 3, 100),
            _pair(result.delta_p_rms, 2, 100),
            _pair(result.perplexity_b, 3),
            _pair(result.perplexity_ratio, 5),
        ]


HEAD = [
    "type", "KV", "bits", "file, MB", "KL mean", "median", "99 %", "99.9 %", "max",
    "same top, %", "delta p, %", "rms delta p, %", "perplexity", "ratio",
]  # fmt: skip

FEW_BITS = 5.0
"""The second half of the plot shows types of at most so many bits."""
YARDSTICK = "llama.cpp Q4_K_M"
"""The row that others are compared with, if it is there."""


@dataclass(slots=True)
class QualityReport:
    """A whole run."""

    machine: dict[str, str]
    checkpoint: str
    text: str
    text_sha256: str
    rows: list[QualityRow] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "machine": self.machine,
            "checkpoint": self.checkpoint,
            "text": self.text,
            "text_sha256": self.text_sha256,
            "seconds": self.seconds,
            "rows": [row.to_dict() for row in self.rows],
        }

    def table(self) -> str:
        """Return everything as Markdown, which reads as plain text too."""
        facts = "; ".join(f"{key} {value}" for key, value in self.machine.items())
        blocks = [f"Machine: {facts}."]
        if self.rows:
            result = self.rows[0].result
            blocks.append(
                f"Checkpoint {self.checkpoint} as {result.a.type} with a KV cache in "
                f"{result.a.kv_dtype}: perplexity {_pair(result.perplexity_a, 3)}. Text: "
                f"{self.text}; {result.n_tokens} tokens scored in {result.n_windows} windows of "
                f"{result.window} (protocol {result.protocol}). Bits are those of the layers' "
                "matrices, KL divergence from the unquantized model is in nats, ± is one standard "
                "error over the windows."
            )
            blocks.append(markdown_table(HEAD, [row.cells() for row in self.rows]))
            blocks += self._about_peers()
        return "\n\n".join(blocks)

    def _about_peers(self) -> list[str]:
        """Say what the matrices of another program's files are, and compare with one of them."""
        types = [f"- {row.name}: {row.types}" for row in self.rows if row.types]
        if not types:
            return []
        blocks = ["\n".join(["Matrices of the layers, and the others:", "", *types])]
        means: dict[str, float] = {}
        for row in self.rows:
            if row.series:  # of several KV caches the first, the reference's own
                means.setdefault(row.name, row.result.kl_mean.value)
        if YARDSTICK in means:
            ratios = [f"{name} {mean / means[YARDSTICK]:.3f}" for name, mean in means.items()]
            blocks.append(f"Mean KL divergence over that of {YARDSTICK}: {'; '.join(ratios)}.")
        return blocks

    def write_into(self, path: Path) -> None:
        """Put the table between the two marks of its checkpoint in a Markdown file."""
        write_between(path, f"quality {self.checkpoint}", self.table())

    def plot(self, path: Path) -> str:
        """Draw KL divergence over bits, if matplotlib is there; return what was done.

        Once for all types, and once for those of few bits.
        """
        try:
            from matplotlib import pyplot
        except ImportError:
            return "no plot: matplotlib is not installed"
        pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "quality"})
        figure, (whole, part) = pyplot.subplots(1, 2, figsize=(13, 5.5))
        for axes, most in ((whole, math.inf), (part, FEW_BITS)):
            self._draw(axes, most)
        whole.set_ylabel("mean KL divergence, nats a token")
        whole.legend()
        figure.suptitle(f"{self.checkpoint}, {self.text}")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)
        return f"plot: {path}"

    def _draw(self, axes: Any, most: float) -> None:
        """Draw the points of at most so many bits; another program's are named, not joined."""
        named = {row.series for row in self.rows if row.types}
        for series, points in self.series().items():
            few = [point for point in points if point[0] <= most]
            bits, means, errors = zip(*few, strict=True) if few else ((), (), ())
            line = "none" if series in named else "-"
            axes.errorbar(bits, means, errors, marker="o", ls=line, capsize=3, label=series)
        for row in self.rows:
            at = row.result.b.bits_per_weight, row.result.kl_mean.value
            name = row.name.removeprefix(f"{row.series} ")
            if row.series in named and " " not in name and at[0] <= most:
                axes.annotate(name, at, xytext=(6, 2), textcoords="offset points", fontsize=8)
        axes.margins(x=0.12)
        axes.set_yscale("log")
        axes.set_xlabel("bits per weight of the layers' matrices")
        axes.grid(True, which="both", alpha=0.3)

    def series(self) -> dict[str, list[tuple[float, float, float]]]:
        """Return (bits, mean KL divergence, its error) of what is drawn, by series.

        Rows with another KV cache than the reference's are left out.
        """
        found: dict[str, list[tuple[float, float, float]]] = {}
        for row in self.rows:
            result, kl = row.result, row.result.kl_mean
            if row.series and result.b.kv_dtype == result.a.kv_dtype:
                point = (result.b.bits_per_weight, kl.value, kl.standard_error or 0.0)
                found.setdefault(row.series, []).append(point)
        return {series: sorted(points) for series, points in found.items()}


def _pair(estimate: Estimate, digits: int, factor: float = 1.0) -> str:
    text = f"{factor * estimate.value:.{digits}f}"
    if estimate.standard_error is not None:
        text += f" ± {factor * estimate.standard_error:.{digits}f}"
    return text
