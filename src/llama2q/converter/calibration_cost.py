"""What rounding costs where a text runs through the model: memory and time, foreseen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from llama2q import _core
from llama2q.calibrate.calibration import WINDOW
from llama2q.config import ModelConfig
from llama2q.converter.costs import OVERHEAD_BYTES, Cost, Work, rtn_cost
from llama2q.converter.mapped_tensor import NUMPY_DTYPES
from llama2q.converter.probe import random_weights, seconds_of
from llama2q.format.recipe import TensorType
from llama2q.quant import grid_values

KEPT_BYTES = 64 * 1024 * 1024
"""What the C library may keep of arrays that are gone: those below 32 MiB come from its heap."""
_SIDE = 1024
_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Speeds:
    """Measured on small arrays, all threads together: floating-point operations in a second.

    Attributes
    ----------
    dense, int4 : float
        Of products with the checkpoint's matrices, and with rounded ones.
    gemm : float
        Of sums over tokens in float32, of which factors and error feedback consist.
    weights : float
        Weights that a scale search goes through in a second.
    """

    dense: float
    int4: float
    gemm: float
    weights: float

    @classmethod
    def measured(cls, dtype: str, stored: TensorType, n_threads: int) -> Self:
        """Measure; takes some 0.2 seconds."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((_TOKENS, _SIDE), np.float32)
        weights = random_weights(dtype, (_SIDE, _SIDE))
        grid, group_size = grid_values(stored.grid or "uniform"), stored.group_size or 0
        codes, scales = _core.quantize_int4(weights, group_size, grid, n_threads)
        matrices = (
            _core.Matrix.dense(_core.pack_dense(weights, n_threads), _SIDE, _SIDE),
            _core.Matrix.int4(codes, scales, grid, _SIDE, _SIDE),
        )
        total = np.zeros((_SIDE, _SIDE), np.float32)
        few = weights[:128]
        operations = 2 * _TOKENS * _SIDE**2
        dense, int4 = (
            operations / seconds_of(lambda m=m: _core.matmul(x, m, n_threads=n_threads))  # type: ignore[misc]
            for m in matrices
        )
        return cls(
            dense,
            int4,
            operations / seconds_of(lambda: _core.add_product(total, x, x, n_threads=n_threads)),
            few.size
            / seconds_of(
                lambda: _core.search_int4(few, group_size, grid, x[0] ** 2, n_threads=n_threads)
            ),
        )


def calibrated_cost(work: Work) -> Cost:
    """Return the cost of a scale search weighed by what the matrices' inputs are."""
    speeds = _speeds(work)
    config = work.checkpoint.config
    rounding = config.n_layers * _layer_weights(config) / speeds.weights
    seconds = _forward(config, work.n_tokens) / speeds.int4 + work.share_left * rounding
    return _total(work, seconds, _calibrated_bytes(work))


def gptq_cost(work: Work) -> Cost:
    """Return the cost of error feedback.

    Beside a layer as `calibrated` has it: the layer before rounding, run on the exact stream, and
    wo and w2 once more; sums over tokens of the inputs' products with themselves (H) and with what
    the stream has lost; the factors of H; and feedback, which multiplies each column's errors with
    the factors of all columns before it, and solves with them for the corrections of wo and w2.
    """
    speeds = _speeds(work)
    config, n = work.checkpoint.config, work.n_tokens
    dim, hidden, kv = config.dim, config.hidden_dim, config.kv_dim
    forward = _forward(config, n)
    gap = config.n_layers * 2 * n * (dim + hidden) * dim
    sums = n * (3 * dim**2 + hidden**2) + 2 * n * (dim + hidden) * dim
    factors = (3 * dim**3 + hidden**3) / 3
    feedback = dim**2 * (dim + 2 * kv + 2 * hidden) + 2 * (dim**3 + dim * hidden**2)
    layer = (sums + factors + feedback) / speeds.gemm + _layer_weights(config) / speeds.weights
    exact = (forward + work.share_left * gap) / speeds.dense
    seconds = forward / speeds.int4 + exact + work.share_left * config.n_layers * layer
    return _total(work, seconds, _gptq_bytes(work))


def _speeds(work: Work) -> Speeds:
    dtype = "f32" if work.merged_terms else work.checkpoint.dtype
    stored = next(m.stored for m in work.matrices if m.name.startswith("layers."))
    return Speeds.measured(dtype, stored, work.n_threads)


def _total(work: Work, seconds: float, held: Iterator[int]) -> Cost:
    """Add what reading, hashing and writing take; the streams live as long as the last matrix."""
    rest = rtn_cost(work)
    window = 4 * WINDOW * (8 * work.checkpoint.config.dim + 3 * work.checkpoint.config.hidden_dim)
    memory = max(rest.memory_bytes + _stream_bytes(work), *held)
    return Cost(memory + window + KEPT_BYTES, rest.seconds + seconds)


def _forward(config: ModelConfig, n_tokens: int) -> float:
    """Return the operations of the layers' matrices on all tokens."""
    return 2.0 * n_tokens * config.n_layers * _layer_weights(config)


def _layer_weights(config: ModelConfig) -> int:
    return config.dim * (2 * config.dim + 2 * config.kv_dim + 3 * config.hidden_dim)


def _stream_bytes(work: Work) -> int:
    """Return the size of the residual streams of all windows, rounded and (gptq) exact."""
    n_streams = 2 if work.method == "gptq" else 1
    return n_streams * 4 * work.n_tokens * work.checkpoint.config.dim


def _calibrated_bytes(work: Work) -> Iterator[int]:
    """Yield what `Calibrator` holds while it rounds wo and w2."""
    base = _base_bytes(work)
    config = work.checkpoint.config
    for name, width in (("attention.wo", config.dim), ("feed_forward.w2", config.hidden_dim)):
        yield base + 4 * work.n_tokens * width + _reading(work, name) + _codes(work)


def _gptq_bytes(work: Work) -> Iterator[int]:
    """Yield what `Calibrator` holds in the phases of a layer."""
    base, config, n = _base_bytes(work), work.checkpoint.config, work.n_tokens
    dim, hidden, kv = config.dim, config.hidden_dim, config.kv_dim
    itemsize = 4 if work.merged_terms else NUMPY_DTYPES[work.checkpoint.dtype].itemsize
    phases = (
        ("attention.wo", dim, itemsize * (2 * dim + 2 * kv) * dim),
        ("feed_forward.w2", hidden, itemsize * 3 * hidden * dim),
    )
    for name, width, exact in phases:
        reading = _reading(work, name)
        yield base + exact + reading
        # The inputs of all windows, H, the correction, the exact matrix; scratch of each thread.
        sums = 4 * (n * width + width**2 + width * dim) + itemsize * width * dim
        scratch = width * (1024 + work.n_threads * 3 * 768)
        yield base + sums + scratch + reading + _codes(work)


def _base_bytes(work: Work) -> int:
    return OVERHEAD_BYTES + _stream_bytes(work)


def _reading(work: Work, name: str) -> int:
    layers = range(work.checkpoint.config.n_layers)
    return max(work.checkpoint.reading_bytes(f"layers.{layer}.{name}.weight") for layer in layers)


def _codes(work: Work) -> int:
    """Return the size of the largest rounded matrix, with those that get the same inputs."""
    return 2 * max(
        sum(spec.nbytes for spec in matrix.tensors())
        for matrix in work.matrices
        if matrix.name.startswith("layers.")
    )
