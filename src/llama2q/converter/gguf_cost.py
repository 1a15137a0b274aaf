"""What converting a GGUF file costs: memory and time, foreseen."""

from __future__ import annotations

import time

import numpy as np

from llama2q.converter.costs import OVERHEAD_BYTES, Cost, Work, held_bytes, seconds_of
from llama2q.converter.encode import Quantizers
from llama2q.converter.gguf_checkpoint import GgufCheckpoint
from llama2q.converter.gguf_encode import CHUNK_WEIGHTS, encode_rows
from llama2q.converter.gguf_types import GgmlType
from llama2q.format.layout import MatrixSpec
from llama2q.quant.quant_type import BAND_ROWS

PACKAGE_BYTES = 32 * 1024 * 1024
"""What importing the package gguf adds."""
BYTES_PER_WEIGHT = 48
"""What a thread holds for each weight of its chunk: values and what they are computed from."""

_SAMPLE_COLS = 4096


def gguf_cost(checkpoint: GgufCheckpoint, work: Work, quantizers: Quantizers) -> Cost:
    """Return the cost of taking tensors over from a GGUF file, or of rounding them anew.

    As `rtn_cost`, but for what `GgufEncoder` does: each thread holds a chunk of rows in several
    forms, and how long that takes depends on the types of both files. It is measured on zeros.
    """
    seconds: dict[tuple[str, str, bool], float] = {}
    encode = 0.0
    is_rounded = False
    for matrix in work.matrices:
        for name in matrix.sources:
            kind = checkpoint.tensor(name).type
            is_rounded |= not kind.kept
            key = kind.name, str(matrix.stored), matrix.is_table
            if key not in seconds:
                seconds[key] = _seconds_per_weight(matrix, kind, quantizers)
            encode += matrix.rows * matrix.cols * seconds[key]
    n_threads = min(work.n_threads, work.n_cpus)
    chunks = work.n_threads * CHUNK_WEIGHTS * BYTES_PER_WEIGHT
    memory = OVERHEAD_BYTES + max(held_bytes(work)) + chunks + is_rounded * PACKAGE_BYTES
    return Cost(memory, seconds_of(work, encode / n_threads))


def _seconds_per_weight(matrix: MatrixSpec, kind: GgmlType, quantizers: Quantizers) -> float:
    rows = CHUNK_WEIGHTS // _SAMPLE_COLS // BAND_ROWS * BAND_ROWS
    small = MatrixSpec(matrix.name, rows, _SAMPLE_COLS, matrix.stored, matrix.sources[:1])
    sample = np.zeros((rows, _SAMPLE_COLS // kind.block * kind.block_bytes), np.uint8)
    best = float("inf")
    for _ in range(2):  # the first run finds caches cold
        start = time.perf_counter()
        encode_rows(small, sample, kind, quantizers)
        best = min(best, time.perf_counter() - start)
    return best / (rows * _SAMPLE_COLS)
