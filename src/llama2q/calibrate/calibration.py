"""What a conversion calibrates with: windows of a text, and how a file's metadata names it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llama2q.calibrate.text import default_text, windows
from llama2q.errors import CalibrationTextError
from llama2q.tokenizer import Tokenizer

N_TOKENS = 10_240
"""More change little (docs/quality.md) and cost as much again."""
WINDOW = 512
_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Calibration:
    """A text, cut.

    Attributes
    ----------
    windows : tuple of list of int
        Token ids of sequences of equal length.
    description : str
        Number of tokens and SHA-256 of the text; no path.
    """

    windows: tuple[list[int], ...]
    description: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: a text that is shorter than what is asked of it."""
        n_tokens = sum(map(len, self.windows))
        if n_tokens + WINDOW > N_TOKENS:
            return ()
        return (
            f"the calibration text has {n_tokens} tokens in whole windows of {WINDOW}; with fewer "
            f"than {N_TOKENS} the codes fit this text rather than the language",
        )

    @classmethod
    def of(cls, tokenizer_bytes: bytes, path: Path | None) -> Self:
        """Cut the text of a file, or by default the one that comes with the package.

        Parameters
        ----------
        tokenizer_bytes : bytes
            The model's SentencePiece model.
        path : Path or None
            UTF-8. Form feeds separate pieces that shall all be represented.

        Raises
        ------
        CalibrationTextError
            The file cannot be read, is no UTF-8, or is too short or too long.
        """
        text = default_text() if path is None else _read(path)
        cut = windows(Tokenizer.from_bytes(tokenizer_bytes), text, N_TOKENS, WINDOW)
        digest = hashlib.sha256(text.encode()).hexdigest()
        n_tokens = sum(map(len, cut))
        return cls(tuple(cut), f"{n_tokens} tokens of a text with SHA-256 {digest}")


def _read(path: Path) -> str:
    try:
        n_bytes = path.stat().st_size
        if n_bytes > _MAX_BYTES:
            raise CalibrationTextError(
                f"{path} has {n_bytes} bytes; a calibration text has at most {_MAX_BYTES}, and "
                f"{N_TOKENS} tokens of it are used: pass an excerpt"
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationTextError(
            f"{path} is not UTF-8 at byte {error.start}; expected plain text"
        ) from error
    except OSError as error:
        raise CalibrationTextError(
            f"the calibration text {path} cannot be read: {error.strerror or error}"
        ) from error
