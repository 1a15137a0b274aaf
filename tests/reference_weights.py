"""Weights for the references, read without the package: Meta's `.pth` and our `.l2q`.

Everything here is written from the format's description alone (DESIGN.md section 4), so that a
fault in the package's own readers and packers cannot hide itself.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
BAND_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Hyperparameters under Meta's names, in elements."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    norm_eps: float = 1e-5
    max_seq_len: int = 4096
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


@dataclass(frozen=True)
class Dense:
    """A matrix whose stored values are exact. values : float32, (rows, cols)."""

    values: Array
    dtype: str = "f32"
    """Type in which the file holds it: f32, f16 or bf16."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape  # type: ignore[return-value]

    @cached_property
    def float64(self) -> Array:
        return self.values.astype(np.float64)

    @cached_property
    def magnitude(self) -> Array:
        return np.abs(self.float64)


@dataclass(frozen=True)
class Quantized:
    """A matrix of small integers and scales.

    values : int8, (rows, cols), the grid's values (int4) or the codes (int8)
    scales : float16, (rows, ceil(cols / group_size))
    """

    values: Array
    scales: Array
    group_size: int
    grid: Array | None = None
    """int8, (16,) for int4; None for int8."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape  # type: ignore[return-value]

    @cached_property
    def float64(self) -> Array:
        scales = np.repeat(self.scales.astype(np.float64), self.group_size, axis=1)
        return self.values.astype(np.float64) * scales[:, : self.values.shape[1]]

    @cached_property
    def magnitude(self) -> Array:
        return np.abs(self.float64)


Matrix: TypeAlias = Dense | Quantized


@dataclass(frozen=True)
class Weights:
    """A whole model: matrices and norms (float32) under Meta's names."""

    shape: Shape
    matrices: dict[str, Matrix]
    norms: dict[str, Array] = field(default_factory=dict)


def widen_bf16(bits: Array) -> Array:
    """Return float32 of bfloat16 given as uint16, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# --- Meta's form ------------------------------------------------------------------------------

_STORAGES = {"FloatStorage": "f32", "HalfStorage": "f16", "BFloat16Storage": "bf16"}
_NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


class _Unpickler(pickle.Unpickler):
    """Turn `torch.save`'s pickle into (dtype, storage key, offset, shape, stride) tuples."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: (*storage, offset, shape, stride)
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        return pid[1], pid[2]


def read_pth(path: Path) -> tuple[dict[str, Array], str]:
    """Return the tensors of one shard, widened to float32, and their stored type."""
    tensors: dict[str, Array] = {}
    dtypes = set()
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        with archive.open(f"{root}/data.pkl") as stream:
            entries = _Unpickler(stream).load()
        for name, (dtype, key, offset, shape, stride) in entries.items():
            flat = np.frombuffer(archive.read(f"{root}/data/{key}"), _NUMPY[dtype])[offset:]
            strides = [flat.itemsize * step for step in stride]
            view = np.lib.stride_tricks.as_strided(flat, shape, strides)
            wide = widen_bf16(view) if dtype == "bf16" else view.astype(np.float32)
            tensors[name] = np.ascontiguousarray(wide)
            dtypes.add(dtype)
    (dtype,) = dtypes
    return tensors, dtype


def load_meta(folder: Path) -> Weights:
    """Read a one-shard checkpoint folder."""
    params = json.loads((folder / "params.json").read_text())
    tensors, dtype = read_pth(folder / "consolidated.00.pth")
    tensors.pop("rope.freqs", None)
    shape = Shape(
        dim=params["dim"],
        hidden_dim=tensors["layers.0.feed_forward.w1.weight"].shape[0],
        n_layers=params["n_layers"],
        n_heads=params["n_heads"],
        n_kv_heads=params.get("n_kv_heads") or params["n_heads"],
        vocab_size=tensors["tok_embeddings.weight"].shape[0],
        norm_eps=params["norm_eps"],
    )
    norms = {name: value for name, value in tensors.items() if value.ndim == 1}
    matrices: dict[str, Matrix] = {
        name: Dense(value, dtype) for name, value in tensors.items() if value.ndim == 2
    }
    return Weights(shape, matrices, norms)


# --- the band layout --------------------------------------------------------------------------


def unband_int4(codes: Array) -> Array:
    """Codes uint8 (n_bands, K/8, 64) to (16 * n_bands, K)."""
    bands, steps, _ = codes.shape
    bytes_ = codes.reshape(bands, steps, BAND_ROWS, 4)
    both = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=3)
    return both.transpose(0, 2, 1, 3).reshape(bands * BAND_ROWS, steps * 8)


def unband_int8(codes: Array) -> Array:
    """Codes int8 (n_bands, K/4, 64) to (16 * n_bands, K)."""
    bands, steps, _ = codes.shape
    split = codes.reshape(bands, steps, BAND_ROWS, 4)
    return split.transpose(0, 2, 1, 3).reshape(bands * BAND_ROWS, steps * 4)


