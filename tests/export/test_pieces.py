"""SentencePiece models read from their bytes: against the package, and hostile ones."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from export.models import PIECES, UNIGRAM, message, tokenizer
from llama2q.errors import TokenizerError
from llama2q.export.pieces import Piece, read_pieces

MINI = Path(__file__).parents[1] / "data" / "mini" / "tokenizer.model"
LLAMA2 = Path(__file__).resolve().parents[3] / "shared/checkpoints/llama2-tokenizer/tokenizer.model"


@pytest.mark.parametrize("path", [MINI, LLAMA2], ids=["mini", "llama2"])
def test_against_the_package(path: Path) -> None:
    if not path.is_file():
        pytest.skip("no tokenizer of Llama 2 in ../shared")
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    found = read_pieces(path.read_bytes())
    assert [piece.text for piece in found.pieces] == [
        model.id_to_piece(i) for i in range(model.vocab_size())
    ]
    for token, piece in enumerate(found.pieces):
        assert piece.score == model.get_score(token)
        is_kind = {2: model.is_unknown, 3: model.is_control, 5: model.is_unused, 6: model.is_byte}
        assert [kind for kind, check in is_kind.items() if check(token)] == (
            [] if piece.kind == 1 else [piece.kind]
        )
    assert found.is_bpe
    assert found.adds_prefix
    assert not found.has_character_map
    assert found.removes_extra_spaces == (path == MINI)


def test_every_field() -> None:
    normalizer = message(2, b"map") + b"\x18\x00\x20\x00"
    found = read_pieces(tokenizer(9, kind=UNIGRAM, normalizer=normalizer))
    assert found.pieces == [*(Piece(*piece) for piece in PIECES), Piece("p8", -8.0, 1)]
    assert not found.is_bpe
    assert found.has_character_map
    assert not found.adds_prefix
    assert not found.removes_extra_spaces


def test_what_is_left_out_has_the_defaults() -> None:
    found = read_pieces(message(1, message(1, b"x")))
    assert found.pieces == [Piece("x", 0.0, 1)]
    assert not found.is_bpe
    assert found.adds_prefix
    assert found.removes_extra_spaces


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\x08\x01",
        b"\x0b",
        b"\xff" * 11,
        message(1, b"\x0a\x02\xff\xfe"),
        message(1, b"\x18\x00"),
        message(1, b"\x18\x07"),
        message(1, b"\x12\x03abc"),
        message(1, b"\x08\x01"),
        message(1, b"\x10\x01"),
        b"\x18\x01",
    ],
)
def test_faults_are_named(data: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is damaged: "):
        read_pieces(data)


@given(st.binary(max_size=200))
@example(tokenizer(12)[:50])
def test_any_bytes(data: bytes) -> None:
    with suppress(TokenizerError):
        read_pieces(data)
