"""Meta's `params.json`, and the model config that it and the tensors agree on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama2q.config import ModelConfig, hidden_dim_of
from llama2q.converter.json_file import read_json_object
from llama2q.errors import InvalidArgumentError, MissingShardError, ParamsError, TensorSetError

MAX_PARAMS_BYTES = 1 << 20

_INTEGERS = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "vocab_size", "max_seq_len")
_FLOATS = {"ffn_dim_multiplier": (1e-3, 1e3), "norm_eps": (1e-20, 0.1), "rope_theta": (1.0, 1e12)}
"""Least and largest value."""
_UNUSED: dict[str, type[int]] = {"max_batch_size": int, "use_scaled_rope": bool}
_REQUIRED = ("n_heads", "norm_eps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The content of `params.json`; None where it says nothing."""

    n_heads: int
    norm_eps: float
    dim: int | None = None
    n_layers: int | None = None
    n_kv_heads: int | None = None
    multiple_of: int | None = None
    ffn_dim_multiplier: float | None = None
    vocab_size: int | None = None
    max_seq_len: int | None = None
    rope_theta: float | None = None


def read_params(path: Path) -> Params:
    """Read and check `params.json`.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ParamsError
        It is absent, is no JSON object, or holds an unknown key or a value of a wrong type.
    """
    if not path.is_file():
        raise ParamsError(
            f"params.json is missing in {path.parent}; run download.sh again, it lies beside the "
            "weights"
        )
    return _check(read_json_object(path, ParamsError, MAX_PARAMS_BYTES))


def derive_config(
    params: Params, shapes: Mapping[str, tuple[int, ...]], n_shards: int
) -> ModelConfig:
    """Find the model's config: what params.json says, and sizes it leaves out from the tensors.

    Parameters
    ----------
    params : Params
        The content of params.json.
    shapes : mapping
        Tensor name -> shape in the first shard.
    n_shards : int
        Number of shards found.

    Raises
    ------
    TensorSetError
        A tensor that tells a size is missing or has another number of dimensions.
    MissingShardError
        The tensors' shapes say that there are more shards.
    ParamsError
        params.json and the tensors disagree.
    """
    dim = _shape(shapes, "norm.weight", 1)[0]
    n_layers = 1 + max(
        (int(match[1]) for name in shapes if (match := re.match(r"layers\.(\d{1,6})\.", name))),
        default=-1,
    )
    _agree("dim", params.dim, dim, "norm.weight")
    if n_layers > len(shapes):
        raise TensorSetError(f"{len(shapes)} tensors cannot make {n_layers} layers")
    _agree("n_layers", params.n_layers, n_layers, "the tensors' names")
    _check_shard_count(_shape(shapes, "layers.0.attention.wq.weight", 2)[0], dim, n_shards)
    vocab_size = _shape(shapes, "tok_embeddings.weight", 2)[0]
    if params.vocab_size != -1:
        _agree("vocab_size", params.vocab_size, vocab_size, "tok_embeddings.weight")
    hidden_dim = _shape(shapes, "layers.0.feed_forward.w1.weight", 2)[0] * n_shards
    if params.multiple_of is not None:
        said = hidden_dim_of(dim, params.multiple_of, params.ffn_dim_multiplier)
        if said != hidden_dim:
            raise ParamsError(
                f"params.json gives a hidden size of {said} (dim {dim}, multiple_of "
                f"{params.multiple_of}, ffn_dim_multiplier {params.ffn_dim_multiplier}); "
                f"feed_forward.w1 has {hidden_dim} rows"
            )
    elif params.ffn_dim_multiplier is not None:
        raise ParamsError("params.json has ffn_dim_multiplier without multiple_of; expected both")
    optional: dict[str, Any] = {
        name: value
        for name in ("max_seq_len", "rope_theta")
        if (value := getattr(params, name)) is not None
    }
    try:
        return ModelConfig(
            dim=dim,
            hidden_dim=hidden_dim,
            n_layers=n_layers,
            n_heads=params.n_heads,
            n_kv_heads=params.n_heads if params.n_kv_heads is None else params.n_kv_heads,
            vocab_size=vocab_size,
            norm_eps=params.norm_eps,
            **optional,
        )
    except InvalidArgumentError as error:
        raise ParamsError(f"params.json describes no Llama 2 model: {error}") from error


def _check(values: dict[str, Any]) -> Params:
    unknown = sorted(set(values) - {*_INTEGERS, *_FLOATS, *_UNUSED})
    if unknown:
        shown = [name[:40] for name in unknown[:8]]
        raise ParamsError(
            f"params.json has unknown keys {shown}: this may be another kind of model than "
            "Llama 2, whose keys are " + ", ".join((*_INTEGERS, *_FLOATS))
        )
    for name, kind in _UNUSED.items():
        value = values.get(name)
        if value is not None and (type(value) is not kind or int(value) < 0):
            raise ParamsError(f"params.json: {name} is {_cut(value)}; expected a {kind.__name__}")
    if values.get("use_scaled_rope"):
        raise ParamsError("params.json asks for use_scaled_rope (Llama 3.1); expected Llama 2")
    checked: dict[str, Any] = {}
    for name in _INTEGERS:
        value = values.get(name)
        if value is None:
            continue
        if name == "vocab_size" and value == -1 and type(value) is int:
            checked[name] = value
        elif type(value) is not int or not 1 <= value < 2**31:
            raise ParamsError(f"params.json: {name} is {_cut(value)}; expected a positive integer")
        else:
            checked[name] = value
    for name in _FLOATS:
        value = values.get(name)
        if value is None:
            continue
        low, high = _FLOATS[name]
        if type(value) not in (int, float) or not low <= value <= high:
            raise ParamsError(
                f"params.json: {name} is {_cut(value)}; expected a number in [{low:g}, {high:g}]"
            )
        checked[name] = float(value)
    missing = [name for name in _REQUIRED if name not in checked]
    if missing:
        raise ParamsError(
            f"params.json lacks {', '.join(missing)}; found {sorted(values)}. "
            "These cannot be told from the tensors"
        )
    return Params(**checked)


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, n_dims: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        found = ", ".join(sorted(shapes)[:3])
        raise TensorSetError(
            f"consolidated.00.pth lacks {name}: this is not a Llama 2 model (found {found}, ...)"
        )
    if len(shape) != n_dims:
        raise TensorSetError(f"{name} has the shape {shape}; expected {n_dims} dimensions")
    return shape


def _agree(name: str, said: int | None, found: int, where: str) -> None:
    if said is not None and said != found:
        raise ParamsError(f"params.json says {name} {said}; {where} says {found}")


def _check_shard_count(rows: int, dim: int, found: int) -> None:
    """Compare the number of files with what the rows of wq in one of them say."""
    if rows * found == dim:
        return
    expected = dim // rows
    if expected * rows == dim and expected > found:
        last = expected - 1
        raise MissingShardError(
            f"consolidated.{found:02d}.pth is missing: the checkpoint has {expected} shards "
            f"(00-{last:02d}); found 00-{found - 1:02d}. Run download.sh again, it resumes"
        )
    raise TensorSetError(
        f"layers.0.attention.wq.weight has {rows} rows in consolidated.00.pth, which makes "
        f"{rows * found} in {found} shards; expected dim, that is {dim}. Are all shards of one "
        "download?"
    )
