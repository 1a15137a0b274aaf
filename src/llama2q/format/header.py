"""The header of a `.l2q` file as bytes: canonical JSON, its padding and the model id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llama2q.errors import HeaderError, TensorLayoutError
from llama2q.format.layout import (
    ALIGNMENT,
    DATA_ALIGNMENT,
    PlacedTensor,
    TensorSpec,
    is_pad,
)
from llama2q.quant.quant_type import NUMPY_DTYPES

LENGTH_BYTES = 8
"""The file starts with the header's length: unsigned, 64 bits, little-endian."""
MAX_HEADER_BYTES = 16 * 1024 * 1024
METADATA = "__metadata__"
HASH_PLACEHOLDER = "0" * 64
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


def canonical_json(value: Any) -> str:
    """Return JSON without blanks, keys sorted, ASCII: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def parse_json(text: str, what: str) -> Any:
    """Parse canonical JSON; `what` names it in errors.

    Raises
    ------
    HeaderError
        Not JSON, a key twice in one object, NaN or Infinity, or not the canonical form.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                raise HeaderError(f"{what} has the key {name!r} twice in one object")
            values[name] = value
        return values

    def refuse(constant: str) -> Any:
        raise HeaderError(f"{what} holds {constant}, which is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{what} is not valid JSON: {error}") from error
    if canonical != text:
        raise HeaderError(
            f"{what} is not canonical JSON (no blanks, keys sorted, ASCII); "
            "the file was not written by llama2q or has been edited"
        )
    return value


def build_header(placed: Iterable[PlacedTensor], metadata: Mapping[str, str]) -> bytes:
    """Return the length prefix and the padded JSON: the bytes before the data section.

    Raises
    ------
    HeaderError
        The JSON would exceed 16 MiB.
    """
    entries: dict[str, Any] = {
        tensor.spec.name: {
            "dtype": tensor.spec.dtype,
            "shape": list(tensor.spec.shape),
            "data_offsets": [tensor.begin, tensor.end],
        }
        for tensor in placed
    }
    text = canonical_json({METADATA: dict(metadata), **entries}).encode("ascii")
    text += b" " * (-(LENGTH_BYTES + len(text)) % DATA_ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise HeaderError(f"the header needs {len(text)} bytes; at most {MAX_HEADER_BYTES}")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def model_id_of(placed: Iterable[PlacedTensor], metadata: Mapping[str, str]) -> str:
    """Return SHA-256 of the padded JSON with the digits of the model id replaced by zeros."""
    header = build_header(placed, {**metadata, "model_id": HASH_PLACEHOLDER})
    return hashlib.sha256(header[LENGTH_BYTES:]).hexdigest()


@dataclass(frozen=True, slots=True)
class ParsedHeader:
    """A header that is valid safetensors in canonical form; its meaning is not checked yet.

    Attributes
    ----------
    metadata : dict of str to str
    tensors : list of PlacedTensor
        Sorted by place, pads included, without holes or overlaps.
    data_start : int
        Bytes before the data section.
    """

    metadata: dict[str, str]
    tensors: list[PlacedTensor]
    data_start: int

    @property
    def file_bytes(self) -> int:
        """Size that the file must have."""
        return self.data_start + (self.tensors[-1].end if self.tensors else 0)


def parse_header(raw: bytes) -> ParsedHeader:
    """Parse the padded JSON of a header.

    Raises
    ------
    HeaderError
        The JSON breaks a rule of safetensors, or its length one of this format.
    TensorLayoutError
        Tensors leave a hole, overlap, are misaligned, or disagree with their shapes.
    """
    if (LENGTH_BYTES + len(raw)) % DATA_ALIGNMENT:
        raise HeaderError(
            f"the header has {len(raw)} bytes, so data starts at {LENGTH_BYTES + len(raw)}; "
            f"expected a multiple of {DATA_ALIGNMENT}"
        )
    text = raw.rstrip(b" ")
    if len(raw) - len(text) >= DATA_ALIGNMENT:
        raise HeaderError(f"the header is padded with {len(raw) - len(text)} spaces; at most 4095")
    try:
        values = parse_json(text.decode("ascii"), "the header")
    except UnicodeDecodeError as error:
        raise HeaderError(f"the header is not ASCII: {error}") from error
    if not isinstance(values, dict):
        raise HeaderError("the header is not a JSON object")
    metadata = values.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError(f"{METADATA} is not an object of strings")
    tensors = sorted(
        (_parse_entry(name, entry) for name, entry in values.items()),
        key=lambda tensor: (tensor.begin, tensor.end),
    )
    _check_places(tensors)
    return ParsedHeader(metadata, tensors, LENGTH_BYTES + len(raw))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _parse_entry(name: str, entry: Any) -> PlacedTensor:
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:
        raise HeaderError(f"tensor {name}: expected exactly the keys {sorted(_ENTRY_KEYS)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise HeaderError(
            f"tensor {name} has dtype {dtype!r}; expected one of {', '.join(NUMPY_DTYPES)}"
        )
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4 or not all(map(_is_size, shape)):
        raise HeaderError(f"tensor {name}: shape {shape!r} is not a list of 1 to 4 sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise HeaderError(f"tensor {name}: data_offsets {offsets!r} is not a pair of sizes")
    return PlacedTensor(TensorSpec(name, dtype, tuple(shape)), offsets[0], offsets[1])


def _check_places(tensors: list[PlacedTensor]) -> None:
    previous, end = "the start of the data", 0
    for tensor in tensors:
        spec = tensor.spec
        if tensor.end - tensor.begin != spec.nbytes or spec.nbytes == 0:
            raise TensorLayoutError(
                f"tensor {spec.name} {spec.dtype} {list(spec.shape)} needs {spec.nbytes} bytes "
                f"but has the place [{tensor.begin}, {tensor.end})"
            )
        if tensor.begin < end:
            raise TensorLayoutError(
                f"tensor {spec.name} starts at {tensor.begin} and overlaps {previous}, "
                f"which ends at {end}"
            )
        if tensor.begin > end:
            raise TensorLayoutError(
                f"a hole of {tensor.begin - end} bytes lies between {previous} and {spec.name}"
            )
        if tensor.begin % ALIGNMENT and not is_pad(spec.name):
            raise TensorLayoutError(
                f"tensor {spec.name} starts at {tensor.begin}; expected a multiple of {ALIGNMENT}"
            )
        previous, end = spec.name, tensor.end
