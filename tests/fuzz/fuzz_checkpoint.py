"""Fuzz target: Meta's download, that is the shards (zip and pickle) and params.json.

The first byte of an input chooses what the others are. Every fault must be a Llama2qError; any
other exception is a finding.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable

from fuzz import scratch
from llama2q.config import ModelConfig
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.converter.params import derive_config, read_params
from llama2q.converter.pth import ShardFile
from llama2q.errors import Llama2qError

SHARD, PICKLE, PARAMS = 0, 1, 2
MAX_INPUT = 1 << 16
SHAPES = tensor_shapes(
    ModelConfig(
        dim=16, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=4, norm_eps=1e-5
    )
)
STORAGES = {"0": bytes(24), "1": bytes(range(32))}
_NUMBERS = (0, 1, -1, 2, 3, 16, 48, 2**31 - 1, 2**31, 2**63, 10**18, -(2**31))
_VALUES = (
    *_NUMBERS,
    1e-5,
    1e308,
    -0.0,
    0.5,
    1.3,
    "",
    "x",
    None,
    True,
    False,
    [],
    {},
    [1],
    {"a": 1},
)


def run_one(data: bytes) -> None:
    """Read one input."""
    if not data:
        return
    kind, body = data[0] % 3, data[1:]
    try:
        if kind == PARAMS:
            _read_params(body)
        else:
            _read_shard(body if kind == SHARD else archive_of(body))
    except Llama2qError:
        return


def archive_of(data_pkl: bytes) -> bytes:
    """Return an archive that is right but for what its pickle says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", data_pkl)
        for key, storage in STORAGES.items():
            file.writestr(f"archive/data/{key}", storage)
    return buffer.getvalue()


def mutate(
    data: bytes, max_size: int, seed: int, mutate_bytes: Callable[[bytes, int], bytes]
) -> bytes:
    """Change an input: half of those of params.json by their JSON, the others by their bytes."""
    chance = random.Random(seed)
    if data and data[0] % 3 == PARAMS and chance.random() < 0.5:
        try:
            values = json.loads(data[1:])
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict) and values:
            values[chance.choice(sorted(values))] = chance.choice(_VALUES)
            if chance.random() < 0.2:
                del values[chance.choice(sorted(values))]
            changed = data[:1] + json.dumps(values).encode()
            if len(changed) <= max_size:
                return changed
    return bytes(mutate_bytes(data, max_size))


def _read_shard(content: bytes) -> None:
    path = scratch.folder() / "consolidated.00.pth"
    path.write_bytes(content)
    with ShardFile(path) as shard:
        for tensor in shard.tensors.values():
            array = tensor.array()
            if (
                array.shape != tensor.shape
                or array.nbytes != tensor.nbytes
                or array.flags.writeable
            ):
                raise AssertionError(f"{tensor.name}: the array is not what the shard says")
            array.ravel().view("u1").sum()
            tensor.release()
        for name in shard.tensors:
            shard.check_crc(name)


def _read_params(content: bytes) -> None:
    path = scratch.folder() / "params.json"
    path.write_bytes(content)
    params = read_params(path)
    for n_shards in (1, 2):
        try:
            derive_config(params, SHAPES, n_shards)
        except Llama2qError:
            continue
