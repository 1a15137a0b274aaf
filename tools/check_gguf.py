"""Holds exported GGUF files to llama.cpp: it loads them, finds the same tokens and agrees.

Converts a checkpoint in every recipe whose weights GGUF can hold, exports each and compares
llama.cpp's predictions with ours: mean KL divergence over windows of a text. Both hold the same
weights; what is left is how activations and the KV cache are rounded. So beside it stand three more
figures of the same weights: how far either is from float32 activations, and how far our own engine
moves when nothing but the type of its KV cache changes, from f16 to f32: any small change makes
other activations round up or down. Needs the package llama-cpp-python.

    python3 tools/check_gguf.py tests/data/mini --text wikitext-2-test.txt --prose
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import llama2q
from llama2q import _core
from llama2q.converter.encode import encode_matrix
from llama2q.evaluate.divergence import Estimate, score_rows
from llama2q.export.rows import code_rows, scale_rows
from llama2q.format import L2qFile, Recipe, Writer
from llama2q.format.layout import TOKENIZER, MatrixSpec, TensorSpec
from llama2q.format.metadata import Metadata
from llama2q.format.writer import Chunks, write_model
from llama2q.quant import grid_values
from machine import describe_machine
from markdown_table import markdown_table
from wikitext import as_prose

Array = NDArray[Any]
Logits = Callable[[Sequence[int]], Array]
"""Tokens of one text -> float32, (n_tokens, vocab_size)."""

RECIPES: tuple[dict[str, Any], ...] = (
    {"quant": "none"},
    *(
        {"quant": "int4", "group_size": size, "grid": grid}
        for grid in ("uniform", "nonuniform")
        for size in (32, 64, 128)
    ),
    *({"quant": "int8", "group_size": size} for size in (32, 64, 128)),
)
KV: Literal["f16"] = "f16"
GOAL_AT_32 = 0.0002
GOAL_ELSEWHERE = 2.0
"""Times what int8 activations cost."""


@dataclass(frozen=True, slots=True)
class Row:
    """Mean KL divergences, in nats; `dense` has the same weights and float32 activations.

    Attributes
    ----------
    recipe : str
    ours_theirs : Estimate
        Of llama.cpp from ours.
    ours_f32 : Estimate
        Of ours with a KV cache in f32 from ours.
    dense_ours, dense_theirs : Estimate or None
        Of ours and of llama.cpp from `dense`; None where there are no int8 activations.
    same_top : float
        Share of the tokens at which both find the same token likeliest.
    same_tokens : bool
        Whether llama.cpp cuts the text into the same tokens.
    """

    recipe: str
    ours_theirs: Estimate
    ours_f32: Estimate
    dense_ours: Estimate | None
    dense_theirs: Estimate | None
    same_top: float
    same_tokens: bool

    def fault(self) -> str | None:
        """Say which goal is missed, if any."""
        if not self.same_tokens:
            return f"{self.recipe}: llama.cpp finds other tokens in the text"
        found = self.ours_theirs.value
        goal = GOAL_AT_32
        if self.dense_ours is not None and " 32" not in self.recipe:
            goal = GOAL_ELSEWHERE * self.dense_ours.value
        return None if found <= goal else f"{self.recipe}: {found:.6f}; the goal is {goal:.6f}"


def dense_copy(source: Path, target: Path) -> None:
    """Write the same weights as float32."""
    with L2qFile(source) as file:
        by_source = {
            name: matrix
            for matrix in map(file.matrix, file.recipe.tensors)
            for name in matrix.sources
        }

        def read(name: str) -> Array:
            return np.concatenate(list(_values(file, by_source[name], name)))

        def encode(matrix: MatrixSpec) -> list[Chunks]:
            return encode_matrix(matrix, read, lambda name: None, _core)

        def norm(spec: TensorSpec) -> Array:
            return file.array(spec.name)

        recipe = Recipe.for_model(file.config, "none", dtype="f32")
        metadata = Metadata(file.config, recipe, file.template)
        with Writer(target, metadata, file.array(TOKENIZER).tobytes(), overwrite=True) as writer:
            write_model(writer, encode, norm)
            writer.finish()


def _values(file: L2qFile, matrix: MatrixSpec, source: str) -> Iterator[Array]:
    stored = matrix.stored
    grid = None if stored.grid is None else grid_values(stored.grid).astype(np.float32)
    parts = zip(code_rows(file, matrix, source), scale_rows(file, matrix, source), strict=True)
    for codes, scales in parts:
        wide = np.repeat(scales.astype(np.float32), stored.group_size or 1, axis=1)
        values = codes.astype(np.float32) if grid is None else grid[codes]
        yield values * wide[:, : matrix.cols]


def open_theirs(path: Path, n_ctx: int, *, flash: bool) -> Any:
    """Load a GGUF file in llama.cpp: f16 KV cache, logits of every token, one thread."""
    import llama_cpp

    return llama_cpp.Llama(
        str(path),
        n_ctx=n_ctx,
        n_batch=n_ctx,
        n_ubatch=n_ctx,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        flash_attn=flash,
        verbose=False,
    )


def logits_of(model: Any) -> Logits:
    """Return a function that computes llama.cpp's logits of a window."""

    def compute(tokens: Sequence[int]) -> Array:
        model.reset()
        model.eval(list(tokens))
        return np.array(model.scores[: len(tokens)], np.float32)

    return compute


