"""How fast this machine does what a conversion consists of, measured in a fraction of a second."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.converter.encode import Quantizers, encode_matrix
from llama2q.converter.lora_merge import merge
from llama2q.format.layout import MatrixSpec

Kind = tuple[str, bool]
"""What the speed of encoding depends on: the stored type in words, and whether it is a table."""

_SAMPLE_SHAPE = (512, 4096)
_TERMS = 2
_READ_BYTES = 4 * 1024 * 1024
_READ_PIECES = 16
_READ_SECONDS = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What was measured.

    Attributes
    ----------
    weights : dict of Kind to float
        Weights that all threads together encode in a second.
    merged_terms : float
        Products of an adapter that all threads together add to weights in a second.
    sha256, md5, crc32, copy : float
        Bytes that one thread hashes, or copies to fresh memory, in a second.
    read : float
        Bytes that come in a second from the largest source, wherever it lies: disk or memory.
    """

    weights: dict[Kind, float]
    merged_terms: float
    sha256: float
    md5: float
    crc32: float
    copy: float
    read: float


def kind_of(matrix: MatrixSpec) -> Kind:
    """Return what the speed of encoding a matrix depends on."""
    return str(matrix.stored), matrix.is_table


def probe(
    matrices: Iterable[MatrixSpec],
    dtype: str,
    largest: Path,
    quantizers: Quantizers,
    n_threads: int | None,
    method: str = "rtn",
) -> Rates:
    """Measure on weights of the checkpoint's dtype; takes some 0.3 seconds.

    Parameters
    ----------
    matrices : iterable of MatrixSpec
        Of the model.
    dtype : {"f32", "f16", "bf16"}
        Of the checkpoint.
    largest : Path
        The largest source file: pieces of it are read.
    quantizers : Quantizers
    n_threads : int or None
    method : str
        The recipe's.
    """
    sample = _sample(dtype)
    data = sample.data.cast("B")
    factors = np.ones((sample.shape[0], _TERMS)), np.ones((_TERMS, sample.shape[1]))
    threads = n_threads or _core.default_threads()
    weights = {}
    for kind, matrix in {kind_of(matrix): matrix for matrix in matrices}.items():
        rows, cols = sample.shape
        small = MatrixSpec(matrix.name, rows, cols, matrix.stored, matrix.sources[:1])

        def encode(small: MatrixSpec = small) -> None:
            parts = encode_matrix(
                small, lambda name: sample, lambda name: None, quantizers, n_threads, method
            )
            for chunks in parts:
                for _ in chunks:
                    pass

        weights[kind] = sample.size / _seconds(encode)
    return Rates(
        weights=weights,
        merged_terms=_TERMS
        * sample.size
        / _seconds(lambda: merge(sample, factors, "f32", threads)),
        sha256=data.nbytes / _seconds(lambda: hashlib.sha256(data)),
        md5=data.nbytes / _seconds(lambda: hashlib.md5(data, usedforsecurity=False)),
        crc32=data.nbytes / _seconds(lambda: zlib.crc32(data)),
        copy=data.nbytes / _seconds(data.tobytes),
        read=_read_rate(largest),
    )


def _sample(dtype: str) -> NDArray[Any]:
    """Return weights like a model's; the values do not change the speed."""
    values = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32)
    sample = np.resize(values * np.float32(0.02), _SAMPLE_SHAPE)
    if dtype == "bf16":
        return (sample.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return sample.astype(np.float16) if dtype == "f16" else sample


def _seconds(run: Callable[[], object]) -> float:
    """Return the time of the faster of two runs: the first one finds caches and threads cold."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)


def _read_rate(path: Path) -> float:
    """Read pieces from all over a file, for a limited time."""
    size = path.stat().st_size
    buffer = bytearray(_READ_BYTES)
    n_bytes = 0
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        for piece in range(_READ_PIECES):
            file.seek(size * piece // _READ_PIECES)
            n_bytes += file.readinto(buffer) or 0
            if time.perf_counter() - start > _READ_SECONDS:
                break
    return n_bytes / max(time.perf_counter() - start, 1e-9)
