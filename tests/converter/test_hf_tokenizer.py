"""Tokens that a checkpoint adds to its SentencePiece model, and padded vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2q
from converter.hf_files import Tensors, hf_folder, write_json
from converter.pth_files import Make
from llama2q.converter.hf_checkpoint import HfCheckpoint
from llama2q.converter.hf_tokenizer import (
    AddedToken,
    read_added_tokens,
    read_tokenizer_notes,
    with_added_tokens,
)
from llama2q.errors import TokenizerError
from llama2q.tokenizer import Tokenizer

N_PIECES = 4096


@pytest.fixture(scope="module")
def data(mini_checkpoint: Path) -> bytes:
    return (mini_checkpoint / "tokenizer.model").read_bytes()


def test_nothing_to_add(data: bytes) -> None:
    added = {0: AddedToken("<unk>"), 1: AddedToken("<s>"), 2: AddedToken("</s>")}
    assert with_added_tokens(data, added, N_PIECES, "x") == (data, ())


def test_pieces_with_a_space_in_front(data: bytes) -> None:
    """Code Llama's are pieces of the model, and spelled with or without their space."""
    tokenizer = Tokenizer(data)
    token = tokenizer.id_of("\u2581upon")
    assert token is not None
    for text in ("\u2581upon", " upon", "upon"):
        added = {token: AddedToken(text)}
        assert with_added_tokens(data, added, N_PIECES, "x") == (data, ())


def test_control_tokens(data: bytes) -> None:
    """They have ids and no text; text that looks like them stays text."""
    added = {N_PIECES: AddedToken("<|im_start|>"), N_PIECES + 1: AddedToken("<|im_end|>")}
    extended, notes = with_added_tokens(data, added, N_PIECES + 2, "x")
    plain, tokenizer = Tokenizer(data), Tokenizer(extended)
    assert notes == ("2 added tokens are kept with the tokenizer",)
    assert tokenizer.n_words == N_PIECES + 2
    assert tokenizer.id_of("<|im_end|>") == N_PIECES + 1
    text = "<|im_start|>user\nOnce upon a time<|im_end|>"
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.decode([*plain.encode("Once"), N_PIECES, N_PIECES + 1]) == "Once"


def test_ordinary_text_tokens(data: bytes) -> None:
    added = {N_PIECES: AddedToken("<think>", is_control=False)}
    extended, _ = with_added_tokens(data, added, N_PIECES + 1, "x")
    tokenizer = Tokenizer(extended)
    ids = tokenizer.encode("Once <think> upon")
    assert ids.count(N_PIECES) == 1
    assert tokenizer.decode(ids) == "Once <think> upon"


