"""Sessions as files: token ids, and the keys and values that were computed for them.

A file is safetensors in the canonical form of `.l2q` files (padded, sorted, without holes):

- `__metadata__`: `format`, `version`; what the keys and values are bound to: `model_id`,
  `kv_dtype`, `rope` (the scaling that acts, JSON), `computed_by` (version and device); `n_cached`,
  how many tokens of the text have keys and values here
- `token_ids` U8 `[n_tokens, 4]`: int32, little-endian; absent where there is none
- `kv` U8 `[n_blocks, block_bytes]`: per block and layer K, V, and for int8 the scales of K and of
  V, as they lie in the cache; absent where `n_cached` is 0. Zeros behind `n_cached`
- `sha256` U8 `[32]`: of all bytes before it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.engine import Engine
from llama2q.errors import HeaderError, SessionFileError, TensorLayoutError
from llama2q.files import private_file
from llama2q.format.header import LENGTH_BYTES, ParsedHeader, build_header, parse_header
from llama2q.format.layout import TensorSpec, place
from llama2q.kv_blocks import BLOCK, blocks_for
from llama2q.kv_sequence import Sequence as CachedSequence

FORMAT = "llama2q session"
VERSION = "1"
MAX_HEADER_BYTES = 64 * 1024
_ELEMENT_BYTES = {"f32": 4, "f16": 2, "int8": 1}
_HASH = TensorSpec("sha256", "U8", (32,))
_KEYS = {"format", "version", "model_id", "kv_dtype", "rope", "computed_by", "n_cached"}


@dataclass(frozen=True, slots=True)
class StoredText:
    """What `load` returns.

    Parameters
    ----------
    ids : list of int
        The text.
    sequence : Sequence or None
        A beginning of it in the cache, parked; it is published to nobody, as only whoever wrote the
        file knows how it was computed.
    """

    ids: list[int]
    sequence: CachedSequence | None


def binding_of(engine: Engine) -> dict[str, str]:
    """Return what keys and values depend on beside the tokens."""
    shares = [f"{share.name} ({share.n_layers})" for share in engine.plan.devices]
    return {
        "model_id": engine.file.model_id,
        "kv_dtype": engine.kv_dtype,
        "rope": json.dumps(engine.plan.rope.to_dict(), sort_keys=True),
        "computed_by": f"llama2q {_core.__version__}, {' + '.join(shares) or 'cpu'}",
    }


def save(
    engine: Engine, path: Path, ids: list[int], sequence: CachedSequence | None, n_cached: int
) -> None:
    """Write a text and the keys and values of its first tokens.

    The file appears whole or not at all; what had its name is replaced.

    Parameters
    ----------
    engine : Engine
    path : Path
    ids : list of int
    sequence : Sequence or None
        Holds `n_cached` tokens of the text at least.
    n_cached : int
    """
    blocks = () if sequence is None else sequence.blocks[: blocks_for(n_cached)]
    placed = place(_specs(len(ids), len(blocks), engine.block_bytes))
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        **binding_of(engine),
        "n_cached": str(n_cached),
    }
    with private_file(path) as file:  # a session holds what was said
        digest = hashlib.sha256()
        for data in (
            build_header(placed, metadata),
            np.array(ids, "<i4").tobytes() + bytes(-4 * len(ids) % 64),
            *_read(engine, blocks, n_cached),
        ):
            digest.update(data)
            file.write(data)
        file.write(digest.digest() + bytes(32))


def load(engine: Engine, path: Path) -> StoredText:
    """Read a text, and put its keys and values into the cache.

    They are left out, and computed again when needed, where another version or device computed
    them, which may differ in the last bits.

    Raises
    ------
    SessionFileError
        If the file is damaged, or of another model, KV cache type or RoPE, or its text is longer
        than the context.
    KvCacheFullError
        If there is no room in the cache.
    """
    with path.open("rb") as file:
        try:
            return _load(engine, file)
        except (SessionFileError, HeaderError, TensorLayoutError) as error:
            raise SessionFileError(f"{path}: {error}") from error


def _load(engine: Engine, file: BinaryIO) -> StoredText:
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256()

    def read(n_bytes: int) -> bytes:
        data = file.read(n_bytes)
        if len(data) < n_bytes:
            raise SessionFileError("it is truncated; save the session again")
        digest.update(data)
        return data

    prefix = file.read(LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > min(size, MAX_HEADER_BYTES):
        raise SessionFileError("this is no saved session")
    digest.update(prefix)
    header = parse_header(read(length))
    _check_binding(engine, header)
    n_tokens, n_cached = _check_shapes(engine, header)
    if size != header.file_bytes:
        raise SessionFileError(
            f"it has {size} bytes, expected {header.file_bytes}: truncated or changed; save the "
            "session again"
        )
    raw = read(-(-4 * n_tokens // 64) * 64)
    ids = np.frombuffer(raw, "<i4", n_tokens)
    if n_tokens:
        _check_ids(engine, ids)
    text = [int(token) for token in ids]
    is_usable = header.metadata["computed_by"] == binding_of(engine)["computed_by"]
    sequence = _restore(engine, text[:n_cached], read, is_usable=is_usable)
    try:
        if file.read(64) != digest.digest() + bytes(32):
            raise SessionFileError("its data does not match its hash: it was damaged or changed")
    except BaseException:
        if sequence is not None:
            sequence.release()
        raise
    if sequence is not None:
        sequence.park()
    return StoredText(text, sequence)


def _check_binding(engine: Engine, header: ParsedHeader) -> None:
    found = header.metadata
    if found.get("format") != FORMAT:
        raise SessionFileError("this is no saved session")
    if found.get("version") != VERSION or set(found) != _KEYS:
        raise SessionFileError(
            f"it is of version {found.get('version')!r:.20}; this one reads {VERSION}"
        )
    for key, expected in binding_of(engine).items():
        if found[key] != expected and key != "computed_by":
            raise SessionFileError(
                f"its {key} is {found[key]!r:.80}; that of the loaded model is {expected!r:.80}"
            )


def _check_shapes(engine: Engine, header: ParsedHeader) -> tuple[int, int]:
    """Return the numbers of tokens and of cached tokens; the tensors are those that fit them."""
    shapes = {tensor.spec.name: tensor.spec.shape for tensor in header.tensors}
    n_tokens = shapes.get("token_ids", (0,))[0]
    text = header.metadata["n_cached"]
    n_cached = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if str(n_cached) != text or not 0 <= n_cached <= n_tokens:
        raise SessionFileError(f"n_cached is {text!r:.20}; expected 0 to {n_tokens}")
    if n_tokens > engine.n_ctx:
        raise SessionFileError(
            f"the text has {n_tokens} tokens; the context holds {engine.n_ctx}: load the model "
            "with a larger n_ctx"
        )
    specs = _specs(n_tokens, blocks_for(n_cached), engine.block_bytes)
    if header.tensors != place(specs):
        raise SessionFileError("its tensors are not those of a session of this model")
    return n_tokens, n_cached


def _check_ids(engine: Engine, ids: NDArray[np.int32]) -> None:
    if ids.min() < 0 or ids.max() >= engine.config.vocab_size:
        raise SessionFileError(
            f"it holds token ids from {ids.min()} to {ids.max()}; the vocabulary has "
            f"{engine.config.vocab_size}"
        )


def _restore(
    engine: Engine, ids: list[int], read: Callable[[int], bytes], *, is_usable: bool
) -> CachedSequence | None:
    """Read the keys and values; put them into the cache if they are of use."""
    if not ids:
        return None
    sequence = CachedSequence(engine.pool, len(ids), begins=(), most_public=0, wait=True)
    try:
        sequence.ensure(len(ids))
        for block in sequence.blocks:
            data = np.frombuffer(read(engine.block_bytes), np.uint8)
            if is_usable:
                engine.write_block(block, data)
        sequence.append(ids)
    except BaseException:
        sequence.release()
        raise
    if is_usable:
        return sequence
    sequence.release()
    return None


def _specs(n_tokens: int, n_blocks: int, block_bytes: int) -> list[TensorSpec]:
    specs = [
        TensorSpec("token_ids", "U8", (n_tokens, 4)),
        TensorSpec("kv", "U8", (n_blocks, block_bytes)),
    ]
    return [*(spec for spec in specs if spec.nbytes), _HASH]


def _read(engine: Engine, blocks: tuple[int, ...], n_cached: int) -> Iterator[bytes]:
    for start, block in zip(range(0, n_cached, BLOCK), blocks, strict=True):
        data = engine.read_block(block)
        _erase(engine, data, n_cached - start)
        yield data.tobytes()


def _erase(engine: Engine, data: NDArray[np.uint8], n_kept: int) -> None:
    """Zero all but the first positions of a block: the others may be of what was taken back."""
    config = engine.config
    widths = [config.head_dim * _ELEMENT_BYTES[engine.kv_dtype]] * 2
    if engine.kv_dtype == "int8":
        widths += [2, 2]
    at = 0
    layers = data.reshape(config.n_layers, -1)
    for width in widths:
        n_bytes = config.n_kv_heads * BLOCK * width
        part = layers[:, at : at + n_bytes].reshape(-1, config.n_kv_heads, BLOCK, width)
        part[:, :, n_kept:] = 0
        at += n_bytes
