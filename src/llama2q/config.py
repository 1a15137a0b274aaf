"""The model's hyperparameters, under Meta's names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from llama2q.errors import InvalidArgumentError


def hidden_dim_of(dim: int, multiple_of: int, ffn_dim_multiplier: float | None) -> int:
    """Width of the feed-forward layer (Meta's `FeedForward.__init__`).

    Parameters
    ----------
    dim : int
        Model width.
    multiple_of : int
        The result is rounded up to a multiple of this.
    ffn_dim_multiplier : float or None
        Factor applied before the rounding; None means 1.

    Returns
    -------
    int
        hidden_dim, in elements.
    """
    hidden = int(2 * (4 * dim) / 3)
    if ffn_dim_multiplier is not None:
        hidden = int(ffn_dim_multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a Llama 2 model; all sizes in elements."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    norm_eps: float
    max_seq_len: int = 4096
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        """Refuse shapes that no Llama 2 model has."""
        for name in (
            "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len",
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value < 2**31:
                raise InvalidArgumentError(
                    f"{name} is {value!r}; expected an integer in [1, 2**31)"
                )
        if self.dim % self.n_heads:
            raise InvalidArgumentError(
                f"dim {self.dim} is not a multiple of n_heads {self.n_heads}"
            )
        if self.n_heads % self.n_kv_heads:
            raise InvalidArgumentError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise InvalidArgumentError(f"head_dim {self.head_dim} is odd; RoPE rotates pairs")
        for name, low in (("norm_eps", 0.0), ("rope_theta", 1.0)):
            value = getattr(self, name)
            if type(value) is not float or not low <= value < 1e30:
                raise InvalidArgumentError(f"{name} is {value!r}; expected a float >= {low}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of the keys (or values) of one token: n_kv_heads * head_dim."""
        return self.n_kv_heads * self.head_dim

    def to_dict(self) -> dict[str, int | float]:
        """Return the fields as a plain dict, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from `to_dict`'s form; the key set must be exact."""
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            missing, extra = sorted(expected - set(values)), sorted(set(values) - expected)
            raise InvalidArgumentError(f"model config: missing keys {missing}, unknown {extra}")
        return cls(**values)
