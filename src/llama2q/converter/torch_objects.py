"""The few torch objects that a checkpoint's pickle may describe, as plain data.

Functions here say what torch's own would have built; they raise `RefusedError` for anything but
dense tensors. Source: torch/_utils.py and torch/serialization.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_DIMS = 8
MAX_ELEMENTS = 1 << 48

DTYPE_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of an element by dtype name."""


class RefusedError(Exception):
    """The pickle asks for something else; the text completes "it asks for ..."."""


class Global(Enum):
    """The globals that may be named; none of them is ever looked up."""

    FLOAT_STORAGE = ("torch", "FloatStorage")
    HALF_STORAGE = ("torch", "HalfStorage")
    BFLOAT16_STORAGE = ("torch", "BFloat16Storage")
    REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
    REBUILD_PARAMETER = ("torch._utils", "_rebuild_parameter")
    ORDERED_DICT = ("collections", "OrderedDict")


_STORAGE_DTYPES = {
    Global.FLOAT_STORAGE: "f32",
    Global.HALF_STORAGE: "f16",
    Global.BFLOAT16_STORAGE: "bf16",
}


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage that the pickle refers to: entry `data/KEY` with `numel` elements."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage; offset and strides in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def find_global(module: object, name: object) -> Global:
    """Return the global of this name, if it is one of the list."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise RefusedError(f"a global named by {kind(module)} and {kind(name)}")
    try:
        return Global((module, name))
    except ValueError:
        shown = f"{module[:80]}.{name[:80]}"
        raise RefusedError(f"the global {shown!a}") from None


def load_storage(persistent_id: object) -> StorageRef:
    """Turn ("storage", storage type, key, location, numel) into a reference."""
    match persistent_id:
        case ("storage", Global() as storage_type, str(key), str(), int(numel)):
            pass
        case _:
            raise RefusedError(f"a persistent id of another form ({kind(persistent_id)})")
    dtype = _STORAGE_DTYPES.get(storage_type)
    if dtype is None:
        raise RefusedError(f"a storage of the type {kind(storage_type)}")
    if type(numel) is not int or not 0 <= numel <= MAX_ELEMENTS:
        raise RefusedError(f"a storage of {numel} elements")
    if not (key.isascii() and key.isdecimal() and len(key) <= 12):
        raise RefusedError(f"a storage with the key {key[:80]!a}")
    return StorageRef(dtype, key, numel)


def call(function: object, arguments: object) -> dict[str, object] | TensorRef:
    """Return what a call of an allowed global describes."""
    match function, arguments:
        case (Global.ORDERED_DICT, ()):
            return {}
        case (
            Global.REBUILD_PARAMETER,
            (TensorRef() as tensor, bool(), {} | None as hooks),
        ) if not hooks:
            return tensor
        case (
            Global.REBUILD_TENSOR,
            (
                StorageRef() as storage,
                int(offset),
                tuple(shape),
                tuple(strides),
                bool(),
                {} | None as hooks,
                *metadata,
            ),
        ) if not hooks and len(metadata) <= 1 and not any(metadata):
            return _tensor(storage, offset, shape, strides)
        case (Global(), _):
            raise RefusedError(f"{kind(function)} with arguments of another form")
        case _:
            raise RefusedError(f"a call of {kind(function)}")


def build(target: object, state: object) -> object:
    """Drop the `_metadata` that torch hangs on a module's state_dict; refuse all else."""
    match target, state:
        case (dict(), {"_metadata": dict(), **rest}) if not rest:
            return target
        case _:
            raise RefusedError(f"BUILD of {kind(target)} from {kind(state)}")


def kind(value: object) -> str:
    """Describe a value without showing it (nested data may be huge when printed)."""
    if isinstance(value, Global):
        return ".".join(value.value)
    if isinstance(value, TensorRef):
        return "a tensor"
    if isinstance(value, StorageRef):
        return "a bare storage"
    return "None" if value is None else f"a Python {type(value).__name__}"


def _tensor(
    storage: StorageRef, offset: int, shape: tuple[object, ...], strides: tuple[object, ...]
) -> TensorRef:
    if len(shape) > MAX_DIMS or len(strides) != len(shape):
        raise RefusedError(f"a tensor of {len(shape)} dimensions and {len(strides)} strides")
    return TensorRef(
        storage, _extent(offset), tuple(map(_extent, shape)), tuple(map(_extent, strides))
    )


def _extent(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ELEMENTS:
        shown = value if type(value) is int else kind(value)
        raise RefusedError(f"a tensor whose offset, size or stride is {shown}")
    return value
