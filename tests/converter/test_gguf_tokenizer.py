"""The SentencePiece model rebuilt from GGUF's keys tokenizes as the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from converter.gguf_files import gguf_file
from converter.pth_files import small_checkpoint
from llama2q.converter.gguf_file import GgufFile, Value
from llama2q.converter.gguf_tokenizer import read_tokenizer
from llama2q.converter.gguf_values import GgufValues
from llama2q.errors import ParamsError, TokenizerError, UnsupportedModelError
from llama2q.tokenizer import Tokenizer

N_PIECES = 4096
MODEL = Path(__file__).resolve().parents[1] / "data" / "mini" / "tokenizer.model"
PREFIX = "tokenizer.ggml."


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Value]:
    folder = tmp_path_factory.mktemp("gguf")
    path = gguf_file(folder / "x.gguf", small_checkpoint(folder / "small", MODEL))
    with GgufFile(path) as file:
        return dict(file.values)


def build(keys: dict[str, Value], n_rows: int = N_PIECES, **changes: Any) -> bytes:
    """Rebuild the model, with other keys; None removes one."""
    values = keys | {PREFIX + name: value for name, value in changes.items()}
    kept = {name: value for name, value in values.items() if value is not None}
    return read_tokenizer(GgufValues("x.gguf", kept), n_rows)[0]


def notes(keys: dict[str, Value], **changes: Any) -> tuple[str, ...]:
    values = keys | {PREFIX + name: value for name, value in changes.items()}
    return read_tokenizer(GgufValues("x.gguf", values), N_PIECES)[1]


def processor(data: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=data)


_PAIR: list[Tokenizer] = []


@pytest.fixture(autouse=True)
def _pair(keys: dict[str, Value]) -> None:
    if not _PAIR:
        _PAIR.extend([Tokenizer(MODEL.read_bytes()), Tokenizer(build(keys))])


def test_pieces_scores_and_kinds(keys: dict[str, Value]) -> None:
    original, rebuilt = processor(MODEL.read_bytes()), processor(build(keys))
    assert rebuilt.vocab_size() == original.vocab_size() == N_PIECES
    for ask in ("id_to_piece", "get_score", "is_unknown", "is_control", "is_unused", "is_byte"):
        for token in range(N_PIECES):
            assert getattr(rebuilt, ask)(token) == getattr(original, ask)(token), (ask, token)
    for ask in ("unk_id", "bos_id", "eos_id", "pad_id"):
        assert getattr(rebuilt, ask)() == getattr(original, ask)()


@given(st.text(max_size=60))
@example("Once upon a time,  there was\n\ta king.  ")
@example(" \u00e9\u4e16\U0001f600 <s> </s> <0x41> \u2581x")
def test_texts(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    original, rebuilt = _PAIR
    ids = original.encode(text)
    assert rebuilt.encode(text) == ids
    assert rebuilt.decode(ids) == original.decode(ids)


@given(st.lists(st.integers(0, N_PIECES - 1), max_size=30))
def test_ids(ids: list[int]) -> None:
    original, rebuilt = _PAIR
    assert rebuilt.decode(ids) == original.decode(ids)


def test_a_whole_book(keys: dict[str, Value]) -> None:
    text = (MODEL.parent / "TRAINING.md").read_text(encoding="utf-8")
    assert _PAIR[1].encode(text) == _PAIR[0].encode(text)


def test_spaces_are_kept_unless_the_file_says_otherwise(keys: dict[str, Value]) -> None:
    """Llama 2's own model keeps them; the demo model's removes doubled ones and says so."""
    kept = Tokenizer(build(keys, remove_extra_whitespaces=None))
    text = "Once  upon a time "
    assert kept.decode(kept.encode(text)) == text
    assert _PAIR[0].decode(_PAIR[0].encode(text)) == "Once upon a time"


def test_without_a_space_in_front(keys: dict[str, Value]) -> None:
    options = {"add_space_prefix": False, "remove_extra_whitespaces": None}
    tokenizer = Tokenizer(build(keys, **options))
    with_space = _PAIR[0].encode("time")
    assert tokenizer.encode("time") != with_space
    assert tokenizer.decode(tokenizer.encode("time")) == "time"
    assert tokenizer.encode(" time") == with_space
    assert Tokenizer(build(keys, add_space_prefix=True)).encode("time") == with_space


def grown(keys: dict[str, Value], *entries: tuple[bytes, int]) -> dict[str, Any]:
    """Return the lists with more tokens, each (text, type)."""
    tokens, kinds = keys[PREFIX + "tokens"], keys[PREFIX + "token_type"]
    scores = keys[PREFIX + "scores"]
    assert isinstance(tokens, tuple)
    return {
        "tokens": (*tokens, *(text for text, _ in entries)),
        "scores": np.append(scores, np.full(len(entries), -1000, np.float32)).astype(np.float32),
        "token_type": np.append(kinds, [kind for _, kind in entries]).astype(np.int32),
    }


def test_added_tokens(keys: dict[str, Value]) -> None:
    more = grown(keys, (b"<|im_start|>", 3), (b"<think>", 4), (b"[PAD4098]", 5))
    tokenizer = Tokenizer(build(keys, N_PIECES + 3, **more))
    text = "Once <think> upon <|im_start|> a [PAD4098]"
    ids = tokenizer.encode(text)
    assert ids.count(N_PIECES + 1) == 1
    assert not {N_PIECES, N_PIECES + 2} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, N_PIECES]) == text


def test_rows_without_a_token(keys: dict[str, Value]) -> None:
    assert Tokenizer(build(keys, N_PIECES + 64)).n_words == N_PIECES + 64
    with pytest.raises(TokenizerError, match="They are not of one model"):
        build(keys, N_PIECES - 1)


def test_notes(keys: dict[str, Value]) -> None:
    assert notes(keys) == ()
    (eos,) = notes(keys, eos_token_id=7)
    assert "stop_token_ids=[7]" in eos
    bos, end = notes(keys, add_bos_token=False, add_eos_token=True)
    assert "add_bos_token is false" in bos
    assert "add_eos_token is true" in end
    assert notes(keys, add_bos_token=True, add_eos_token=False) == ()


def changed(keys: dict[str, Value], name: str, place: int, value: object) -> dict[str, Any]:
    found = keys[PREFIX + name]
    if isinstance(found, tuple):
        assert isinstance(value, bytes)
        return {name: (*found[:place], value, *found[place + 1 :])}
    assert isinstance(found, np.ndarray)
    copy = found.copy()
    copy[place] = value
    return {name: copy}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"model": "gpt2"}, TokenizerError, "of the kind 'gpt2'; this engine reads SentencePiece"),
        ({"model": None}, TokenizerError, "of the kind None"),
        ({"model": 3}, ParamsError, "tokenizer.ggml.model is 3; expected a text"),
        ({"tokens": None}, TokenizerError, "lacks tokenizer.ggml.tokens, scores or token_type"),
        ({"scores": None}, TokenizerError, "lacks tokenizer.ggml.tokens"),
        ({"token_type": None}, TokenizerError, "lacks tokenizer.ggml.tokens"),
        ({"tokens": "abc"}, ParamsError, "expected a list of texts"),
        ({"scores": "abc"}, ParamsError, "expected a list of numbers"),
        ({"scores": np.zeros(5, np.float32)}, TokenizerError, "4096 tokens, 5 scores and 4096"),
        ({"tokens": (), "scores": np.zeros(0, np.float32), "token_type": np.zeros(0, np.int32)},
         TokenizerError, "0 tokens"),
        ({"bos_token_id": 128000}, UnsupportedModelError, "bos_token_id is 128000; Llama 2's is 1"),
        ({"unknown_token_id": 3}, UnsupportedModelError, "unknown_token_id is 3"),
        ({"precompiled_charsmap": np.zeros(4, np.uint8)}, TokenizerError, "precompiled_charsmap"),
        (("scores", 9, np.nan), TokenizerError, "a token's score is NaN"),
        (("token_type", 0, 1), TokenizerError, "token 0, '<unk>', has the type 1"),
        (("token_type", 1, 1), TokenizerError, "token 1, '<s>', has the type 1"),
        (("token_type", 300, 0), TokenizerError, "has the type 0; expected 1 to 6"),
        (("token_type", 300, 7), TokenizerError, "has the type 7; expected 1 to 6"),
        (("token_type", 300, 6), TokenizerError, "tokens of single bytes are 257"),
        (("token_type", 5, 1), TokenizerError, "tokens of single bytes are 255"),
        (("token_type", 300, 2), TokenizerError, "is not a SentencePiece model"),
        (("tokens", 300, b""), TokenizerError, "token 300 is ''"),
        (("tokens", 300, b"\xff"), TokenizerError, "token 300 is "),
        (("tokens", 300, b"a\0"), TokenizerError, "token 300 is "),
        (("tokens", 300, b"x" * 1001), TokenizerError, "expected a text of 1 to 1000 bytes"),
        (("tokens", 300, b"<s>"), TokenizerError, "token 300, '<s>', is there twice"),
    ],
)  # fmt: skip
def test_refused(keys: dict[str, Value], changes: Any, error: type[Exception], match: str) -> None:
    values = changed(keys, *changes) if isinstance(changes, tuple) else changes
    with pytest.raises(error, match=match):
        build(keys, **values)
