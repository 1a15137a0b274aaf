"""A `.l2q` file's model as GGUF for bench_peers.py, with the output matrix as llama.cpp has it.

`llama2q export --gguf` keeps the output matrix in Q8_0; in llama.cpp's own Q4_0 files it is in
Q6_K, and `--output q6_k` rounds it to that.

    python3 tools/gguf_file.py MODEL.l2q MODEL.gguf --output q6_k
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import q6_k
from llama2q.errors import ExportError, Llama2qError
from llama2q.export.gguf import Planned, tensors_of, write_gguf
from llama2q.export.gguf_container import Q4_0, Q8_0, GgufTensor, GgufType
from llama2q.export.gguf_metadata import metadata_of
from llama2q.export.output_file import StreamedTensor
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import OUTPUT

_Q6_K = GgufType(q6_k.Q6_K, 18, q6_k.SUPER_BLOCK, q6_k.BLOCK_BYTES)


def export(source: Path, target: Path, output: str = "q8_0") -> None:
    """Write a `.l2q` file's model as GGUF.

    Parameters
    ----------
    source, target : Path
        The second is replaced.
    output : {"q8_0", "q6_k"}
        Type of the output matrix.

    Raises
    ------
    Llama2qError
        See `llama2q.export_gguf`.
    """
    with L2qFile(source) as file:
        tensors = tensors_of(file)
        if output == "q6_k":
            tensors = [as_q6_k(t) if t[0].name == OUTPUT else t for t in tensors]
        metadata, _ = metadata_of(file, Q4_0)
        write_gguf(target, metadata, tensors, source=file.path, overwrite=True)


def as_q6_k(planned: Planned) -> Planned:
    """Round a Q8_0 matrix to Q6_K.

    Raises
    ------
    ExportError
        It is of another type, or its rows are not whole blocks of 256.
    """
    entry, tensor = planned
    rows, cols = entry.shape
    if entry.kind != Q8_0 or cols % q6_k.SUPER_BLOCK:
        raise ExportError(
            f"{entry.name} of {cols} columns cannot be Q6_K: it is not Q8_0, or its rows are not "
            f"whole blocks of {q6_k.SUPER_BLOCK}"
        )

    def chunks() -> Iterator[NDArray[Any]]:
        for blocks in tensor.chunks():
            scales = blocks[..., :2].copy().view(np.float16).astype(np.float32)
            values = scales * blocks[..., 2:].copy().view(np.int8)
            yield q6_k.encode(values.reshape(-1, cols))

    n_bytes = _Q6_K.n_bytes(rows, cols)
    return (
        GgufTensor(entry.name, entry.shape, _Q6_K, n_bytes),
        StreamedTensor(entry.name, n_bytes, chunks),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, metavar="MODEL.l2q")
    parser.add_argument("target", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--output", choices=["q8_0", "q6_k"], default="q8_0")
    chosen = parser.parse_args(arguments)
    try:
        export(chosen.source, chosen.target, chosen.output)
    except (Llama2qError, OSError) as error:
        print(f"gguf_file: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
