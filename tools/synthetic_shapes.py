"""Shapes of the Llama 2 family and seeded random weights in them, for make_synthetic.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama2q.config import ModelConfig, hidden_dim_of

STD = 0.02
"""Standard deviation of the weights, and of the norms around 1."""

CHUNK_ELEMENTS = 1 << 22
"""Upper bound of the elements that are generated at a time (rows are never cut)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticShape:
    """What Meta's params.json says about a model, plus the size of its vocabulary."""

    dim: int
    n_layers: int
    n_heads: int
    multiple_of: int
    vocab_size: int = 32000
    n_kv_heads: int | None = None
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5

    @property
    def config(self) -> ModelConfig:
        """The model's hyperparameters."""
        return ModelConfig(
            dim=self.dim,
            hidden_dim=hidden_dim_of(self.dim, self.multiple_of, self.ffn_dim_multiplier),
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads or self.n_heads,
            vocab_size=self.vocab_size,
            norm_eps=self.norm_eps,
        )

    @property
    def params(self) -> dict[str, int | float]:
        """The content of params.json, as Meta writes it (vocab_size -1)."""
        params: dict[str, int | float] = {"dim": self.dim, "multiple_of": self.multiple_of}
        if self.ffn_dim_multiplier is not None:
            params["ffn_dim_multiplier"] = self.ffn_dim_multiplier
        params["n_heads"] = self.n_heads
        if self.n_kv_heads is not None:
            params["n_kv_heads"] = self.n_kv_heads
        return params | {"n_layers": self.n_layers, "norm_eps": self.norm_eps, "vocab_size": -1}


SHAPES: dict[str, SyntheticShape] = {
    "tiny": SyntheticShape(
        dim=128, n_layers=4, n_heads=4, n_kv_heads=2, multiple_of=32, vocab_size=4096
    ),
    "1.1b": SyntheticShape(dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, multiple_of=256),
    "7b": SyntheticShape(dim=4096, n_layers=32, n_heads=32, multiple_of=256),
    "13b": SyntheticShape(dim=5120, n_layers=40, n_heads=40, multiple_of=256),
    "70b": SyntheticShape(
        dim=8192,
        n_layers=80,
        n_heads=64,
        n_kv_heads=8,
        multiple_of=4096,
        ffn_dim_multiplier=1.3,
    ),
}


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 values to bfloat16 bits, ties to even.

    Parameters
    ----------
    values : float32, any shape

    Returns
    -------
    uint16, same shape
        The upper halves of the rounded bit patterns.
    """
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def random_bf16_chunks(
    name: str, shape: tuple[int, ...], seed: int, chunk_elements: int = CHUNK_ELEMENTS
) -> Iterator[NDArray[np.uint16]]:
    """Generate a tensor's random weights, whole rows at a time, first row first.

    The values depend on name, shape and seed only, not on the size of the chunks.

    Parameters
    ----------
    name : str
        Meta's name; a name that ends in `norm.weight` is drawn around 1, others around 0.
    shape : tuple of int
        Shape in elements.
    seed : int
        Seed of the whole model.
    chunk_elements : int
        Upper bound of the elements of a chunk, at least a row; where it allows 16 rows or more,
        all chunks but the last have a multiple of 16 rows.

    Yields
    ------
    uint16, (n_rows, *shape[1:])
        bfloat16 bits.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    row_elements = int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, chunk_elements // row_elements)
    step = step // 16 * 16 or step
    mean = np.float32(1.0 if name.endswith("norm.weight") else 0.0)
    for first in range(0, shape[0], step):
        rows = min(step, shape[0] - first)
        values = generator.standard_normal((rows, *shape[1:]), dtype=np.float32)
        values *= np.float32(STD)
        values += mean
        yield to_bf16(values)
