"""Splitting a checkpoint into shards by Meta's rules."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.meta_tensors import Shape, shard_shape, shard_slice
from llama2q.converter.pth_writer import PthWriter
from llama2q.errors import InvalidArgumentError

MAX_SHARDS = 100


def shard_writers(
    stack: ExitStack, folder: Path, shapes: dict[str, Shape], n_shards: int, dtype: str
) -> list[PthWriter]:
    """Create `consolidated.00.pth` and so on, all open at once.

    Parameters
    ----------
    stack : ExitStack
        Closes the writers.
    folder : Path
        Where the files go.
    shapes : dict
        Tensor name -> shape of the merged tensor.
    n_shards : int
        Number of files, at most `MAX_SHARDS`.
    dtype : str
        "f32", "f16" or "bf16".

    Raises
    ------
    InvalidArgumentError
        A tensor cannot be split into so many shards.
    """
    if not 1 <= n_shards <= MAX_SHARDS:
        raise InvalidArgumentError(f"n_shards is {n_shards}; expected 1 to {MAX_SHARDS}")
    parts = {name: shard_shape(name, shape, n_shards) for name, shape in shapes.items()}
    return [
        stack.enter_context(PthWriter(folder / f"consolidated.{index:02d}.pth", parts, dtype))
        for index in range(n_shards)
    ]


def split(checkpoint: MetaCheckpoint, folder: str | Path, n_shards: int) -> None:
    """Write a checkpoint again in another number of shards.

    Parameters
    ----------
    checkpoint : MetaCheckpoint
        The checkpoint, in any number of shards.
    folder : str or Path
        An existing folder; the weights, params.json, tokenizer.model and the licences go into it.
    n_shards : int
        Number of files.

    Raises
    ------
    InvalidArgumentError
        A tensor cannot be split into so many shards.
    """
    target = Path(folder)
    if target.resolve() == checkpoint.folder:
        raise InvalidArgumentError(f"{target} is the checkpoint itself; give another folder")
    with ExitStack() as stack:
        writers = shard_writers(stack, target, checkpoint.shapes, n_shards, checkpoint.dtype)
        for name, shape in checkpoint.shapes.items():
            array = checkpoint.read(name)
            for index, writer in enumerate(writers):
                writer.write(name, array[shard_slice(name, shape, index, n_shards)])
            del array
            checkpoint.release(name)
    shutil.copyfile(checkpoint.params_path, target / "params.json")
    (target / "tokenizer.model").write_bytes(checkpoint.tokenizer_bytes)
    for file_name, text in checkpoint.licences.items():
        (target / file_name).write_text(text, encoding="utf-8", newline="")
