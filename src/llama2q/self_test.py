"""A bitwise self-test: a tiny model through every instruction set must give the published bits."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.config import ModelConfig
from llama2q.converter.encode import encode_matrix
from llama2q.errors import Llama2qError
from llama2q.format.layout import MatrixSpec, TensorSpec
from llama2q.format.metadata import Metadata
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import Recipe
from llama2q.format.writer import Chunks, Writer, write_model
from llama2q.kv_blocks import blocks_for
from llama2q.weights import build_model

CONFIG = ModelConfig(
    dim=128,
    hidden_dim=172,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=320,
    norm_eps=1e-5,
    max_seq_len=512,
)
"""Odd on purpose: grouped heads and a hidden_dim that is padded."""

EXPECTED: dict[tuple[str, _core.KvDtype], str] = {
    ("int4", "f16"): "67a7cfb947213bb23f9f21277dd4590ee4fb9f58da5db8b04bd185b28b15452b",
    ("int8", "int8"): "c8ade87c168386f878dba5f3980870a34a2336fab4337f09af6548c333f42545",
    ("none", "f32"): "d36401904457ba6f9cb571a5efd24bddb06b200f1f4e47638facccef00465f7e",
}
"""(quant, KV type) -> SHA-256 of the logits' bits, the same on every machine."""

# More than the 256 positions of an attention chunk.
_N_PROMPT, _N_DECODED = 270, 4
_TOKENIZER = b"the self-test needs no tokenizer"


@dataclass(frozen=True, slots=True)
class SelfTestRun:
    """One way of computing the tiny model.

    Attributes
    ----------
    quant, kv_dtype, isa : str
    n_threads : int
    found : str
        SHA-256 of the logits, or the error that came instead.
    ok : bool
    """

    quant: str
    kv_dtype: str
    isa: str
    n_threads: int
    found: str
    ok: bool


def run_self_test() -> list[SelfTestRun]:
    """Compute the tiny model by every instruction set of this machine, with 1 and 2 threads."""
    runs = []
    with _temporary_folder() as folder:
        for (quant, kv_dtype), expected in EXPECTED.items():
            path = Path(folder) / f"{quant}.l2q"
            write_tiny_model(path, quant)
            with L2qFile(path) as file:
                for isa in _core.isas():
                    for n_threads in (1, 2):
                        try:
                            found = logits_hash(file, kv_dtype, isa, n_threads)
                        except Llama2qError as error:
                            found = f"{type(error).__name__}: {error}"
                        ok = found == expected
                        runs.append(SelfTestRun(quant, kv_dtype, isa, n_threads, found, ok))
    return runs


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    # A map that is still alive keeps its file from being removed on Windows.
    return tempfile.TemporaryDirectory(prefix="llama2q-", ignore_cleanup_errors=True)


def write_tiny_model(path: Path, quant: str) -> None:
    """Write the tiny model; its weights are integers / 256 and need no arithmetic that rounds."""
    recipe = Recipe.for_model(CONFIG, quant, group_size=32, dtype="f32")
    with Writer(path, Metadata(CONFIG, recipe), _TOKENIZER, overwrite=True) as writer:
        write_model(writer, _encode, _norm)
        writer.finish()


def logits_hash(file: L2qFile, kv_dtype: _core.KvDtype, isa: str, n_threads: int) -> str:
    """Return the SHA-256 of all logits: a prompt in one step, then some tokens one by one."""
    n_tokens = _N_PROMPT + _N_DECODED
    model = build_model(
        file, kv_dtype=kv_dtype, n_blocks=blocks_for(n_tokens), n_threads=n_threads, isa=isa
    )
    digest = hashlib.sha256()
    for logits in _steps(model):
        digest.update(logits.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def decode_seconds(n_tokens: int) -> float:
    """Return how long the tiny model takes for some tokens one by one, all threads working."""
    with _temporary_folder() as folder:
        path = Path(folder) / "int4.l2q"
        write_tiny_model(path, "int4")
        with L2qFile(path) as file:
            model = build_model(file, kv_dtype="f16", n_blocks=blocks_for(n_tokens + 1))
            table = np.arange(model.n_blocks, dtype=np.int32)[None]
            zero = np.zeros(1, np.int32)
            start = 0.0
            for position in range(n_tokens + 1):
                if position == 1:
                    start = time.perf_counter()
                model.step(zero + 1, zero + position, zero, table, zero)
            return time.perf_counter() - start


def _steps(model: _core.Model) -> Iterator[NDArray[np.float32]]:
    ids = (np.arange(_N_PROMPT + _N_DECODED, dtype=np.int32) * 37 + 1) % CONFIG.vocab_size
    table = np.arange(model.n_blocks, dtype=np.int32)[None]
    starts = [0, *range(_N_PROMPT, len(ids))]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        positions = np.arange(start, end, dtype=np.int32)
        rows = np.arange(max(0, end - start - 8), end - start, dtype=np.int32)
        yield model.step(ids[start:end].copy(), positions, np.zeros_like(positions), table, rows)


def _encode(matrix: MatrixSpec) -> list[Chunks]:
    shape = (matrix.rows, matrix.cols)
    return encode_matrix(matrix, lambda name: _weights(name, shape), lambda _: None, _core, 1)


def _norm(spec: TensorSpec) -> NDArray[np.float32]:
    return np.float32(1) + _weights(spec.name, spec.shape)


def _weights(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return float32 multiples of 1/256 in [-1/4, 1/4), drawn by a linear congruence."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mixed = (index + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    drawn = (mixed >> np.uint64(57)).astype(np.int64) - 64
    return (drawn.astype(np.float32) / np.float32(256)).reshape(shape)
