"""Tokens that a Hugging Face checkpoint adds to its SentencePiece model.

They become pieces of the model: control pieces, which text never turns into and which have no text,
or, where the checkpoint says that they are ordinary text, user-defined ones. Rows that pad the
embedding table become control pieces too, so that every row has its token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama2q.converter.json_file import read_json_object, shown
from llama2q.converter.sentencepiece_model import CONTROL, USER_DEFINED, piece_field
from llama2q.errors import TokenizerError
from llama2q.tokenizer import Tokenizer

MAX_CONFIG_BYTES = 1 << 24
MAX_PADDING_ROWS = 256
"""Rows without a token that a padded vocabulary may have."""
MAX_TOKEN_BYTES = 1000

_ID = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token's text; whether it is a control token, which no text turns into."""

    text: str
    is_control: bool = True


def read_tokenizer_notes(beside: Mapping[str, Path]) -> tuple[str, ...]:
    """Say what tokenizer_config.json asks for at the ends of a text that prompts do not get."""
    if "tokenizer_config.json" not in beside:
        return ()
    config = read_json_object(
        beside["tokenizer_config.json"], TokenizerError, MAX_CONFIG_BYTES, hub=True
    )
    notes = []
    if config.get("add_bos_token") is False:
        notes.append(
            "tokenizer_config.json says add_bos_token false: a text prompt begins with BOS all the "
            "same; give token ids to leave it out"
        )
    if config.get("add_eos_token") is True:
        notes.append(
            "tokenizer_config.json says add_eos_token true: no prompt ends with EOS all the same"
        )
    return tuple(notes)


def read_added_tokens(beside: Mapping[str, Path]) -> dict[int, AddedToken]:
    """Read added_tokens.json and `added_tokens_decoder` in tokenizer_config.json, where present.

    Returns
    -------
    dict
        Token id -> token.

    Raises
    ------
    TokenizerError
        A file is malformed, or the two disagree.
    """
    added: dict[int, AddedToken] = {}
    if "added_tokens.json" in beside:
        for text, token in read_json_object(
            beside["added_tokens.json"], TokenizerError, MAX_CONFIG_BYTES, hub=True
        ).items():
            if type(token) is not int or not 0 <= token < 2**31:
                raise TokenizerError(
                    f"added_tokens.json gives {shown(text)} the id {shown(token)}; expected an id"
                )
            if token in added:
                raise TokenizerError(
                    f"added_tokens.json gives the id {token} to {shown(added[token].text)} and to "
                    f"{shown(text)}"
                )
            added[token] = AddedToken(text)
    if "tokenizer_config.json" not in beside:
        return added
    config = read_json_object(
        beside["tokenizer_config.json"], TokenizerError, MAX_CONFIG_BYTES, hub=True
    )
    for token, found in _decoder(config.get("added_tokens_decoder")).items():
        if token in added and added[token].text != found.text:
            raise TokenizerError(
                f"token {token} is {shown(added[token].text)} in added_tokens.json and "
                f"{shown(found.text)} in tokenizer_config.json; they are not of one model"
            )
        added[token] = found
    return added


def _decoder(values: Any) -> dict[int, AddedToken]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise TokenizerError("tokenizer_config.json: added_tokens_decoder is not an object")
    added = {}
    for key, entry in values.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not _ID.fullmatch(key) or not isinstance(text, str):
            raise TokenizerError(
                f"tokenizer_config.json: the added token {shown(key)} is {shown(entry)}; expected "
                "an id and its content"
            )
        added[int(key)] = AddedToken(text, entry.get("special") is not False)
    return added


def with_added_tokens(
    data: bytes, added: Mapping[int, AddedToken], n_rows: int, name: str
) -> tuple[bytes, tuple[str, ...]]:
    """Extend a SentencePiece model to one piece per row of the embedding table.

    Parameters
    ----------
    data : bytes
        The SentencePiece model.
    added : mapping
        Token id -> token; those that the model holds already must agree with it.
    n_rows : int
        Rows of the embedding table.
    name : str
        What messages call the model.

    Returns
    -------
    bytes, tuple of str
        The model (unchanged where nothing is missing), and what a user should know.

    Raises
    ------
    TokenizerError
        The number of tokens does not fit the rows, or a token is renamed, malformed or there twice.
    """
    tokenizer = Tokenizer(data, name=name)
    n_pieces = tokenizer.n_words
    _check_known(tokenizer, added)
    n_added = sum(n_pieces <= token < n_rows for token in added)
    n_padding = n_rows - n_pieces - n_added
    if not 0 <= n_padding <= MAX_PADDING_ROWS:
        raise TokenizerError(
            f"tokenizer.model has {n_pieces} pieces, {n_added} tokens are added; the embedding "
            f"table has {n_rows} rows. They are not of one model ({name})"
        )
    notes, texts = [], set()
    pieces = bytearray()
    for token in range(n_pieces, n_rows):
        entry = added.get(token) or AddedToken(f"<unused_{token}>")
        if tokenizer.id_of(entry.text) is not None or entry.text in texts:
            raise TokenizerError(f"the added token {shown(entry.text)} ({token}) is there twice")
        texts.add(entry.text)
        pieces += _piece(entry, token)
    if n_added:
        notes.append(f"{n_added} added tokens are kept with the tokenizer")
    if n_padding:
        notes.append(f"{n_padding} rows of the embedding table have no token: kept, without text")
    beyond = sorted(token for token in added if token >= max(n_rows, n_pieces))
    if beyond:
        listed = ", ".join(f"{shown(added[token].text)} ({token})" for token in beyond[:4])
        notes.append(
            f"added tokens without a row in the embedding table are left out: {listed}"
            + (", ..." if len(beyond) > 4 else "")
        )
    extended = data + bytes(pieces) if pieces else data
    whole = Tokenizer(extended, name=name)
    if whole.n_words != n_rows:
        raise TokenizerError(f"{name} cannot be extended to {n_rows} pieces; copy it again")
    whole.check_pieces()
    return extended, tuple(notes)


def _check_known(tokenizer: Tokenizer, added: Mapping[int, AddedToken]) -> None:
    for token, entry in added.items():
        if token < tokenizer.n_words and _plain(tokenizer.piece(token)) != _plain(entry.text):
            raise TokenizerError(
                f"the added token {shown(entry.text)} has the id {token}, which is "
                f"{shown(tokenizer.piece(token))} in tokenizer.model; they are not of one model"
            )


def _plain(text: str) -> str:
    """Leave out spaces at the ends, which the two kinds of files spell in different ways."""
    return text.replace("\u2581", " ").strip()


def _piece(entry: AddedToken, token: int) -> bytes:
    """Return the bytes of one more `pieces` field: text, score 0, type."""
    try:
        text = entry.text.encode()
    except UnicodeEncodeError:
        text = b""
    if not 0 < len(text) <= MAX_TOKEN_BYTES or b"\0" in text:
        raise TokenizerError(
            f"the added token {shown(entry.text)} ({token}) is no text of 1 to {MAX_TOKEN_BYTES} "
            "bytes"
        )
    return piece_field(text, 0.0, CONTROL if entry.is_control else USER_DEFINED)
