"""The SentencePiece model that a GGUF file describes: its pieces, scores, types and settings.

Source of the keys: ggml-org/ggml, docs/gguf.md; of what converters write into them:
ggml-org/llama.cpp, `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.converter.gguf_values import GgufValues
from llama2q.converter.hf_tokenizer import MAX_TOKEN_BYTES, with_added_tokens
from llama2q.converter.json_file import shown
from llama2q.converter.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    normalizer_field,
    piece_field,
    trainer_field,
)
from llama2q.errors import TokenizerError, UnsupportedModelError
from llama2q.tokenizer import Tokenizer

_PREFIX = "tokenizer.ggml."
_EXPECTED = {
    "unknown_token_id": Tokenizer.unk_id,
    "bos_token_id": Tokenizer.bos_id,
}
_SPECIAL_TYPES = {
    Tokenizer.unk_id: UNKNOWN,
    Tokenizer.bos_id: CONTROL,
    Tokenizer.eos_id: CONTROL,
}
_BYTE_TEXTS = {f"<0x{byte:02X}>".encode() for byte in range(256)}


def read_tokenizer(values: GgufValues, n_rows: int) -> tuple[bytes, tuple[str, ...]]:
    """Build the SentencePiece model.

    Parameters
    ----------
    values : GgufValues
    n_rows : int
        Rows of the embedding table.

    Returns
    -------
    bytes, tuple of str
        The model, a piece for each row; what a user should know.

    Raises
    ------
    TokenizerError
        The tokenizer is of another kind, incomplete, or does not fit the model.
    UnsupportedModelError
        It has other special tokens than Llama 2's.
    ParamsError
        A key has a value of a wrong type.
    """
    _refuse_others(values)
    tokens, scores, kinds = _pieces(values)
    tokenizer = b"".join(
        piece_field(token, score, kind)
        for token, score, kind in zip(tokens, scores.tolist(), kinds.tolist(), strict=True)
    )
    tokenizer += trainer_field(
        {
            3: BPE,
            4: len(tokens),
            35: int((kinds == BYTE).any()),  # byte_fallback
            40: Tokenizer.unk_id,
            41: Tokenizer.bos_id,
            42: Tokenizer.eos_id,
            43: Tokenizer.pad_id,
            45: tokens[Tokenizer.unk_id],
            46: tokens[Tokenizer.bos_id],
            47: tokens[Tokenizer.eos_id],
        }
    )
    tokenizer += normalizer_field(
        {
            1: b"identity",
            3: int(values.flag(_PREFIX + "add_space_prefix") is not False),
            4: int(values.flag(_PREFIX + "remove_extra_whitespaces") is True),
            5: 1,  # escape_whitespaces
        }
    )
    data, notes = with_added_tokens(tokenizer, {}, n_rows, f"the tokenizer of {values.where}")
    return data, (*_notes(values), *notes)


def _refuse_others(values: GgufValues) -> None:
    where = values.where
    kind = values.text(_PREFIX + "model")
    if kind != "llama":
        raise TokenizerError(
            f"{where} has a tokenizer of the kind {shown(kind)}; this engine reads SentencePiece "
            "models only (kind 'llama'). Llama 3's are of the kind 'gpt2': take a model with Llama "
            "2's tokenizer, or its Hugging Face folder with a tokenizer.model"
        )
    if values.values.get(_PREFIX + "precompiled_charsmap") is not None:
        raise TokenizerError(
            f"{where}: {_PREFIX}precompiled_charsmap asks for a normalization of texts, which "
            "models of the kind 'llama' do not have"
        )
    for name, expected in _EXPECTED.items():
        found = values.integer(_PREFIX + name)
        if found not in (None, expected):
            raise UnsupportedModelError(
                f"{where}: {_PREFIX}{name} is {found}; Llama 2's is {expected} and this engine "
                "takes no other"
            )


def _pieces(values: GgufValues) -> tuple[tuple[bytes, ...], NDArray[np.float32], NDArray[Any]]:
    """Return text, score and type of each piece."""
    where = values.where
    tokens = values.texts(_PREFIX + "tokens")
    scores = values.numbers(_PREFIX + "scores", "f")
    kinds = values.numbers(_PREFIX + "token_type", "iu")
    if tokens is None or scores is None or kinds is None:
        raise TokenizerError(
            f"{where} lacks {_PREFIX}tokens, scores or token_type; take another file of the model"
        )
    if not len(tokens) == len(scores) == len(kinds) or len(tokens) <= max(_SPECIAL_TYPES):
        raise TokenizerError(
            f"{where} has {len(tokens)} tokens, {len(scores)} scores and {len(kinds)} types; "
            "expected as many of each"
        )
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    if not np.isfinite(scores).all():
        raise TokenizerError(f"{where}: a token's score is NaN, infinite or beyond float32")
    for token, kind in _SPECIAL_TYPES.items():
        if kinds[token] != kind:
            raise TokenizerError(
                f"{where}: token {token}, {_shown(tokens[token])}, has the type {kinds[token]}; "
                f"Llama 2's has {kind}"
            )
    seen: set[bytes] = set()
    for token, text in enumerate(tokens):
        if not NORMAL <= int(kinds[token]) <= BYTE:
            raise TokenizerError(
                f"{where}: token {token}, {_shown(text)}, has the type {kinds[token]}; expected "
                f"{NORMAL} to {BYTE}"
            )
        if not 0 < len(text) <= MAX_TOKEN_BYTES or b"\0" in text or not _is_utf8(text):
            raise TokenizerError(
                f"{where}: token {token} is {_shown(text)}; expected a text of 1 to "
                f"{MAX_TOKEN_BYTES} bytes"
            )
        if text in seen:
            raise TokenizerError(f"{where}: token {token}, {_shown(text)}, is there twice")
        seen.add(text)
    of_bytes = {text for text, kind in zip(tokens, kinds, strict=True) if kind == BYTE}
    if of_bytes and of_bytes != _BYTE_TEXTS:
        raise TokenizerError(
            f"{where}: the tokens of single bytes are {len(of_bytes)}; expected <0x00> to <0xFF>"
        )
    return tokens, scores, kinds


def _notes(values: GgufValues) -> list[str]:
    notes = []
    eos = values.integer(_PREFIX + "eos_token_id")
    if eos not in (None, Tokenizer.eos_id):
        notes.append(
            f"{_PREFIX}eos_token_id: texts end with the token {eos} too: generation stops there "
            f"only with stop_token_ids=[{eos}]"
        )
    if values.flag(_PREFIX + "add_bos_token") is False:
        notes.append(
            f"{_PREFIX}add_bos_token is false: a text prompt begins with BOS all the same; give "
            "token ids to leave it out"
        )
    if values.flag(_PREFIX + "add_eos_token") is True:
        notes.append(f"{_PREFIX}add_eos_token is true: no prompt ends with EOS all the same")
    return notes


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _shown(text: bytes) -> str:
    return shown(text.decode("utf-8", "replace"))
