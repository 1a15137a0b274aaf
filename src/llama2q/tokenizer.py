"""SentencePiece tokenizer of Llama 2, and an incremental detokenizer.

The text of ids is that of SentencePiece's own decoder. Its rules, which `StreamDecoder` follows:

- `▁` becomes a space; SentencePiece puts one in front of a text before it encodes it, and takes one
  away again from the first piece that is decoded. Only the start of a *sequence* loses it: what is
  generated after a prompt keeps its space.
- Byte pieces `<0x00>` to `<0xFF>` are gathered until they form a UTF-8 character. A byte that
  cannot be part of one becomes U+FFFD; so does each byte of an unfinished character when another
  kind of piece follows or the text ends.
- Control tokens (BOS, EOS) have no text. The unknown token has SentencePiece's " ⁇ ".
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self, SupportsIndex

from llama2q.errors import InvalidArgumentError, TokenizerError

_SPACE: Final = "▁"
_REPLACEMENT: Final = "\ufffd"


class Tokenizer:
    """Text to token ids and back; immutable and safe to share between threads."""

    unk_id: Final = 0
    bos_id: Final = 1
    eos_id: Final = 2
    pad_id: Final = -1

    def __init__(self, data: bytes, *, name: str = "tokenizer.model") -> None:
        """Read a serialized SentencePiece model.

        Parameters
        ----------
        data : bytes
            Content of a `tokenizer.model`.
        name : str
            What messages call it.

        Raises
        ------
        TokenizerError
            If the data is no SentencePiece model with Llama 2's special ids.
        """
        import sentencepiece  # costs 50 ms, which `import llama2q` must not

        if not data:
            raise TokenizerError(f"{name} is empty; expected a SentencePiece model")
        try:
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=bytes(data))
            self._n_words = int(self._model.vocab_size())
        except Exception as error:
            raise TokenizerError(
                f"{name} ({len(data)} bytes) is not a SentencePiece model; "
                "copy tokenizer.model of the Llama 2 download again"
            ) from error
        found = (int(self._model.unk_id()), int(self._model.bos_id()), int(self._model.eos_id()))
        expected = (self.unk_id, self.bos_id, self.eos_id)
        if found != expected or self._n_words <= max(expected):
            raise TokenizerError(
                f"{name} has {self._n_words} pieces with (unk, bos, eos) = {found}; "
                f"a Llama 2 tokenizer has {expected}"
            )
        self._name = name
        self._texts: list[str | int | None] = [None] * self._n_words
        try:
            self._unknown_text = str(self._model.decode([self.unk_id]))
            space = int(self._model.piece_to_id(_SPACE))
            has_space = space != self.unk_id
            self._strips_first = not has_space or self._model.decode([space]) == ""
            self._strips_all = has_space and self._model.decode([space, space]) == ""
        except Exception as error:
            raise TokenizerError(f"{name} is damaged: {error}; copy it again") from error

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a `tokenizer.model` file.

        Raises
        ------
        TokenizerError
            If the file cannot be read or is no SentencePiece model.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from error
        return cls(data, name=str(path))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a serialized SentencePiece model."""
        return cls(data)

    @property
    def n_words(self) -> int:
        """Number of pieces."""
        return self._n_words

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._n_words

    def encode(self, text: str, *, bos: bool = True, eos: bool = False) -> list[int]:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
            Raw text. The names of control tokens in it ("<s>") are text like any other.
        bos, eos : bool
            Put id 1 in front, id 2 at the end.

        Returns
        -------
        list of int
            Token ids.

        Raises
        ------
        InvalidArgumentError
            If `text` is not a str, or holds a lone surrogate and so has no UTF-8 form.
        """
        if not isinstance(text, str):
            raise InvalidArgumentError(f"text is a {type(text).__name__}; expected a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"character {error.start} of the text is the lone surrogate "
                f"U+{ord(text[error.start]):04X}, which has no UTF-8 form; remove or replace it"
            ) from None
        ids: list[int] = self._model.encode(text)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def piece(self, token: int) -> str:
        """Return a piece as the model stores it; bytes that are not UTF-8 as U+FFFD.

        Raises
        ------
        InvalidArgumentError
            If the id is not in [0, vocab_size).
        """
        if not 0 <= token < self._n_words:
            raise InvalidArgumentError(
                f"token id {token} is outside the vocabulary; expected 0 to {self._n_words - 1}"
            )
        try:
            return str(self._model.id_to_piece(token))
        except UnicodeDecodeError:
            return _REPLACEMENT

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece as the model stores it, control pieces too; None if absent."""
        try:
            piece.encode()
        except UnicodeEncodeError:
            return None
        token = int(self._model.piece_to_id(piece))
        return token if token != self.unk_id or self.piece(token) == piece else None

    def check_pieces(self) -> None:
        """Read the text of every piece, which is otherwise done on first use.

        Raises
        ------
        TokenizerError
            A piece is not UTF-8.
        """
        for token in range(self._n_words):
            self._text_of(token)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Turn the ids of one sequence into its text.

        Raises
        ------
        InvalidArgumentError
            If an id is not in [0, vocab_size).
        """
        decoder = StreamDecoder(self)
        pieces = [decoder.push(operator.index(token)) for token in ids]
        return "".join(pieces) + decoder.flush()

    def text_of(self, token: int) -> str:
        """Return the text that a token adds inside a text, its leading space included.

        That of a byte piece that is no character by itself is U+FFFD.

        Raises
        ------
        InvalidArgumentError
            If the id is not in [0, vocab_size).
        """
        text = self._text_of(token)
        return bytes([text]).decode(errors="replace") if isinstance(text, int) else text

    def _text_of(self, token: int) -> str | int:
        """Text of an ordinary piece, spaces in place, or the value of a byte piece."""
        if not 0 <= token < self._n_words:
            raise InvalidArgumentError(
                f"token id {token} is outside the vocabulary; expected 0 to {self._n_words - 1}"
            )
        text = self._texts[token]
        if text is None:
            try:
                piece = str(self._model.id_to_piece(token))
            except UnicodeDecodeError as error:
                raise TokenizerError(
                    f"{self._name} is damaged: piece {token} is not UTF-8; copy it again"
                ) from error
            if self._model.is_byte(token):
                text = int(piece[1:-1], 16)
            elif self._model.is_control(token):
                text = ""
            elif self._model.is_unknown(token):
                text = self._unknown_text
            else:
                text = piece.replace(_SPACE, " ")
            self._texts[token] = text
        return text


class StreamDecoder:
    """Detokenizer that is fed one id at a time, in constant time per id.

    The pieces returned by `push`, then `flush`, joined, are the text of all ids. A piece ends at a
    character's end, so every piece is valid text by itself.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = bytearray()
        self._at_start = tokenizer._strips_first

    def push(self, token: int) -> str:
        """Take the next id; return the text that is certain by now.

        Raises
        ------
        InvalidArgumentError
            If the id is not in [0, vocab_size).
        """
        text = self._tokenizer._text_of(token)
        if isinstance(text, int):
            self._bytes.append(text)
            self._at_start = False
            return self._take_characters()
        if self._at_start and text.startswith(" ") and token != Tokenizer.unk_id:
            text = text[1:]
            self._at_start = self._tokenizer._strips_all
        if text:
            self._at_start = False
        return self.flush() + text

    def flush(self) -> str:
        """End a run of bytes: each byte still waiting for its character becomes U+FFFD."""
        if not self._bytes:
            return ""
        text = self._take_characters(at_end=True)
        self._bytes.clear()
        return text

    def _take_characters(self, *, at_end: bool = False) -> str:
        """Remove finished characters, and bytes that cannot begin one, from the buffer."""
        text = ""
        while self._bytes:
            first = self._bytes[0]
            width = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            if first < 0xF8 and len(self._bytes) < width and not at_end:
                break
            try:
                text += self._bytes[:width].decode()
            except UnicodeDecodeError:
                text += _REPLACEMENT
                width = 1
            del self._bytes[:width]
        return text
