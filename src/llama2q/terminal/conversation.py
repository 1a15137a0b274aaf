"""What was said: a system prompt, questions with their answers, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from llama2q.chat.messages import Message
from llama2q.errors import ChatFileError
from llama2q.files import private_file

FORMAT = "llama2q-chat"
VERSION = 1
MAX_BYTES = 64 << 20


@dataclass(slots=True)
class Conversation:
    """A dialogue that grows by turns.

    Parameters
    ----------
    system : str or None
    turns : list of (str, str)
        Questions with their answers.
    """

    system: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)

    def asking(self, question: str) -> list[Message]:
        """Return the messages that ask a question after all that was said."""
        messages = [] if self.system is None else [Message("system", self.system)]
        for asked, answer in self.turns:
            messages += [Message("user", asked), Message("assistant", answer)]
        return [*messages, Message("user", question)]

    def save(self, path: Path) -> None:
        """Write a JSON file that only its owner can read; it appears whole or not at all."""
        turns = [{"question": question, "answer": answer} for question, answer in self.turns]
        values = {"format": FORMAT, "version": VERSION, "system": self.system, "turns": turns}
        with private_file(path) as file:
            file.write(json.dumps(values, ensure_ascii=False, indent=1).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        ChatFileError
            If it is anything else.
        """
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        try:
            if len(data) > MAX_BYTES:
                raise ChatFileError(f"more than {MAX_BYTES} bytes")
            return cls._of(json.loads(data))
        except (ValueError, RecursionError, ChatFileError) as error:
            raise ChatFileError(f"{path} is no saved chat: {error}") from error

    @classmethod
    def _of(cls, values: Any) -> Self:
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ChatFileError(f"expected an object whose format is {FORMAT!r}; /save writes one")
        if values.get("version") != VERSION:
            raise ChatFileError(
                f"it has version {values.get('version')!r:.40}; this llama2q reads {VERSION}"
            )
        if set(values) != {"format", "version", "system", "turns"}:
            raise ChatFileError("expected the keys format, version, system and turns")
        system, turns = values["system"], values["turns"]
        if system is not None:
            _check_text("system", system)
        if not isinstance(turns, list):
            raise ChatFileError("turns is no list")
        for i, turn in enumerate(turns):
            if not isinstance(turn, dict) or set(turn) != {"question", "answer"}:
                raise ChatFileError(f"turn {i} is not an object of question and answer")
            _check_text(f"the question of turn {i}", turn["question"])
            _check_text(f"the answer of turn {i}", turn["answer"])
        return cls(system, [(turn["question"], turn["answer"]) for turn in turns])


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ChatFileError(f"{what} is a {type(value).__name__}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ChatFileError(f"{what} holds a lone surrogate, which has no UTF-8 form") from None