@given(st.text(max_size=40))
def test_other_text_is_encoded_as_before(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    tokenizers = _TOKENIZERS or _make_tokenizers()
    assert tokenizers[0].encode(text) == tokenizers[1].encode(text)


_TOKENIZERS: list[Tokenizer] = []


def _make_tokenizers() -> list[Tokenizer]:
    path = Path(__file__).resolve().parents[1] / "data" / "mini" / "tokenizer.model"
    data = path.read_bytes()
    added = {N_PIECES: AddedToken("[PAD]"), N_PIECES + 7: AddedToken("<\u4e16>" * 50)}
    _TOKENIZERS.extend(
        [Tokenizer(data), Tokenizer(with_added_tokens(data, added, N_PIECES + 64, "x")[0])]
    )
    return _TOKENIZERS


def test_padding_rows(data: bytes) -> None:
    extended, notes = with_added_tokens(data, {N_PIECES: AddedToken("[PAD]")}, N_PIECES + 64, "x")
    assert notes[1] == "63 rows of the embedding table have no token: kept, without text"
    tokenizer = Tokenizer(extended)
    assert tokenizer.n_words == N_PIECES + 64
    assert tokenizer.decode(range(N_PIECES, N_PIECES + 64)) == ""


def test_tokens_without_a_row_are_left_out(data: bytes) -> None:
    same, notes = with_added_tokens(data, {N_PIECES: AddedToken("<pad>")}, N_PIECES, "x")
    assert same == data
    assert notes == (
        "added tokens without a row in the embedding table are left out: '<pad>' (4096)",
    )


@pytest.mark.parametrize(
    ("added", "n_rows", "match"),
    [
        ({}, N_PIECES - 1, "4096 pieces, 0 tokens are added; the embedding table has 4095 rows"),
        ({}, N_PIECES + 257, "They are not of one model"),
        ({N_PIECES + 400: "x"}, N_PIECES + 401, "1 tokens are added"),
        ({5: "<0x03>"}, N_PIECES, "has the id 5, which is '<0x02>' in tokenizer.model"),
        ({N_PIECES: "<s>"}, N_PIECES + 1, r"'<s>' \(4096\) is there twice"),
        ({N_PIECES: "x!", N_PIECES + 1: "x!"}, N_PIECES + 2, r"'x!' \(4097\) is there twice"),
        ({N_PIECES: ""}, N_PIECES + 1, "is no text of 1 to"),
        ({N_PIECES: "a\0b"}, N_PIECES + 1, "is no text of 1 to"),
        ({N_PIECES: "\ud800"}, N_PIECES + 1, "is no text of 1 to"),
        ({N_PIECES: "x" * 1001}, N_PIECES + 1, "is no text of 1 to"),
    ],
)
def test_tokens_that_are_refused(
    data: bytes, added: dict[int, str], n_rows: int, match: str
) -> None:
    tokens = {token: AddedToken(text) for token, text in added.items()}
    with pytest.raises(TokenizerError, match=match):
        with_added_tokens(data, tokens, n_rows, "x")


def files(folder: Path, added: Any = None, config: Any = None) -> dict[str, Path]:
    places = {}
    for name, values in (("added_tokens.json", added), ("tokenizer_config.json", config)):
        if values is not None:
            write_json(folder / name, values)
            places[name] = folder / name
    return places


def test_both_files(tmp_path: Path) -> None:
    decoder = {
        "7": {"content": "<a>", "special": True, "lstrip": False},
        "8": {"content": "<b>", "special": False},
        "10": {"content": "<d>"},
    }
    found = read_added_tokens(
        files(tmp_path, {"<a>": 7, "<c>": 9}, {"added_tokens_decoder": decoder})
    )
    assert found == {
        7: AddedToken("<a>"),
        8: AddedToken("<b>", is_control=False),
        9: AddedToken("<c>"),
        10: AddedToken("<d>"),
    }
    assert read_added_tokens({}) == {}


@pytest.mark.parametrize(
    ("added", "config", "match"),
    [
        ({"<a>": "7"}, None, "gives '<a>' the id '7'; expected an id"),
        ({"<a>": -1}, None, "expected an id"),
        ({"<a>": 2**40}, None, "expected an id"),
        ({"<a>": True}, None, "expected an id"),
        ({"<a>": 7, "<b>": 7}, None, "gives the id 7 to '<a>' and to '<b>'"),
        ([], None, "holds a list; expected an object"),
        ({"<a>": 7}, {"added_tokens_decoder": {"7": {"content": "<b>"}}}, "not of one model"),
        (None, {"added_tokens_decoder": []}, "added_tokens_decoder is not an object"),
        (None, {"added_tokens_decoder": {"x": {"content": "<b>"}}}, "the added token 'x' is"),
        (None, {"added_tokens_decoder": {"7": "<b>"}}, "expected an id and its content"),
        (None, {"added_tokens_decoder": {"7": {"content": 3}}}, "expected an id and its content"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, added: Any, config: Any, match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        read_added_tokens(files(tmp_path, added, config))


def test_notes_of_what_prompts_do_not_get(tmp_path: Path) -> None:
    asked = {"add_bos_token": False, "add_eos_token": True}
    bos, eos = read_tokenizer_notes(files(tmp_path, config=asked))
    assert "add_bos_token false" in bos
    assert "add_eos_token true" in eos
    usual = {"add_bos_token": True, "add_eos_token": False}
    assert read_tokenizer_notes(files(tmp_path, config=usual)) == ()
    assert read_tokenizer_notes({}) == ()


def test_a_whole_model_with_added_tokens(make: Make, tmp_path: Path) -> None:
    def grow(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            more = np.full((3, 16), 0x3C00, np.uint16)
            tensors[name] = np.concatenate([tensors[name], more])

    folder = hf_folder(tmp_path / "chatty", make(), change=grow, vocab_size=N_PIECES + 3,
                       eos_token_id=N_PIECES + 2)  # fmt: skip
    write_json(
        folder / "added_tokens.json",
        {"[PAD]": N_PIECES, "<|im_start|>": N_PIECES + 1, "<|im_end|>": N_PIECES + 2},
    )
    report = llama2q.convert(
        folder, tmp_path / "x.l2q", chat_template="chatml", n_threads=1, method="rtn"
    )
    assert "stop_token_ids=[4098]" in " ".join(report.notes)
    with llama2q.load(report.path) as llm:
        assert llm.config.vocab_size == N_PIECES + 3 == llm.tokenizer.n_words
        assert llm.logits([1, N_PIECES + 1, N_PIECES + 2]).shape == (3, N_PIECES + 3)


def test_no_sentencepiece_model(make: Make, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "x", make())
    (folder / "tokenizer.model").rename(folder / "tokenizer.json")
    for match in ("has tokenizer.json but no tokenizer.model", r"tokenizer\.model is missing in"):
        with pytest.raises(TokenizerError, match=match):
            HfCheckpoint.open(folder)
        (folder / "tokenizer.json").unlink(missing_ok=True)