def unband_columns(values: Array) -> Array:
    """(n_bands, K, 16), dense values or scales, to (16 * n_bands, K)."""
    bands, columns, _ = values.shape
    return values.transpose(0, 2, 1).reshape(bands * BAND_ROWS, columns)


def _padded(values: Array, columns_multiple: int) -> Array:
    rows, columns = values.shape
    pad_columns = -columns % columns_multiple
    return np.pad(values, ((0, -rows % BAND_ROWS), (0, pad_columns)))


def band_int4(codes: Array, group_size: int) -> Array:
    """Codes uint8 (rows, cols) in 0..15 to (n_bands, K/8, 64); padding has code 0."""
    wide = _padded(codes, group_size)
    split = wide.reshape(-1, BAND_ROWS, wide.shape[1] // 8, 8).transpose(0, 2, 1, 3)
    packed = split[..., :4] | (split[..., 4:] << 4)
    return np.ascontiguousarray(packed.reshape(*packed.shape[:2], 64))


def band_int8(codes: Array, group_size: int) -> Array:
    """Codes int8 (rows, cols) to (n_bands, K/4, 64)."""
    wide = _padded(codes, group_size)
    split = wide.reshape(-1, BAND_ROWS, wide.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(split.reshape(*split.shape[:2], 64))


def band_columns(values: Array) -> Array:
    """Dense values or scales (rows, K) to (n_bands, K, 16)."""
    wide = _padded(values, 1)
    split = wide.reshape(-1, BAND_ROWS, wide.shape[1])
    return np.ascontiguousarray(split.transpose(0, 2, 1))


# --- .l2q -------------------------------------------------------------------------------------

_SAFETENSORS = {
    "U8": np.uint8, "I8": np.int8, "F16": np.float16, "BF16": np.uint16,
    "F32": np.float32, "F64": np.float64,
}  # fmt: skip


def _cut(matrix: Matrix, rows: int, cols: int) -> Matrix:
    """Drop the padding."""
    if isinstance(matrix, Dense):
        return Dense(matrix.values[:rows, :cols], matrix.dtype)
    return Quantized(
        matrix.values[:rows, :cols], matrix.scales[:rows], matrix.group_size, matrix.grid
    )


def _dense_of(values: Array) -> Dense:
    if values.dtype == np.uint16:
        return Dense(widen_bf16(values), "bf16")
    return Dense(values.astype(np.float32), "f16" if values.dtype == np.float16 else "f32")


def load_l2q(path: Path) -> Weights:
    """Read a `.l2q` file's weights as stored."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    shape = Shape(**json.loads(metadata["config"]))
    recipe = json.loads(metadata["recipe"])["tensors"]
    grids = {
        "uniform": np.arange(-8, 8, dtype=np.int8),
        "nonuniform": np.array(
            [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
        ),
    }

    def array(name: str) -> Array:
        entry = header[name]
        begin, end = entry["data_offsets"]
        raw = data[8 + length + begin : 8 + length + end]
        return np.frombuffer(raw, _SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])

    def matrix(name: str, rows: int, cols: int, first: int = 0, step: int = 1) -> Matrix:
        bands = slice(first, None, step)
        if name in header:
            return _cut(_dense_of(unband_columns(array(name)[bands])), rows, cols)
        codes, scales = array(f"{name}.codes")[bands], array(f"{name}.scales")[bands]
        how = recipe[name]
        flat_scales = unband_columns(scales)
        if how["type"] == "int4":
            grid = grids[how["grid"]]
            values = grid[unband_int4(codes)]
            return _cut(Quantized(values, flat_scales, how["group_size"], grid), rows, cols)
        return _cut(Quantized(unband_int8(codes), flat_scales, how["group_size"]), rows, cols)

    embeddings = "tok_embeddings.weight"
    matrices: dict[str, Matrix] = {}
    if embeddings in header:
        matrices[embeddings] = _dense_of(array(embeddings))
    else:
        group = recipe[embeddings]["group_size"]
        scales = array(f"{embeddings}.scales")
        matrices[embeddings] = Quantized(array(f"{embeddings}.codes"), scales, group)
    dim, hidden, kv_dim = shape.dim, shape.hidden_dim, shape.n_kv_heads * shape.head_dim
    norms = {"norm.weight": array("norm.weight")}
    for layer in range(shape.n_layers):
        prefix = f"layers.{layer}."
        for name, rows in (("wq", dim), ("wk", kv_dim), ("wv", kv_dim), ("wo", dim)):
            full = f"{prefix}attention.{name}.weight"
            matrices[full] = matrix(full, rows, dim)
        joined = f"{prefix}feed_forward.w1_w3.weight"
        for first, name in enumerate(("w1", "w3")):
            full = f"{prefix}feed_forward.{name}.weight"
            matrices[full] = matrix(joined, hidden, dim, first, 2)
        down = f"{prefix}feed_forward.w2.weight"
        matrices[down] = matrix(down, dim, hidden)
        for name in ("attention_norm.weight", "ffn_norm.weight"):
            norms[prefix + name] = array(prefix + name)
    matrices["output.weight"] = matrix("output.weight", shape.vocab_size, dim)
    return Weights(shape, matrices, norms)
