"""The tokenizer against SentencePiece's own decoder and the facts known of Llama 2's."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from llama2q.errors import InvalidArgumentError, TokenizerError
from llama2q.tokenizer import StreamDecoder, Tokenizer

MINI = Path(__file__).parent / "data" / "mini" / "tokenizer.model"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "checkpoints"


@pytest.fixture(
    scope="module",
    params=[
        MINI,
        SHARED / "llama2-tokenizer" / "tokenizer.model",
        SHARED / "stories260K" / "tokenizer.model",
    ],
    ids=["mini", "llama2", "stories260K"],
)
def model_path(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    if not path.is_file():
        pytest.skip(f"no {path.parent.name} tokenizer in ../shared")
    return path


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer.from_file(model_path)


@pytest.fixture(scope="module")
def sentence_piece(model_path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model_path.read_bytes())


@pytest.fixture(scope="module")
def llama2(shared_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(shared_dir / "checkpoints" / "llama2-tokenizer" / "tokenizer.model")


def ids_strategy(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Ids where bytes, specials and spaces come as often as ordinary pieces."""
    spaces = tokenizer.encode("a  b   c", bos=False)
    emoji = [3 + byte for byte in "🦙é€".encode()]
    return st.lists(
        st.one_of(
            st.integers(0, tokenizer.vocab_size - 1),
            st.integers(3, 258),
            st.integers(0, 2),
            st.sampled_from(spaces + emoji),
        ),
        max_size=40,
    )


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


def test_ids_of_llama_2(llama2: Tokenizer) -> None:
    assert llama2.n_words == llama2.vocab_size == 32000
    ids = [518, 25580, 29962, 7251, 518, 29914, 25580, 29962]
    assert llama2.encode("[INST] hi [/INST]", bos=False) == ids
    assert llama2.encode("[INST] hi [/INST]", eos=True) == [1, *ids, 2]
    assert llama2.decode([1, *ids, 2]) == "[INST] hi [/INST]"
    assert llama2.decode([29871]) == ""
    assert llama2.decode([1, 15043, 29871]) == "Hello "


def test_special_ids() -> None:
    tokenizer = Tokenizer.from_file(MINI)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, -1)
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("", bos=False) == []
    assert tokenizer.decode([]) == ""


def test_control_names_in_text_stay_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<s> and </s>", bos=False)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.decode(ids) == "<s> and </s>"


@given(data=st.data())
def test_decode_is_sentencepiece_decode(
    tokenizer: Tokenizer, sentence_piece: sentencepiece.SentencePieceProcessor, data: st.DataObject
) -> None:
    ids = data.draw(ids_strategy(tokenizer))
    assert tokenizer.decode(ids) == sentence_piece.decode(ids)


@given(data=st.data())
def test_stream_joins_to_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(ids_strategy(tokenizer))
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    for piece in pieces:
        piece.encode()


@given(data=st.data())
def test_text_after_a_prompt(tokenizer: Tokenizer, data: st.DataObject) -> None:
    prompt = data.draw(ids_strategy(tokenizer))
    new = data.draw(ids_strategy(tokenizer))
    decoder = StreamDecoder(tokenizer)
    before = "".join(decoder.push(token) for token in prompt)
    after = "".join(decoder.push(token) for token in new) + decoder.flush()
    assert before + after == tokenizer.decode(prompt + new)


# "▁" is SentencePiece's own sign for a space.
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60))
def test_round_trip_of_any_text(llama2: Tokenizer, text: str) -> None:
    assert llama2.decode(llama2.encode(text)) == text


def test_first_generated_word_keeps_its_space(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("Once upon a time")
    decoder = StreamDecoder(tokenizer)
    prompt = "".join(decoder.push(token) for token in whole[:-1])
    assert not prompt.endswith(" ")
    assert prompt + decoder.push(whole[-1]) + decoder.flush() == "Once upon a time"


def test_a_character_comes_whole_or_not_at_all(tokenizer: Tokenizer) -> None:
    ids = [3 + byte for byte in "🦙".encode()]
    assert stream(tokenizer, ids) == ["", "", "", "🦙", ""]
    assert stream(tokenizer, ids[:3]) == ["", "", "", "\ufffd\ufffd\ufffd"]


@pytest.mark.parametrize("token", [-1, 4096, 10**12])
def test_ids_outside_the_vocabulary(token: int) -> None:
    tokenizer = Tokenizer.from_file(MINI)
    with pytest.raises(InvalidArgumentError, match=f"{token} is outside .* 0 to 4095"):
        tokenizer.decode([5, token])


def test_lone_surrogate() -> None:
    with pytest.raises(InvalidArgumentError, match=r"character 1 .* U\+D800"):
        Tokenizer.from_file(MINI).encode("a\ud800")


def test_text_must_be_str() -> None:
    with pytest.raises(InvalidArgumentError, match="bytes; expected a str"):
        Tokenizer.from_file(MINI).encode(b"abc")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"<!DOCTYPE html>", b"\0" * 100])
def test_not_a_model(data: bytes) -> None:
    with pytest.raises(TokenizerError, match="SentencePiece model"):
        Tokenizer.from_bytes(data)


def test_truncated_model() -> None:
    with pytest.raises(TokenizerError):
        Tokenizer.from_bytes(MINI.read_bytes()[:-1])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere\.model cannot be read: No such file"):
        Tokenizer.from_file(tmp_path / "nowhere.model")
