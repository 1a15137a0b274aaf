"""Fuzz target: `.l2q` files.

The first byte of an input chooses what the others are: a whole file; the JSON of a header that is
made canonical, padded and signed, so that what it says is reached behind the model id; or a whole
file whose hashes are made right, so that `verify` reads the data behind them. Every fault must be a
Llama2qError; any other exception is a finding.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

from fuzz import scratch
from llama2q.errors import Llama2qError
from llama2q.format.header import HASH_PLACEHOLDER, METADATA, canonical_json
from llama2q.format.reader import L2qFile

WHOLE, HEADER, REHASHED = 0, 1, 2
MAX_INPUT = 1 << 16
MAX_DATA_BYTES = 1 << 20
NESTED = ("config", "licences", "recipe", "rope", "sha256", "source")
"""Keys of the metadata whose strings hold JSON."""
_VALUES = (
    *(0, 1, -1, 2, 3, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128, 4095, 4096),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**18, 10**400, -(2**63)),
    *(0.0, -0.0, 1e-5, 1e30, 1e308, 5e-324, 10000.0, True, False, None, "", "x", "0", "1", "2"),
    *("int4", "int8", "f32", "bf16", "none", "uniform", "U8", "I8", "F16", "F32", "F64", "BF16"),
    *([], {}, [0], [0, 0], [[]], {"": ""}, "pad.0", "\ud800", "\0", "0" * 64),
)  # fmt: skip


def run_one(data: bytes) -> None:
    """Read one input."""
    if not data:
        return
    kind, content = data[0] % 3, data[1:]
    if kind == HEADER:
        content = signed_file(content)
    elif kind == REHASHED:
        content = rehashed_file(content)
    path = scratch.folder() / "model.l2q"
    path.write_bytes(content)
    try:
        with L2qFile(path) as file:
            for info in (*file.tensors.values(), *file.pads):
                if file.view(info).nbytes != info.nbytes:
                    raise AssertionError(f"{info.name}: the view is not what the header says")
            for name in file.recipe.tensors:
                file.matrix(name)
            file.verify()
    except Llama2qError:
        return


def signed_file(text: bytes) -> bytes:
    """Return a file with this header, canonical and signed if it is JSON, and zeros as data."""
    try:
        header = json.loads(text)
        signed = _sign(header)
    except (ValueError, RecursionError):
        header, signed = None, text
    signed += b" " * (-(8 + len(signed)) % 4096)
    return struct.pack("<Q", len(signed)) + signed + bytes(_data_bytes(header))


def rehashed_file(content: bytes) -> bytes:
    """Return the file with the hashes of its tensors and its model id made right, if it has any."""
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if start > len(content):
        return content
    try:
        header = _open(json.loads(content[8:start]))
        hashes = header[METADATA]["sha256"]
        for name in hashes:
            begin, end = header[name]["data_offsets"]
            hashes[name] = hashlib.sha256(content[start + begin : start + end]).hexdigest()
        signed = _sign(header)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return content
    return content[:8] + signed.ljust(length) + content[start:]


def mutate(
    data: bytes, max_size: int, seed: int, mutate_bytes: Callable[[bytes, int], bytes]
) -> bytes:
    """Change an input: most of those that are a header by their JSON, the others by their bytes."""
    chance = random.Random(seed)
    if data and data[0] % 3 == HEADER and chance.random() < 0.8:
        try:
            header = _open(json.loads(data[1:]))
            for _ in range(chance.choice((1, 1, 1, 2, 3))):
                header = _changed(header, chance)
            changed = data[:1] + canonical_json(_close(header)).encode("ascii")
        except (ValueError, RecursionError):
            changed = b""
        if changed and len(changed) <= max_size:
            return changed
    return bytes(mutate_bytes(data, max_size))


def _sign(header: Any) -> bytes:
    header = _close(_open(header))
    metadata = header.get(METADATA) if isinstance(header, dict) else None
    if isinstance(metadata, dict) and "model_id" in metadata:
        metadata["model_id"] = HASH_PLACEHOLDER
        blank = canonical_json(header).encode("ascii")
        blank += b" " * (-(8 + len(blank)) % 4096)
        metadata["model_id"] = hashlib.sha256(blank).hexdigest()
    return canonical_json(header).encode("ascii")


def _data_bytes(header: Any) -> int:
    """Return the data's size that the tensors say, within bounds."""
    ends = [0]
    for entry in header.values() if isinstance(header, dict) else ():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list):
            ends += [end for end in offsets if type(end) is int]
    return min(max(ends), MAX_DATA_BYTES)


def _open(header: Any) -> Any:
    """Parse the JSON strings inside the metadata."""
    metadata = header.get(METADATA) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        return header
    opened = dict(metadata)
    for key in NESTED:
        try:
            opened[key] = json.loads(metadata[key])
        except (KeyError, TypeError, ValueError, RecursionError):
            continue
    return {**header, METADATA: opened}


def _close(header: Any) -> Any:
    """Undo `_open`."""
    metadata = header.get(METADATA) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        return header
    closed = {
        key: canonical_json(value) if key in NESTED and not isinstance(value, str) else value
        for key, value in metadata.items()
    }
    return {**header, METADATA: closed}


def _changed(value: Any, chance: random.Random) -> Any:
    """Change one place somewhere below a JSON value."""
    if isinstance(value, dict) and value and chance.random() < 0.95:
        key = chance.choice(sorted(value))
        action = chance.random()
        changed = dict(value)
        if action < 0.85:
            changed[key] = _changed(value[key], chance)
        elif action < 0.9:
            del changed[key]
        elif action < 0.95:
            changed[key + chance.choice(("", "x", ".", "\0"))] = changed.pop(key)
        else:
            changed[chance.choice(("", "x", key + "2", "layers.9.x"))] = value[key]
        return changed
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    if type(value) is int and chance.random() < 0.5:
        return value + chance.choice((-64, -16, -1, 1, 16, 64, value))
    if isinstance(value, str) and value and chance.random() < 0.3:
        at = chance.randrange(len(value))
        return (
            value[:at] + chr(chance.choice((0, 48, 57, 97, 102, 255, 0x10FFFF))) + value[at + 1 :]
        )
    return chance.choice(_VALUES)
