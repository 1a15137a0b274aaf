"""Which turns of a dialogue the context holds, where it has no room for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from llama2q.chat.messages import Message, MessageLike
from llama2q.sampling import SamplingParams
from llama2q.sessions.window import Window

Prepare: TypeAlias = Callable[[Sequence[MessageLike]], tuple[list[int], SamplingParams]]
"""Turns a dialogue into the ids of its prompt, and settings."""


class DialogueWindow:
    """Leaves the oldest questions and their answers behind where a dialogue outgrows the context.

    What was left behind stays so, and half of the context becomes free at once: the turns after it
    begin with the same tokens, which are not computed again.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._left: list[tuple[object, object]] = []

    @property
    def n_left(self) -> int:
        """Messages of the last dialogue that were left behind."""
        return len(self._left)

    def fit(
        self, messages: Sequence[MessageLike], prepare: Prepare
    ) -> tuple[list[int], SamplingParams]:
        """Return the ids of what remains, the end and the system message, and settings.

        There are too many where the context does not slide, or has no room for the last question.

        Parameters
        ----------
        messages : sequence of Message or mapping
            The whole dialogue.
        prepare : callable
            Refuses what is no dialogue.
        """
        ids, params = prepare(messages)
        if self._window.when_full == "stop":
            return ids, params
        n_system = int(_pair(messages[0])[0] == "system")
        system, turns = messages[:n_system], messages[n_system:]
        n_left = self.n_left
        if n_left >= len(turns) or [_pair(turn) for turn in turns[:n_left]] != self._left:
            n_left = 0
        elif n_left:
            ids, _ = prepare([*system, *turns[n_left:]])
        if len(ids) >= self._window.n_ctx:
            while len(ids) > self._window.n_ctx // 2 and n_left + 2 < len(turns):
                n_left += 2
                ids, _ = prepare([*system, *turns[n_left:]])
        self._left = [_pair(turn) for turn in turns[:n_left]]
        return ids, params

    def copy(self) -> DialogueWindow:
        """Return one that has left the same behind."""
        other = DialogueWindow(self._window)
        other._left = self._left.copy()
        return other


def _pair(message: MessageLike) -> tuple[object, object]:
    if isinstance(message, Message):
        return message.role, message.content
    return message["role"], message["content"]
