"""What the methods of a conversion cost: memory and time, foreseen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from llama2q.converter.forms import Checkpoint
from llama2q.converter.probe import Rates, kind_of
from llama2q.format.layout import MatrixSpec

OVERHEAD_BYTES = 24 * 1024 * 1024
"""What a conversion holds beside weights: buffers of hashes, pieces on their way to the disk, the
header, the tokenizer, stacks of threads, modules imported late. Measured
(tests/converter/test_conversion_plan.py)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a conversion takes.

    Attributes
    ----------
    memory_bytes : int
        An upper bound of what it adds to the process's resident size, mapped files included.
    seconds : float
        An estimate.
    """

    memory_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A conversion as far as its cost depends on it.

    Attributes
    ----------
    checkpoint : Checkpoint
        The open source.
    matrices : tuple of MatrixSpec
        All matrices of the file.
    input_bytes, listed_bytes : int
        Sizes of the sources, and of those whose MD5 is compared.
    file_bytes : int
        Size of the file.
    share_left : float
        How much of the file is still to be made, 0 to 1.
    n_threads, n_cpus : int
        Threads of the quantizers, and CPUs that the process may use.
    merged_terms : int
        Products of an adapter that are added to weights.
    method : str
        The recipe's.
    n_tokens : int
        Of the text that runs through the model; 0 if none does.
    rates : Rates
        Of this machine.
    """

    checkpoint: Checkpoint
    matrices: tuple[MatrixSpec, ...]
    input_bytes: int
    listed_bytes: int
    file_bytes: int
    share_left: float
    n_threads: int
    n_cpus: int
    merged_terms: int
    method: str
    n_tokens: int
    rates: Rates


class MethodCost(Protocol):
    """The cost of one method."""

    def __call__(self, work: Work) -> Cost:
        """Foresee a conversion."""


def rtn_cost(work: Work) -> Cost:
    """Return the cost of encoding each matrix by itself: round to nearest, scale search, dense.

    Memory: `encode_matrix` goes through the sources of a matrix one after the other; with the last
    one in memory, as mapped pages or assembled from shards, it holds the codes and scales of all of
    them. Quantizers widen a group at a time. What is written goes with its matrix. So the bound is
    the largest sum over the matrices, and a fixed amount.

    Time: three things go on beside each other. One thread per CPU encodes, and between two
    matrices one of them hashes and writes; another thread reads and hashes the sources; a third one
    checks their CRC-32. The slowest decides, or the CPUs that they share, or the disk. How fast the
    disk writes is not known; a file is written while the next matrices are encoded.
    """
    rates = work.rates
    encode = sum(matrix.n_weights / rates.weights[kind_of(matrix)] for matrix in work.matrices)
    encode += work.merged_terms / rates.merged_terms
    return Cost(OVERHEAD_BYTES + max(held_bytes(work)), seconds_of(work, encode))


def seconds_of(work: Work, encode: float) -> float:
    """Return the time of a conversion whose matrices alone are encoded in `encode` seconds."""
    rates = work.rates
    encode *= work.share_left
    write = work.share_left * work.file_bytes * (1 / rates.sha256 + 2 / rates.copy)
    unlisted = work.input_bytes - work.listed_bytes
    hash_cpu = work.input_bytes / rates.sha256 + work.listed_bytes / rates.md5
    hash_wall = unlisted / rates.sha256 + work.listed_bytes / min(rates.sha256, rates.md5)
    crc = work.share_left * unlisted / rates.crc32
    copies = (1 + work.share_left) * work.input_bytes / rates.copy  # read, and mapped
    cpu = encode * work.n_threads + write + hash_cpu + crc + copies
    return max(
        encode + write,
        hash_wall + work.input_bytes / rates.copy,
        cpu / work.n_cpus,
        work.input_bytes / rates.read,
    )


def held_bytes(work: Work) -> Iterator[int]:
    """Yield what each matrix holds at its peak."""
    for matrix in work.matrices:
        source = max(work.checkpoint.reading_bytes(name) for name in matrix.sources)
        is_streamed = matrix.is_table and matrix.stored.kind.is_dense
        yield source + (0 if is_streamed else sum(spec.nbytes for spec in matrix.tensors()))
