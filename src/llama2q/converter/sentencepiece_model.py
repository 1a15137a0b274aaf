"""Writing SentencePiece models: the protocol buffer of their pieces and settings.

Source: google/sentencepiece, `sentencepiece_model.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""ModelProto.SentencePiece.Type."""

BPE = 2
"""TrainerSpec.ModelType."""

_VARINT, _BYTES, _FIXED32 = 0, 2, 5


def piece_field(text: bytes, score: float, kind: int) -> bytes:
    """Return one more piece of a model; appended to a model's bytes, it is its last piece.

    Parameters
    ----------
    text : bytes
        UTF-8.
    score : float
    kind : int
        Its type.
    """
    fixed = _tag(2, _FIXED32) + struct.pack("<f", score)
    return _bytes(1, _bytes(1, text) + fixed + _number(3, kind))


def trainer_field(values: Mapping[int, int | bytes]) -> bytes:
    """Return a model's TrainerSpec: number of the field -> value."""
    return _bytes(2, _message(values))


def normalizer_field(values: Mapping[int, int | bytes]) -> bytes:
    """Return a model's NormalizerSpec: number of the field -> value."""
    return _bytes(3, _message(values))


def _message(values: Mapping[int, int | bytes]) -> bytes:
    return b"".join(
        _bytes(number, value) if isinstance(value, bytes) else _number(number, value)
        for number, value in values.items()
    )


def _bytes(number: int, value: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    """Encode an int32; a negative one takes the bits of 64."""
    return _tag(number, _VARINT) + _varint(value % 2**64)


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
