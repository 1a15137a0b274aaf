"""The calibration text that comes with the package, and its cut into windows of tokens.

A text consists of pieces with a form feed between two of them: excerpts of one kind each. The
windows take the same share of every piece, so that few tokens hold as many kinds as many do.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from itertools import accumulate, pairwise
from typing import Final

from llama2q.errors import CalibrationTextError, InvalidArgumentError
from llama2q.tokenizer import Tokenizer

PIECE_SEPARATOR: Final = "\f"

_SHA256: Final = "aeb04d7933665245af7cfaa8b3e988ffefb9bb2df9241f885f55dcecc1fae6fd"


def default_text() -> str:
    """Read the text that comes with the package; README.md beside it says where it is from.

    Returns
    -------
    str
        47 pieces, some 29,000 tokens of Llama 2.

    Raises
    ------
    CalibrationTextError
        If the installed file cannot be read or is not the one that belongs to this version.
    """
    path = resources.files(__package__) / "calibration.txt"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationTextError(
            f"{path} cannot be read: {error.strerror or error}; install llama2q again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != _SHA256:
        raise CalibrationTextError(
            f"{path} has the SHA-256 {found}; expected {_SHA256}. Install llama2q again; "
            "a text of your own is passed by its path, not written over this one"
        )
    return data.decode()


def windows(tokenizer: Tokenizer, text: str, n_tokens: int, length: int) -> list[list[int]]:
    """Cut a text into windows of equal length, each with a BOS in front.

    Each piece gives the tokens of its beginning, as many of them as its share of the whole text
    demands; these follow one another in the text's order and are cut without regard to pieces.

    Parameters
    ----------
    tokenizer : Tokenizer
    text : str
        Pieces with a form feed between two of them; a text without one is a single piece.
    n_tokens : int
        Tokens of all windows together, at most.
    length : int
        Tokens of a window, BOS included.

    Returns
    -------
    list of list of int
        n_tokens // length windows, or as many as the text fills if these are fewer.

    Raises
    ------
    InvalidArgumentError
        If `length` is below 2 or `n_tokens` below `length`.
    CalibrationTextError
        If the text does not fill one window.
    """
    if type(length) is not int or length < 2:
        raise InvalidArgumentError(f"windows of {length!r} tokens; expected an integer >= 2")
    if type(n_tokens) is not int or n_tokens < length:
        raise InvalidArgumentError(
            f"{n_tokens!r} tokens of calibration; expected an integer >= {length}, one window"
        )
    pieces = [tokenizer.encode(piece, bos=False) for piece in text.split(PIECE_SEPARATOR)]
    n_body = length - 1
    total = sum(map(len, pieces))
    n_windows = min(n_tokens // length, total // n_body)
    if n_windows == 0:
        raise CalibrationTextError(
            f"the calibration text has {total} tokens; expected at least {n_body}, one window. "
            "Pass a longer text, or none to use the one that comes with llama2q"
        )
    n_taken = n_windows * n_body
    ends = [end * n_taken // total for end in accumulate(map(len, pieces), initial=0)]
    taken = [
        token
        for piece, (start, end) in zip(pieces, pairwise(ends), strict=True)
        for token in piece[: end - start]
    ]
    return [
        [tokenizer.bos_id, *taken[start : start + n_body]] for start in range(0, n_taken, n_body)
    ]
