"""Small `.l2q` files for tests, and ways to damage them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llama2q.config import ModelConfig
from llama2q.format import Recipe, Writer
from llama2q.format.header import HASH_PLACEHOLDER, canonical_json
from llama2q.format.metadata import Metadata
from llama2q.format.writer import write_model
from numpy_quantizers import SMALL, TOKENIZER, encode_random, random_weights

Header = dict[str, Any]


def norm(spec: Any) -> Any:
    """Return the random weights of a norm."""
    return random_weights(spec.name, 1, spec.shape[0])[0]


def write_small(
    path: Path,
    quant: str = "int4",
    *,
    config: ModelConfig = SMALL,
    group_size: int = 64,
    grid: str = "nonuniform",
    dtype: str = "f32",
) -> str:
    """Write a whole model of random weights; return its model id."""
    recipe = Recipe.for_model(config, quant, group_size=group_size, grid=grid, dtype=dtype)
    with Writer(path, Metadata(config, recipe), TOKENIZER, overwrite=True) as writer:
        write_model(writer, encode_random, norm)
        return writer.finish()


def split_file(data: bytes) -> tuple[Header, bytes]:
    """Return the header's object and the data section."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_file(header: Header, data: bytes, *, sign: bool = True, multiple: int = 4096) -> bytes:
    """Build a file from a header's object; `sign` writes the right model id into it."""
    if sign and "model_id" in header.get("__metadata__", {}):
        import hashlib

        header["__metadata__"]["model_id"] = HASH_PLACEHOLDER
        blank = pad_text(canonical_json(header), multiple)
        header["__metadata__"]["model_id"] = hashlib.sha256(blank).hexdigest()
    text = pad_text(canonical_json(header), multiple)
    return struct.pack("<Q", len(text)) + text + data


def pad_text(text: str, multiple: int = 4096) -> bytes:
    """Pad a header's text with spaces, as the format demands."""
    encoded = text.encode("ascii")
    return encoded + b" " * (-(8 + len(encoded)) % multiple)


def edit_header(path: Path, edit: Callable[[Header], None], *, sign: bool = True) -> None:
    """Change the header's object and write the file again."""
    header, data = split_file(path.read_bytes())
    edit(header)
    path.write_bytes(join_file(header, data, sign=sign))


def edit_metadata(path: Path, key: str, edit: Callable[[Any], Any]) -> None:
    """Change one JSON value of the metadata and write the file again."""

    def change(header: Header) -> None:
        metadata = header["__metadata__"]
        metadata[key] = canonical_json(edit(json.loads(metadata[key])))

    edit_header(path, change)


def overwrite_tensor(path: Path, name: str, index: int, value: int, *, rehash: bool) -> None:
    """Set one byte of a tensor; `rehash` makes hash and model id right again."""
    import hashlib

    header, data = split_file(path.read_bytes())
    begin, end = header[name]["data_offsets"]
    changed = bytearray(data)
    changed[begin + index] = value
    if rehash and name in json.loads(header["__metadata__"]["sha256"]):
        hashes = json.loads(header["__metadata__"]["sha256"])
        hashes[name] = hashlib.sha256(changed[begin:end]).hexdigest()
        header["__metadata__"]["sha256"] = canonical_json(hashes)
    path.write_bytes(join_file(header, bytes(changed)))


def tensor_bytes(path: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a tensor's bytes by the header alone."""
    header, data = split_file(path.read_bytes())
    begin, end = header[name]["data_offsets"]
    return np.frombuffer(data[begin:end], dtype=np.uint8)


def metadata(quant: str = "int4", **arguments: Any) -> Metadata:
    return Metadata(SMALL, Recipe.for_model(SMALL, quant, **arguments))


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".part.journal")


class StopAt:
    """Raises or kills at the n-th part of the model; counts the matrices encoded."""

    def __init__(self, number: int, what: BaseException | None = None) -> None:
        self.left = number
        self.what = what
        self.encoded = 0

    def before(self, part: Any) -> None:
        if self.left == 0 and self.what is not None:
            raise self.what
        self.left -= 1

    def encode(self, matrix: Any) -> Any:
        self.encoded += 1
        return encode_random(matrix)


def run(path: Path, stop: StopAt, fingerprint: str = "f", **arguments: Any) -> str:
    """Write the small model; `stop` may interrupt."""
    with Writer(
        path, metadata(**arguments), TOKENIZER, fingerprint=fingerprint, overwrite=True
    ) as writer:
        write_model(writer, stop.encode, norm, stop.before)
        return writer.finish()
