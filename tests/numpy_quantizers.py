"""The NumPy definition behind the interface of the C++ quantizers; random weights to encode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.config import ModelConfig
from llama2q.converter.encode import encode_matrix
from llama2q.format.layout import MatrixSpec
from llama2q.format.writer import Chunks
from llama2q.quant import dense, int4, int8


class NumpyQuantizers:
    """Stands in for `llama2q._core`."""

    def quantize_int4(
        self,
        weights: NDArray[Any],
        group_size: int,
        grid: NDArray[np.int8],
        n_threads: int | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        return int4.encode(weights, group_size, grid)

    def quantize_int8(
        self, weights: NDArray[Any], group_size: int, n_threads: int | None = None
    ) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        return int8.encode(weights, group_size)

    def quantize_rows_int8(
        self, weights: NDArray[Any], group_size: int, n_threads: int | None = None
    ) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        return int8.encode_rows(weights, group_size)

    def pack_dense(self, weights: NDArray[Any], n_threads: int | None = None) -> NDArray[Any]:
        return dense.encode(weights)


SMALL = ModelConfig(
    dim=48, hidden_dim=172, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=37, norm_eps=1e-5
)
"""Every kind of padding: 48 and 172 columns, 16, 37 and 172 rows."""
TOKENIZER = b"not a real tokenizer"


def random_weights(name: str, rows: int, cols: int) -> NDArray[np.float32]:
    """Return weights that depend on the tensor's name only: float32, (rows, cols)."""
    generator = np.random.default_rng(list(name.encode()))
    return generator.normal(0, 0.02, (rows, cols)).astype(np.float32)


def encode_random(matrix: MatrixSpec) -> list[Chunks]:
    """Encode `random_weights` as a converter would."""
    return encode_matrix(
        matrix,
        lambda name: random_weights(name, matrix.rows, matrix.cols),
        lambda name: None,
        NumpyQuantizers(),
    )
