"""What methods that run a text through the model cost beside rounding: memory and time, foreseen.

Counts of operations are derived from what `Calibrator` does per layer and token; the rates are
measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llama2q import _core
from llama2q.calibrate.calibration import WINDOW
from llama2q.config import ModelConfig
from llama2q.format.recipe import TensorType
from llama2q.quant import grid_values

_SIDE = 768
"""Of the matrices that rates are measured with: their products take milliseconds."""
_F32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRates:
    """Floating-point or integer operations per second of all threads.

    Attributes
    ----------
    exact, rounded : float
        Of a window's products with matrices of the checkpoint's dtype, and of int4.
    products : float
        Of float32 products, `add_product`.
    searched : float
        Groups' weights per second that scales are searched for.
    """

    exact: float
    rounded: float
    products: float
    searched: float

    @classmethod
    def measure(cls, stored: TensorType, n_threads: int) -> CalibrationRates:
        """Measure in some 0.2 seconds."""
        x = np.random.default_rng(0).standard_normal((WINDOW, _SIDE), np.float32)
        square = np.ascontiguousarray(np.resize(x, (_SIDE, _SIDE)))
        half = (square.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        dense = _core.Matrix.dense(_core.pack_dense(half, n_threads), _SIDE, _SIDE)
        size, grid = stored.group_size or 64, grid_values(stored.grid or "nonuniform")
        int4 = _core.Matrix.int4(*_core.quantize_int4(half, size, grid), grid, _SIDE, _SIDE)
        sums = np.zeros((_SIDE, _SIDE), np.float32)
        operations = 2 * WINDOW * _SIDE * _SIDE
        return cls(
            exact=operations / _seconds(lambda: _core.matmul(x, dense, n_threads=n_threads)),
            rounded=operations / _seconds(lambda: _core.matmul(x, int4, n_threads=n_threads)),
            products=operations
            / _seconds(lambda: _core.add_product(sums, x, x, n_threads=n_threads)),
            searched=square.size
            / _seconds(lambda: _core.search_int4(half, size, grid, n_threads=n_threads)),
        )


def calibrated_seconds(config: ModelConfig, n_tokens: int, rates: CalibrationRates) -> float:
    """Return the time of one run of the rounded model, and of the searches."""
    weights = _layer_weights(config)
    return config.n_layers * (2 * weights * n_tokens / rates.rounded + weights / rates.searched)


def gptq_seconds(config: ModelConfig, n_tokens: int, rates: CalibrationRates) -> float:
    """Return the time of a run of both models, of moments, factors and feedback."""
    dim, hidden, kv_dim = config.dim, config.hidden_dim, config.kv_dim
    closing = dim * dim + dim * hidden  # wo and w2: exact outputs again, corrections
    moments = 3 * dim * dim + hidden * hidden  # K^2 for each matrix of moments, half of it computed
    factors = (3 * dim**3 + hidden**3) / 3
    feedback = dim * dim * (dim + 2 * kv_dim + 2 * hidden) + 2 * dim * (dim * dim + hidden * hidden)
    products = 2 * closing * n_tokens + moments * n_tokens + factors + feedback
    exact = 2 * (_layer_weights(config) + closing) * n_tokens
    return calibrated_seconds(config, n_tokens, rates) + config.n_layers * (
        exact / rates.exact + products / rates.products
    )


def calibrated_bytes(config: ModelConfig, n_tokens: int) -> int:
    """Return what lies beside a matrix and its codes: the stream and a layer's widest inputs."""
    return _F32 * n_tokens * (config.dim + max(config.dim, config.hidden_dim)) + _layer_codes(
        config
    )


def gptq_bytes(config: ModelConfig, n_tokens: int, n_threads: int) -> int:
    """Return what lies beside w2 and its codes while it is rounded.

    Both streams, its inputs, their moments, corrections, the exact matrix, the codes of the layer,
    and each thread's panel of targets, weights and errors.
    """
    dim, width = config.dim, max(config.dim, config.hidden_dim)
    inputs = _F32 * n_tokens * (2 * dim + width)
    return (
        inputs
        + _F32 * (width * width + width * dim)
        + max(_F32 * dim * width, 2 * _layer_weights(config))
        + _layer_codes(config)
        + (3 * 768 * width + 2**20) * n_threads
        + 1024 * width
    )


def _layer_weights(config: ModelConfig) -> int:
    dim = config.dim
    return 2 * dim * dim + 2 * dim * config.kv_dim + 3 * dim * config.hidden_dim


def _layer_codes(config: ModelConfig) -> int:
    return _layer_weights(config) * 5 // 8


def _seconds(run: Callable[[], object]) -> float:
    """Return the time of the faster of two runs."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)
