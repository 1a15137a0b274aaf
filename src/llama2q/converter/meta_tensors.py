"""The tensors of a Llama 2 checkpoint in Meta's form: names, shapes, and how shards split them.

Source of the rules: meta-llama/llama, `llama/model.py` (ColumnParallelLinear splits rows, that is
dim 0; RowParallelLinear and ParallelEmbedding split dim 1; RMSNorm weights are replicated).
"""

from __future__ import annotations

from llama2q.config import ModelConfig
from llama2q.errors import InvalidArgumentError

Shape = tuple[int, ...]

DROPPED = frozenset({"rope.freqs"})
"""Tensors that Meta stores and that are computed anew: they may be there and are not read."""

_SPLIT_DIM: dict[str, int | None] = {
    "tok_embeddings": 1,
    "wq": 0,
    "wk": 0,
    "wv": 0,
    "wo": 1,
    "w1": 0,
    "w2": 1,
    "w3": 0,
    "output": 0,
    "attention_norm": None,
    "ffn_norm": None,
    "norm": None,
}


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """List every tensor of the merged model with its shape, in the order of execution.

    Parameters
    ----------
    config : ModelConfig
        Shape of the model.

    Returns
    -------
    dict
        Meta's name -> shape in elements, (out_features, in_features) for a matrix.
    """
    shapes: dict[str, Shape] = {"tok_embeddings.weight": (config.vocab_size, config.dim)}
    for i in range(config.n_layers):
        prefix = f"layers.{i}."
        shapes[prefix + "attention_norm.weight"] = (config.dim,)
        shapes[prefix + "attention.wq.weight"] = (config.dim, config.dim)
        shapes[prefix + "attention.wk.weight"] = (config.kv_dim, config.dim)
        shapes[prefix + "attention.wv.weight"] = (config.kv_dim, config.dim)
        shapes[prefix + "attention.wo.weight"] = (config.dim, config.dim)
        shapes[prefix + "ffn_norm.weight"] = (config.dim,)
        shapes[prefix + "feed_forward.w1.weight"] = (config.hidden_dim, config.dim)
        shapes[prefix + "feed_forward.w2.weight"] = (config.dim, config.hidden_dim)
        shapes[prefix + "feed_forward.w3.weight"] = (config.hidden_dim, config.dim)
    shapes["norm.weight"] = (config.dim,)
    shapes["output.weight"] = (config.vocab_size, config.dim)
    return shapes


def split_dim(name: str) -> int | None:
    """Return the dimension along which shards hold parts of a tensor; None if replicated.

    Parameters
    ----------
    name : str
        Meta's name, such as `layers.0.attention.wq.weight`.

    Raises
    ------
    InvalidArgumentError
        The name is not one of a Llama 2 model.
    """
    parts = name.split(".")
    if len(parts) < 2 or parts[-1] != "weight" or parts[-2] not in _SPLIT_DIM:
        raise InvalidArgumentError(f"{name!r} is not a tensor of a Llama 2 model")
    return _SPLIT_DIM[parts[-2]]


def shard_shape(name: str, shape: Shape, n_shards: int) -> Shape:
    """Return the shape of the part that one of n_shards files holds.

    Parameters
    ----------
    name : str
        Meta's name.
    shape : tuple of int
        Shape of the merged tensor.
    n_shards : int
        Number of shards.

    Raises
    ------
    InvalidArgumentError
        The split dimension is not a multiple of n_shards.
    """
    dim = split_dim(name)
    if dim is None:
        return shape
    if n_shards < 1 or shape[dim] % n_shards:
        raise InvalidArgumentError(
            f"{name} of shape {shape} cannot be split into {n_shards} shards: "
            f"dimension {dim} is {shape[dim]}"
        )
    return (*shape[:dim], shape[dim] // n_shards, *shape[dim + 1 :])


def shard_slice(name: str, shape: Shape, index: int, n_shards: int) -> tuple[slice, ...]:
    """Return the slices of the merged tensor that shard `index` holds (see `shard_shape`)."""
    part = shard_shape(name, shape, n_shards)
    dim = split_dim(name)
    return tuple(
        slice(index * size, (index + 1) * size) if axis == dim else slice(None)
        for axis, size in enumerate(part)
    )
