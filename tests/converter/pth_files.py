"""Builders of shards and checkpoint folders, good and bad, for the tests."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.converter.pth import ShardFile
from llama2q.converter.pth_writer import write_pth
from llama2q.errors import CheckpointError
from synthetic_shapes import SyntheticShape

SMALL = SyntheticShape(dim=16, n_layers=2, n_heads=4, n_kv_heads=2, multiple_of=8, vocab_size=4096)
"""A model with the vocabulary of the demo tokenizer that can be split into 1, 2, 4 or 8 shards."""

Make = Callable[..., Path]
"""The type of the fixture `make`."""

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def storage(numel: int = 6, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """Pickle code of a storage."""
    named = f"ctorch\n{kind}\n".encode()
    return tuple_of(text("storage"), named, text(key), text("cpu"), integer(numel)) + b"Q"


def tensor(
    stored: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    *,
    hooks: bytes = ORDERED_DICT,
) -> bytes:
    """Pickle code of a tensor."""
    return (
        REBUILD
        + tuple_of(
            storage() if stored is None else stored,
            integer(offset),
            tuple_of(*map(integer, shape)),
            tuple_of(*map(integer, strides)),
            b"\x89",
            hooks,
        )
        + b"R"
    )


def dict_pickle(**values: bytes) -> bytes:
    """Pickle of a dict of pickle code."""
    items = b"".join(text(name) + code for name, code in values.items())
    return b"\x80\x02}(" + items + b"u."


def archive(
    path: Path,
    data_pkl: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    root: str = "archive",
    extra: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write an archive with Python's zipfile; storage "0" holds 6 floats by default."""
    if storages is None:
        storages = {"0": np.arange(6, dtype="<f4").tobytes()}
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", data_pkl)
        for key, data in storages.items():
            file.writestr(f"{root}/data/{key}", data)
        for name, data in (extra or {}).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile warns of duplicate names
                file.writestr(name, data)
    return path


def torch_pickle(
    monkeypatch: pytest.MonkeyPatch, tensors: Mapping[str, NDArray[np.float32]], protocol: int
) -> bytes:
    """Pickle float32 tensors as torch.save does, with Python's pickler and stand-in modules."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    kind = type("FloatStorage", (), {"__module__": "torch"})

    def _rebuild_tensor_v2(*arguments: object) -> None:
        raise AssertionError("nothing may be called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    torch.FloatStorage, utils._rebuild_tensor_v2 = kind, _rebuild_tensor_v2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Storage:
        def __init__(self, key: int, numel: int) -> None:
            self.id = ("storage", kind, str(key), "cpu", numel)

    class Tensor:
        def __init__(self, key: int, array: NDArray[np.float32]) -> None:
            strides = tuple(stride // array.itemsize for stride in array.strides)
            self.arguments = (
                Storage(key, array.size), 0, array.shape, strides, False, OrderedDict(),
            )  # fmt: skip

        def __reduce__(self) -> tuple[Any, ...]:
            return _rebuild_tensor_v2, self.arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return value.id if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    wrapped = {name: Tensor(key, array) for key, (name, array) in enumerate(tensors.items())}
    Pickler(buffer, protocol).dump(wrapped)
    return buffer.getvalue()


def small_tensors(seed: int = 0, shape: SyntheticShape = SMALL) -> dict[str, NDArray[np.uint16]]:
    """Random bf16 bits for every tensor of the small model."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(0, 0x4000, size, dtype=np.uint16)
        for name, size in tensor_shapes(shape.config).items()
    }


def small_checkpoint(
    folder: Path,
    tokenizer: Path,
    *,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    dtype: str = "bf16",
    params: Mapping[str, object] | None = None,
) -> Path:
    """Write the small model in one shard, with the changes asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = small_tensors() if tensors is None else tensors
    write_pth(folder / "consolidated.00.pth", chosen, dtype)
    values = SMALL.params if params is None else params
    (folder / "params.json").write_text(json.dumps(values), encoding="utf-8")
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    return folder


def refused(path: Path, error: type[CheckpointError], match: str) -> None:
    """Expect that opening a shard raises this error."""
    with pytest.raises(error, match=match), ShardFile(path):
        pass


def checkpoint_refused(folder: Path, error: type[Exception], match: str) -> None:
    """Expect that opening a checkpoint raises this error."""
    with pytest.raises(error, match=match), MetaCheckpoint.open(folder):
        pass


def rewrite_params(folder: Path, **changes: object) -> Path:
    """Change keys of params.json; None removes one."""
    path = folder / "params.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder
