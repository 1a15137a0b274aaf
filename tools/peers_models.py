"""The models of bench_peers.py: random weights in Llama 2's shapes, and the demo model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import gguf_file
import llama2q
import synthetic_l2q
from make_synthetic import ROOT, read_tokenizer
from synthetic_shapes import SHAPES


@dataclass(frozen=True, slots=True)
class Models:
    """Files of both sides.

    Attributes
    ----------
    ours : Path
        What our users run: int4, nonuniform grid, groups of 64, int8 output.
    same : Path
        int4, uniform grid, groups of 32: the weights of `gguf`, value for value.
    gguf : Path
        Q4_0, embeddings Q8_0, output as asked for.
    mini, mini_gguf : Path
        The demo model, the same weights in both.
    """

    ours: Path
    same: Path
    gguf: Path
    mini: Path
    mini_gguf: Path

    @classmethod
    def ensure(cls, folder: Path, shape_name: str, ours: Path | None, output: str) -> Self:
        """Write what is not there yet (for 7b some minutes and 12 GB the first time)."""
        folder.mkdir(parents=True, exist_ok=True)
        models = cls(
            ours or folder / f"{shape_name}-nonuniform-64.l2q",
            folder / f"{shape_name}-uniform-32.l2q",
            folder / f"{shape_name}-q4_0-{output}.gguf",
            folder / "mini-uniform-32.l2q",
            folder / f"mini-q4_0-{output}.gguf",
        )
        for path, group_size, grid in (
            (models.ours, 64, "nonuniform"),
            (models.same, 32, "uniform"),
        ):
            if not path.exists():
                print(f"writing {path.name}", file=sys.stderr, flush=True)
                shape = SHAPES[shape_name]
                tokenizer = read_tokenizer(shape.vocab_size, None)
                synthetic_l2q.write_l2q(
                    shape.config, tokenizer, path, "int4", group_size, grid, overwrite=False
                )
        if not models.mini.exists():
            source = ROOT / "tests" / "data" / "mini"
            llama2q.convert(
                source, models.mini, quant="int4", group_size=32, grid="uniform", method="rtn"
            )
        for source, target in ((models.same, models.gguf), (models.mini, models.mini_gguf)):
            if not target.exists():
                print(f"writing {target.name}", file=sys.stderr, flush=True)
                gguf_file.export(source, target, output)
        return models