def all_logits(compute: Logits, windows: Sequence[Sequence[int]]) -> Array:
    """Return the logits of all tokens but the last of each window."""
    return np.concatenate([compute(tokens[:-1]) for tokens in windows])


def measure(
    checkpoint: Path, options: dict[str, Any], text: str, args: argparse.Namespace, work: Path
) -> Row:
    """Convert, export and compare one recipe."""
    path, gguf, dense = (work / name for name in ("x.l2q", "x.gguf", "dense.l2q"))
    method = "rtn" if options["quant"] == "int4" else None
    llama2q.convert(checkpoint, path, **options, method=method, overwrite=True, resume=False)
    llama2q.export_gguf(path, gguf, overwrite=True)
    with llama2q.load(path, kv_dtype=KV, n_threads=1) as llm:
        tokens = llm.tokenizer.encode(text)
        count = max(1, args.tokens // (args.ctx - 1))
        windows = [tokens[i * args.ctx : (i + 1) * args.ctx] for i in range(count)]
        if len(windows[-1]) < args.ctx:
            raise SystemExit(f"check_gguf: the text has {len(tokens)} tokens, too few")
        for window in windows:
            window[0] = llm.tokenizer.bos_id
        ours = all_logits(llm.logits, windows)
    with llama2q.load(path, kv_dtype="f32", n_threads=1) as llm:
        ours_f32 = all_logits(llm.logits, windows)
    targets = [token for window in windows for token in window[1:]]
    model = open_theirs(gguf, args.ctx, flash=args.flash)
    theirs = all_logits(logits_of(model), windows)
    same_tokens = model.tokenize(text.encode(), add_bos=True, special=False) == tokens
    model.close()

    def divergence(a: Array, b: Array) -> Estimate:
        return Estimate.of_mean(score_rows(a, b, targets).kl, len(windows))

    dense_ours = dense_theirs = None
    if options["quant"] != "none":
        dense_copy(path, dense)
        with llama2q.load(dense, kv_dtype=KV, n_threads=1) as llm:
            exact = all_logits(llm.logits, windows)
        dense_ours, dense_theirs = divergence(exact, ours), divergence(exact, theirs)
    return Row(
        recipe=" ".join(map(str, options.values())),
        ours_theirs=divergence(ours, theirs),
        ours_f32=divergence(ours, ours_f32),
        dense_ours=dense_ours,
        dense_theirs=dense_theirs,
        same_top=float((ours.argmax(1) == theirs.argmax(1)).mean()),
        same_tokens=same_tokens,
    )


def cells(row: Row) -> list[str]:
    def figure(estimate: Estimate | None) -> str:
        if estimate is None:
            return "-"
        error = estimate.standard_error
        return f"{estimate.value:.6f}" + ("" if error is None else f" ± {error:.6f}")

    return [
        row.recipe,
        figure(row.ours_theirs),
        figure(row.ours_f32),
        figure(row.dense_ours),
        figure(row.dense_theirs),
        f"{100 * row.same_top:.2f}",
    ]


HEAD = [
    "recipe", "llama.cpp from ours", "ours, KV f32, from ours", "ours from dense",
    "llama.cpp from dense", "same top, %",
]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prose", action="store_true", help="undo WikiText's tokenized form")
    parser.add_argument("--tokens", type=int, default=2044)
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a window")
    parser.add_argument("--flash", action="store_true", help="flash attention in llama.cpp")
    parser.add_argument("--only", default="", help="recipes whose name holds this")
    parser.add_argument("--json", type=Path, help="write all figures")
    args = parser.parse_args(arguments)
    text = args.text.read_text(encoding="utf-8")
    text = " ".join((as_prose(text) if args.prose else text).split())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for options in RECIPES:
            if args.only in " ".join(map(str, options.values())):
                rows.append(measure(args.checkpoint, options, text, args, Path(folder)))
                print(" | ".join(cells(rows[-1])), file=sys.stderr, flush=True)
    print(markdown_table(HEAD, [cells(row) for row in rows]))
    faults = [fault for fault in (row.fault() for row in rows) if fault is not None]
    if args.json is not None:
        values = {"machine": describe_machine(), "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps({**values, "faults": faults}, indent=2) + "\n")
    for fault in faults:
        print(f"check_gguf: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
