"""The pieces of a SentencePiece model: text, score and kind, and how it makes tokens.

The package `sentencepiece` tells neither which pieces are user-defined nor the kind of model, so
the serialized model is read here. Source: google/sentencepiece, `sentencepiece_model.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from llama2q.errors import TokenizerError

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
"""Fields of ModelProto."""
_TEXT, _SCORE, _KIND = 1, 2, 3
"""Fields of ModelProto.SentencePiece."""
_MODEL_TYPE = 3
"""Field of TrainerSpec."""
_CHARACTER_MAP, _DUMMY_PREFIX, _REMOVE_EXTRA = 2, 3, 4
"""Fields of NormalizerSpec."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of Protocol Buffers."""
_NORMAL, _LAST_KIND = 1, 6
_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece; kinds: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class PieceModel:
    """What a SentencePiece model holds.

    Attributes
    ----------
    pieces : list of Piece
        By token id.
    is_bpe : bool
        Whether it merges pairs by score; the other common kind is "unigram".
    adds_prefix : bool
        Whether a space is put in front of a text.
    removes_extra_spaces : bool
        Whether spaces at the ends of a text, and all but one of several, are dropped.
    has_character_map : bool
        Whether characters are replaced (NFKC and the like) before anything else.
    """

    pieces: list[Piece] = field(repr=False)
    is_bpe: bool
    adds_prefix: bool
    removes_extra_spaces: bool
    has_character_map: bool


def read_pieces(data: bytes) -> PieceModel:
    """Read a serialized SentencePiece model.

    Raises
    ------
    TokenizerError
        It is malformed, or a piece is not UTF-8.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(len(pieces), value))
        elif number == _TRAINER:
            trainer.update(_fields(_bytes(value)))
        elif number == _NORMALIZER:
            normalizer.update(_fields(_bytes(value)))
    return PieceModel(
        pieces=pieces,
        is_bpe=trainer.get(_MODEL_TYPE, _UNIGRAM) == _BPE,
        adds_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        removes_extra_spaces=bool(normalizer.get(_REMOVE_EXTRA, 1)),
        has_character_map=bool(normalizer.get(_CHARACTER_MAP, b"")),
    )


def _piece(token: int, value: int | bytes) -> Piece:
    fields = dict(_fields(_bytes(value)))
    kind = fields.get(_KIND, _NORMAL)
    score = _bytes(fields.get(_SCORE, bytes(4)))
    if not isinstance(kind, int) or not _NORMAL <= kind <= _LAST_KIND or len(score) != 4:
        raise _damaged(f"piece {token} has a score or kind of another form")
    try:
        text = _bytes(fields.get(_TEXT, b"")).decode()
    except UnicodeDecodeError as error:
        raise _damaged(f"piece {token} is not UTF-8") from error
    return Piece(text, struct.unpack("<f", score)[0], kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            if place >= len(data) or shift > 63:
                raise _damaged("a number in it has no end")
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        tag = varint()
        wire = tag & 7
        if wire == _VARINT:
            yield tag >> 3, varint()
            continue
        sizes = {_FIXED64: 8, _FIXED32: 4}
        if wire != _BYTES and wire not in sizes:
            raise _damaged(f"a field has wire type {wire}")
        size = varint() if wire == _BYTES else sizes[wire]
        if size > len(data) - place:
            raise _damaged("a field ends behind its message")
        yield tag >> 3, data[place : place + size]
        place += size


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _damaged("a field has another type")
    return value


def _damaged(fault: str) -> TokenizerError:
    return TokenizerError(f"tokenizer.model is damaged: {fault}; convert again with a sound one")
