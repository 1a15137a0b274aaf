"""Make a model with random weights in one of Llama 2's shapes, for tests and benchmarks.

As a `.l2q` file, without a detour:

    python3 tools/make_synthetic.py --shape 7b --quant int4 --group-size 64 -o synthetic-7b.l2q

or in Meta's form, in bf16:

    python3 tools/make_synthetic.py --shape 7b --meta synthetic-7b --shards 1
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import rich.progress
from rich.console import Console

import synthetic_l2q
from llama2q.converter.meta_tensors import shard_slice, split_dim, tensor_shapes
from llama2q.converter.pth_writer import PthWriter
from llama2q.converter.shards import shard_writers
from llama2q.errors import Llama2qError
from synthetic_shapes import SHAPES, SyntheticShape, random_bf16_chunks

ROOT = Path(__file__).resolve().parents[1]
TOKENIZERS = {
    4096: ROOT / "tests" / "data" / "mini" / "tokenizer.model",
    32000: ROOT.parent / "shared" / "checkpoints" / "llama2-tokenizer" / "tokenizer.model",
}
"""Where a tokenizer with so many pieces is looked for."""


def write_meta(
    shape: SyntheticShape,
    tokenizer_bytes: bytes,
    folder: Path,
    n_shards: int,
    seed: int,
    *,
    sparse: bool = False,
) -> None:
    """Write a checkpoint in Meta's form, bf16; the same model for any number of shards.

    Parameters
    ----------
    shape : SyntheticShape
        Shape of the model.
    tokenizer_bytes : bytes
        SentencePiece model with `shape.vocab_size` pieces.
    folder : Path
        Folder to write into; made if it is missing.
    n_shards : int
        Number of consolidated.NN.pth files.
    seed : int
        Seed of the weights.
    sparse : bool
        Leave holes for the matrices, which then are zero and take no room on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = tensor_shapes(shape.config)
    with ExitStack() as stack:
        writers = shard_writers(stack, folder, shapes, n_shards, "bf16")
        for name in rich.progress.track(
            shapes, f"{folder.name}: tensors", console=Console(stderr=True)
        ):
            if sparse and split_dim(name) is not None:
                for writer in writers:
                    writer.skip(name)
            else:
                _write_tensor(writers, name, shapes[name], seed)
    (folder / "params.json").write_text(json.dumps(shape.params), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer_bytes)


def _write_tensor(writers: list[PthWriter], name: str, shape: tuple[int, ...], seed: int) -> None:
    """Generate a tensor once, chunk by chunk, and give each shard the rows or columns it holds."""
    parts = [shard_slice(name, shape, index, len(writers)) for index in range(len(writers))]
    first = 0
    for chunk in random_bf16_chunks(name, shape, seed):
        end = first + len(chunk)
        for writer, (rows, *columns) in zip(writers, parts, strict=True):
            low, high, _ = rows.indices(shape[0])
            low, high = max(low, first), min(high, end)
            if low < high:
                writer.write(name, chunk[(slice(low - first, high - first), *columns)])
        first = end


def read_tokenizer(vocab_size: int, path: Path | None) -> bytes:
    """Read the tokenizer given, or the one known for this vocabulary."""
    chosen = path or TOKENIZERS.get(vocab_size)
    if chosen is None or not chosen.is_file():
        raise FileNotFoundError(
            f"no tokenizer with {vocab_size} pieces"
            + (f" at {chosen}" if chosen is not None else "")
            + "; give one with --tokenizer PATH"
        )
    return chosen.read_bytes()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES], required=True)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", type=Path, metavar="FILE", help="write this .l2q file")
    target.add_argument("--meta", type=Path, metavar="DIR", help="write Meta's form into DIR")
    parser.add_argument("--layers", type=int, metavar="N", help="fewer layers than the shape has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="SentencePiece model")
    l2q = parser.add_argument_group("for -o")
    l2q.add_argument("--quant", choices=["int4", "int8", "none"], default="int4")
    l2q.add_argument("--group-size", type=int, choices=[32, 64, 128], default=64)
    l2q.add_argument("--grid", choices=["nonuniform", "uniform"], default="nonuniform")
    meta = parser.add_argument_group("for --meta")
    meta.add_argument("--shards", type=int, default=1, metavar="N", help="number of files")
    meta.add_argument("--sparse", action="store_true", help="holes (zeros) instead of matrices")
    chosen = parser.parse_args(arguments)
    if chosen.layers is not None and chosen.layers < 1:
        parser.error(f"--layers is {chosen.layers}; expected at least 1")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    shape = SHAPES[chosen.shape]
    if chosen.layers is not None:
        shape = replace(shape, n_layers=chosen.layers)
    try:
        tokenizer_bytes = read_tokenizer(shape.vocab_size, chosen.tokenizer)
        if chosen.meta is not None:
            write_meta(
                shape, tokenizer_bytes, chosen.meta, chosen.shards, chosen.seed,
                sparse=chosen.sparse,
            )  # fmt: skip
        else:
            synthetic_l2q.write_l2q(
                shape.config, tokenizer_bytes, chosen.output, chosen.quant, chosen.group_size,
                chosen.grid, chosen.seed,
            )  # fmt: skip
    except (Llama2qError, OSError) as error:
        print(f"make_synthetic: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
