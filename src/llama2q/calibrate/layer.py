"""The parts of a layer, on a window of tokens; what `_core.Model` computes, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.config import ModelConfig
from llama2q.format.rope import attention_factor, inv_freq
from llama2q.rope_scaling import RopeScaling

_F32: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Shapes and threads of a layer's computations; x is float32 (n_tokens, dim).

    Attributes
    ----------
    config : ModelConfig
    n_threads : int
    inv_freq : float64, (head_dim / 2,)
    attention_factor : float
        On cos and sin of RoPE.
    """

    config: ModelConfig
    n_threads: int
    inv_freq: NDArray[np.float64]
    attention_factor: float

    @classmethod
    def of(cls, config: ModelConfig, n_threads: int, rope: RopeScaling) -> Layer:
        """Return the layer of a model, within its original context where rope is dynamic."""
        frequencies = inv_freq(config.rope_theta, config.head_dim, rope)
        return cls(config, n_threads, frequencies, attention_factor(rope))

    def norm(self, x: _F32, weight: _F32) -> _F32:
        """RMSNorm; weight float32 (dim,)."""
        return _core.rms_norm(x, weight, self.config.norm_eps)

    def product(self, x: _F32, matrix: _core.Matrix) -> _F32:
        """Return x @ matrix.T, the activations quantized as the matrix demands."""
        return _core.matmul(x, matrix, n_threads=self.n_threads)

    def attend(self, x: _F32, wq: _core.Matrix, wk: _core.Matrix, wv: _core.Matrix) -> _F32:
        """Return what a sequence's attention gives wo: float32 (n_tokens, dim), of x normed."""
        config, n = self.config, len(x)
        positions = np.arange(n, dtype=np.int32)
        heads = (n, config.n_heads, config.head_dim)
        kv_heads = (n, config.n_kv_heads, config.head_dim)
        q = self._rotate(self.product(x, wq).reshape(heads), positions)
        k = self._rotate(self.product(x, wk).reshape(kv_heads), positions)
        v = self.product(x, wv).reshape(kv_heads)
        attended = _core.attention(q, k, v, positions, "f32", n_threads=self.n_threads)
        return attended.reshape(n, config.dim)

    def _rotate(self, x: _F32, positions: NDArray[np.int32]) -> _F32:
        factor = self.attention_factor
        return _core.rope(x, positions, self.inv_freq, attention_factor=factor)

    def gate_up(self, x: _F32, w1: _core.Matrix, w3: _core.Matrix) -> _F32:
        """Return what w2 is given: float32 (n_tokens, hidden_dim), of x normed."""
        return _core.swiglu(self.product(x, w1), self.product(x, w3))
