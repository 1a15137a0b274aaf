"""The calibration text as it ships, and the windows cut from it and from others."""

from __future__ import annotations

import re
import unicodedata
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2q.calibrate import text as calibration
from llama2q.calibrate.text import PIECE_SEPARATOR, default_text, windows
from llama2q.errors import CalibrationTextError, InvalidArgumentError
from llama2q.tokenizer import Tokenizer

README = resources.files("llama2q.calibrate") / "README.md"


@pytest.fixture(scope="module")
def mini(mini_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(mini_checkpoint / "tokenizer.model")


@pytest.fixture(scope="module")
def llama2(shared_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(shared_dir / "checkpoints" / "llama2-tokenizer" / "tokenizer.model")


def listed_tokens() -> dict[str, int]:
    """Name and tokens of each piece, as README.md lists them."""
    rows = re.findall(r"^\| \d+ \| (\S+) \| (\d+) \|", README.read_text("utf-8"), re.MULTILINE)
    return {name: int(tokens) for name, tokens in rows}


def encoded_pieces(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    return [tokenizer.encode(piece, bos=False) for piece in text.split(PIECE_SEPARATOR)]


def joined(cut: list[list[int]]) -> list[int]:
    """The tokens of all windows without their BOS."""
    return [token for window in cut for token in window[1:]]


def test_size_and_characters() -> None:
    text = default_text()
    assert 90_000 <= len(text.encode()) <= 130_000
    assert unicodedata.is_normalized("NFC", text)
    control = {c for c in text if unicodedata.category(c) in ("Cc", "Co", "Cn", "Cs")}
    assert control == {"\n", PIECE_SEPARATOR}
    assert "\ufffd" not in text
    assert not re.search(r"[ ]\n", text)


def test_pieces_are_the_listed_ones() -> None:
    pieces = default_text().split(PIECE_SEPARATOR)
    assert len(pieces) == len(listed_tokens()) == 47
    assert len(set(pieces)) == len(pieces)
    for piece in pieces:
        assert piece == piece.strip() + "\n"


def test_no_paragraph_comes_twice() -> None:
    lines = re.split("[\n\f]", default_text())
    paragraphs = [line for line in lines if len(line) > 80]
    assert len(set(paragraphs)) == len(paragraphs)


def test_tokens_with_mini(mini: Tokenizer) -> None:
    assert 36_000 <= sum(map(len, encoded_pieces(mini, default_text()))) <= 42_000


def test_tokens_with_llama2_are_the_listed_ones(llama2: Tokenizer) -> None:
    found = [len(piece) for piece in encoded_pieces(llama2, default_text())]
    assert found == list(listed_tokens().values())
    assert 25_000 <= sum(found) <= 30_000


def test_many_tokens_of_the_vocabulary_occur(llama2: Tokenizer) -> None:
    used = {token for piece in encoded_pieces(llama2, default_text()) for token in piece}
    assert len(used) > 6_000
    byte_tokens = used & set(range(3, 259))
    assert len(byte_tokens) > 40


@pytest.mark.parametrize(
    "damaged", [b"", b"something else", pytest.param(None, id="one byte changed")]
)
def test_a_damaged_file_is_an_error(
    damaged: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damaged is None:
        data = bytearray(default_text().encode())
        data[5000] ^= 1
        damaged = bytes(data)
    (tmp_path / "calibration.txt").write_bytes(damaged)
    monkeypatch.setattr(calibration.resources, "files", lambda package: tmp_path)
    with pytest.raises(CalibrationTextError, match="SHA-256"):
        default_text()


def test_a_missing_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.resources, "files", lambda package: tmp_path)
    with pytest.raises(CalibrationTextError, match=r"cannot be read.*install llama2q again"):
        default_text()


@pytest.mark.parametrize(("n_tokens", "length"), [(10_000, 512), (10_000, 2048), (999, 64)])
def test_windows_have_their_length_and_a_bos(mini: Tokenizer, n_tokens: int, length: int) -> None:
    cut = windows(mini, default_text(), n_tokens, length)
    assert len(cut) == n_tokens // length
    for window in cut:
        assert len(window) == length
        assert window[0] == mini.bos_id
        assert mini.bos_id not in window[1:]
    assert cut == windows(mini, default_text(), n_tokens, length)


def test_each_piece_gives_its_share(mini: Tokenizer) -> None:
    """Of 10,000 tokens every piece has as many as its share of the text, to within one token."""
    text = default_text()
    pieces = encoded_pieces(mini, text)
    total = sum(map(len, pieces))
    cut = joined(windows(mini, text, 10_000, 500))
    assert len(cut) == 20 * 499
    position = 0
    for piece, following in zip(pieces, [*pieces[1:], []], strict=True):
        share = len(piece) * len(cut) / total
        fits = [
            n
            for n in (int(share), int(share) + 1)
            if cut[position : position + n + 20] == piece[:n] + following[:20]
        ]
        assert len(fits) == 1
        position += fits[0]
    assert position == len(cut)


def test_more_tokens_than_there_are_give_the_whole_text(mini: Tokenizer) -> None:
    text = "One piece here.\n\fAnother piece, which is longer.\n\fThird.\n"
    tokens = [token for piece in encoded_pieces(mini, text) for token in piece]
    n_body = len(tokens)
    assert windows(mini, text, 10**9, n_body + 1) == [[mini.bos_id, *tokens]]


def test_a_text_without_form_feeds_is_one_piece(mini: Tokenizer) -> None:
    text = "The king was old, and the queen was young. " * 20
    tokens = mini.encode(text, bos=False)
    assert joined(windows(mini, text, 40, 8)) == tokens[: 5 * 7]


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    n_tokens=st.integers(2, 300),
    length=st.integers(2, 20),
)
def test_shares_of_any_pieces(
    mini_checkpoint: Path, lengths: list[int], n_tokens: int, length: int
) -> None:
    """A piece of n times "▁a" has n tokens, so that the windows must hold the expected number."""
    tokenizer = Tokenizer.from_file(mini_checkpoint / "tokenizer.model")
    text = PIECE_SEPARATOR.join(" ".join("a" * n) for n in lengths)
    total = sum(lengths)
    if n_tokens < length:
        with pytest.raises(InvalidArgumentError, match="one window"):
            windows(tokenizer, text, n_tokens, length)
    elif total < length - 1:
        with pytest.raises(CalibrationTextError, match=f"has {total} tokens"):
            windows(tokenizer, text, n_tokens, length)
    else:
        cut = windows(tokenizer, text, n_tokens, length)
        assert len(cut) == min(n_tokens // length, total // (length - 1))
        assert {len(window) for window in cut} == {length}


@pytest.mark.parametrize(
    ("n_tokens", "length", "message"),
    [
        (100, 1, "windows of 1 tokens; expected an integer >= 2"),
        (100, 2.0, "windows of 2.0 tokens"),
        (100, True, "windows of True tokens"),
        (7, 8, "7 tokens of calibration; expected an integer >= 8"),
        ("8", 8, "'8' tokens of calibration"),
    ],
)
def test_wrong_sizes_are_errors(
    mini: Tokenizer, n_tokens: object, length: object, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        windows(mini, default_text(), n_tokens, length)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "\f\f", "too short"])
def test_a_text_shorter_than_a_window_is_an_error(mini: Tokenizer, text: str) -> None:
    with pytest.raises(CalibrationTextError, match="Pass a longer text"):
        windows(mini, text, 1000, 100)
