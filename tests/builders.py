"""Small models and matrices for the tests, handed to the core without a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.kv_blocks import BLOCK
from reference import Rope, inv_freq
from reference_weights import (
    Dense,
    Matrix,
    Quantized,
    Shape,
    Weights,
    band_columns,
    band_int4,
    band_int8,
    widen_bf16,
)

Array: TypeAlias = NDArray[Any]

UNIFORM = np.arange(-8, 8, dtype=np.int8)
NONUNIFORM = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
GRIDS = {"uniform": UNIFORM, "nonuniform": NONUNIFORM}
KV_DTYPES = ("f32", "f16", "int8")

TINY = Shape(dim=48, hidden_dim=76, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=101)
"""head_dim 8, 3 query heads a KV head, no size a multiple of 16 or 32."""


# --- weights ----------------------------------------------------------------------------------


def narrow_bf16(values: Array) -> Array:
    """Float32 to bfloat16 bits, uint16, towards zero (which rounding does not matter here)."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def dense_matrix(rng: np.random.Generator, rows: int, cols: int, dtype: str = "f32") -> Dense:
    """Normal values with variance 1 / cols, exactly representable in dtype."""
    values = (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
    if dtype == "f16":
        values = values.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        values = widen_bf16(narrow_bf16(values))
    return Dense(values, dtype)


def quantized_matrix(
    rng: np.random.Generator, rows: int, cols: int, group_size: int, grid: Array | None
) -> Quantized:
    """Random codes; scales of either sign, such that elements have variance about 1 / cols."""
    if grid is None:
        values = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        deviation = 255 / np.sqrt(12)
    else:
        values = grid[rng.integers(0, 16, (rows, cols))]
        deviation = np.std(grid.astype(np.float64))
    size = 1 / (np.sqrt(cols) * deviation)
    shape = rows, -(-cols // group_size)
    scales = size * rng.uniform(0.7, 1.3, shape) * rng.choice([-1.0, 1.0], shape)
    return Quantized(values, scales.astype(np.float16), group_size, grid)


def random_matrix(
    rng: np.random.Generator, rows: int, cols: int, kind: str, group_size: int = 32
) -> Matrix:
    """Kind: f32, f16, bf16, int8, int4 (nonuniform) or int4-uniform."""
    if kind == "int8":
        return quantized_matrix(rng, rows, cols, group_size, None)
    if kind.startswith("int4"):
        grid = UNIFORM if kind == "int4-uniform" else NONUNIFORM
        return quantized_matrix(rng, rows, cols, group_size, grid)
    return dense_matrix(rng, rows, cols, kind)


def random_weights(
    shape: Shape = TINY, kind: str = "f32", group_size: int = 32, seed: int = 0
) -> Weights:
    """Build a whole model; as the converter does, an int4 one keeps its two outer tables int8."""
    rng = np.random.default_rng(seed)
    outer = "int8" if kind.startswith("int4") else kind
    kv_dim = shape.n_kv_heads * shape.head_dim
    matrices: dict[str, Matrix] = {}
    norms: dict[str, Array] = {}

    def put(name: str, rows: int, cols: int, kind: str) -> None:
        matrices[f"{name}.weight"] = random_matrix(rng, rows, cols, kind, group_size)

    def norm(name: str) -> None:
        norms[f"{name}.weight"] = rng.uniform(0.5, 1.5, shape.dim).astype(np.float32)

    put("tok_embeddings", shape.vocab_size, shape.dim, outer)
    for layer in range(shape.n_layers):
        prefix = f"layers.{layer}."
        norm(prefix + "attention_norm")
        norm(prefix + "ffn_norm")
        for name, rows in (("wq", shape.dim), ("wk", kv_dim), ("wv", kv_dim), ("wo", shape.dim)):
            put(f"{prefix}attention.{name}", rows, shape.dim, kind)
        put(f"{prefix}feed_forward.w1", shape.hidden_dim, shape.dim, kind)
        put(f"{prefix}feed_forward.w3", shape.hidden_dim, shape.dim, kind)
        put(f"{prefix}feed_forward.w2", shape.dim, shape.hidden_dim, kind)
    norm("norm")
    put("output", shape.vocab_size, shape.dim, outer)
    return Weights(shape, matrices, norms)


# --- to the core ------------------------------------------------------------------------------


def _stored(matrix: Dense) -> Array:
    if matrix.dtype == "bf16":
        return narrow_bf16(matrix.values)
    return matrix.values.astype(np.float16 if matrix.dtype == "f16" else np.float32)


def core_matrix(matrix: Matrix) -> _core.Matrix:
    """Lay a matrix out in bands."""
    rows, cols = matrix.shape
    if isinstance(matrix, Dense):
        return _core.Matrix.dense(band_columns(_stored(matrix)), rows, cols)
    scales = band_columns(matrix.scales)
    if matrix.grid is None:
        return _core.Matrix.int8(band_int8(matrix.values, matrix.group_size), scales, rows, cols)
    codes = np.searchsorted(matrix.grid, matrix.values).astype(np.uint8)
    packed = band_int4(codes, matrix.group_size)
    return _core.Matrix.int4(packed, scales, matrix.grid, rows, cols)


def _alternate(first: Array, second: Array) -> Array:
    both = np.stack([first, second], axis=1)
    return np.ascontiguousarray(both.reshape(-1, *first.shape[1:]))


def core_gate_up(w1: Matrix, w3: Matrix) -> _core.Matrix:
    """Lay w1 and w3 out in alternating bands; rows counts both halves, padding included."""
    rows, cols = w1.shape
    all_rows = 2 * (rows + -rows % 16)
    if isinstance(w1, Dense) and isinstance(w3, Dense):
        both = _alternate(band_columns(_stored(w1)), band_columns(_stored(w3)))
        return _core.Matrix.dense(both, all_rows, cols)
    assert isinstance(w1, Quantized)
    assert isinstance(w3, Quantized)
    scales = _alternate(band_columns(w1.scales), band_columns(w3.scales))
    if w1.grid is None:
        codes = [band_int8(w.values, w.group_size) for w in (w1, w3)]
        return _core.Matrix.int8(_alternate(*codes), scales, all_rows, cols)
    packed = [
        band_int4(np.searchsorted(w1.grid, w.values).astype(np.uint8), w.group_size)
        for w in (w1, w3)
    ]
    return _core.Matrix.int4(_alternate(*packed), scales, w1.grid, all_rows, cols)


def core_embedding(matrix: Matrix) -> _core.Embedding:
    """Hand the table over row by row."""
    if isinstance(matrix, Dense):
        return _core.Embedding.dense(_stored(matrix))
    return _core.Embedding.int8(matrix.values, matrix.scales)


def core_model(
    weights: Weights,
    kv_dtype: str = "f32",
    *,
    n_blocks: int = 8,
    n_threads: int | None = 2,
    isa: str | None = None,
    devices: Sequence[tuple[_core.DeviceLibrary, int, int]] = (),
    rope: Rope | None = None,
) -> _core.Model:
    """Build the engine's model over these weights."""
    rope = rope or Rope(inv_freq(weights.shape.head_dim, weights.shape.rope_theta))
    layers = []
    for layer in range(weights.shape.n_layers):
        prefix = f"layers.{layer}."
        parts: dict[str, Any] = {
            name: core_matrix(weights.matrices[f"{prefix}attention.{name}.weight"])
            for name in ("wq", "wk", "wv", "wo")
        }
        parts["attention_norm"] = weights.norms[f"{prefix}attention_norm.weight"]
        parts["ffn_norm"] = weights.norms[f"{prefix}ffn_norm.weight"]
        parts["w1_w3"] = core_gate_up(
            weights.matrices[f"{prefix}feed_forward.w1.weight"],
            weights.matrices[f"{prefix}feed_forward.w3.weight"],
        )
        parts["w2"] = core_matrix(weights.matrices[f"{prefix}feed_forward.w2.weight"])
        layers.append(parts)
    return _core.Model(
        config=asdict(weights.shape),
        tok_embeddings=core_embedding(weights.matrices["tok_embeddings.weight"]),
        layers=layers,
        norm=weights.norms["norm.weight"],
        output=core_matrix(weights.matrices["output.weight"]),
        inv_freq=rope.inv_freq,
        attention_factor=rope.factor,
        kv_dtype=kv_dtype,  # type: ignore[arg-type]
        n_blocks=n_blocks,
        n_threads=n_threads,
        isa=isa,
        devices=list(devices),
    )


def ints(values: Iterable[int]) -> Array:
    """Int32 array, C-contiguous."""
    return np.array(list(values), np.int32)


def step(
    model: _core.Model,
    sequences: Sequence[tuple[Sequence[int], int, Sequence[int]]],
    output: str = "logits",
) -> list[Array]:
    """One ragged step; each sequence is (ids, first position, block table).

    Returns the output rows of all its tokens, per sequence.
    """
    ids = [token for tokens, _, _ in sequences for token in tokens]
    positions = [start + i for tokens, start, _ in sequences for i in range(len(tokens))]
    owner = [index for index, (tokens, _, _) in enumerate(sequences) for _ in tokens]
    width = max(len(table) for _, _, table in sequences)
    tables = [list(table) + [-1] * (width - len(table)) for _, _, table in sequences]
    rows = model.step(
        ints(ids),
        ints(positions),
        ints(owner),
        np.array(tables, np.int32),
        ints(range(len(ids))),
        output,  # type: ignore[arg-type]
    )
    ends = np.cumsum([len(tokens) for tokens, _, _ in sequences])[:-1]
    return np.split(rows, ends)


def run(
    model: _core.Model,
    ids: Sequence[int],
    *,
    chunk: int | None = None,
    table: Sequence[int] | None = None,
    start: int = 0,
) -> Array:
    """Logits (n, vocab_size) of one sequence, fed in chunks of that many tokens."""
    table = table or range(-(-(start + len(ids)) // _core.BLOCK_SIZE))
    size = chunk or len(ids)
    parts = [
        step(model, [(ids[begin : begin + size], start + begin, table)])[0]
        for begin in range(0, len(ids), size)
    ]
    return np.concatenate(parts)


def text(*letters: int, rest: int = 0) -> list[int]:
    """Whole KV blocks of one token each, and some tokens more."""
    return [letter for letter in letters for _ in range(BLOCK)] + [7] * rest
