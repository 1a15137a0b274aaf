"""Messages of a dialogue, and the order of their roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

from llama2q.errors import MessagesError

Role: TypeAlias = Literal["system", "user", "assistant"]

_KEYS = {"role", "content"}
_FORM = '{"role": "user", "content": "..."}'
_ORDER = "after an optional system message, user and assistant take turns"


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Parameters
    ----------
    role : {"system", "user", "assistant"}
    content : str
        Its text.
    """

    role: Role
    content: str


MessageLike: TypeAlias = Message | Mapping[str, object]
"""A Message, or a mapping with exactly its two fields, both texts."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages whose roles have been checked.

    Parameters
    ----------
    system : str or None
        What stands above it all.
    pairs : tuple of (str, str)
        Questions with their answers.
    question : str
        The last one, which the model is to answer.
    """

    system: str | None
    pairs: tuple[tuple[str, str], ...]
    question: str

    @classmethod
    def of(cls, messages: Sequence[MessageLike], tags: Sequence[str] = ()) -> Self:
        """Check messages.

        Parameters
        ----------
        messages : sequence of Message or mapping
        tags : sequence of str
            What no content may hold.

        Raises
        ------
        MessagesError
            If there is no message, one is malformed, holds a tag, or is not its role's turn.
        """
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
            raise MessagesError(
                f"messages is a {type(messages).__name__}; expected a list like [{_FORM}]"
            )
        if not messages:
            raise MessagesError(f"there are no messages; expected one like {_FORM} at least")
        read = [_read(i, message) for i, message in enumerate(messages)]
        for i, message in enumerate(read):
            _refuse_tags(i, message, tags)
        n_system = int(read[0].role == "system")
        for i, message in enumerate(read[n_system:]):
            expected = "assistant" if i % 2 else "user"
            if message.role != expected:
                raise MessagesError(
                    f"message {n_system + i} has the role {message.role!r}; expected {expected!r}: "
                    f"{_ORDER}"
                )
        if read[-1].role != "user":
            raise MessagesError(
                f"the last message has the role {read[-1].role!r}; expected 'user', whom the model "
                "answers"
            )
        texts = [message.content for message in read[n_system:]]
        return cls(
            system=read[0].content if n_system else None,
            pairs=tuple(zip(texts[:-1:2], texts[1::2], strict=True)),
            question=texts[-1],
        )


def _read(i: int, message: Any) -> Message:
    """Check one message; its content is in no error message."""
    if isinstance(message, Message):
        role, content = message.role, message.content
    elif isinstance(message, Mapping):
        if set(message) != _KEYS:
            raise MessagesError(
                f"message {i} has the keys {sorted(map(str, message))}; expected role and content"
            )
        role, content = message["role"], message["content"]
    else:
        raise MessagesError(f"message {i} is a {type(message).__name__}; expected {_FORM}")
    if role not in ("system", "user", "assistant"):
        raise MessagesError(
            f"message {i} has the role {role!r:.80}; expected 'system', 'user' or 'assistant'"
        )
    if not isinstance(content, str):
        raise MessagesError(f"message {i} has a {type(content).__name__} as content; expected text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise MessagesError(
            f"message {i}: character {error.start} is the lone surrogate "
            f"U+{ord(content[error.start]):04X}, which has no UTF-8 form; remove or replace it"
        ) from None
    return Message(role, content)


def _refuse_tags(i: int, message: Message, tags: Sequence[str]) -> None:
    for tag in tags:
        if tag in message.content:
            raise MessagesError(
                f"message {i} ({message.role}) holds {tag!r}, by which the model tells messages "
                "apart; remove it, or keep it as it is with strict=False"
            )
