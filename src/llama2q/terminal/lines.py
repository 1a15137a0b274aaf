"""What the user types, line by line."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llama2q.terminal.commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "


class Lines(Protocol):
    """Where lines come from."""

    def read(self) -> str:
        """Return the next line, without its end.

        Raises
        ------
        EOFError
            After the last one: Ctrl-D.
        KeyboardInterrupt
            Ctrl-C.
        """


class PlainLines:
    """Lines of stdin, which is no terminal, or of one that cannot be drawn on."""

    def __init__(self, prompt: str = "") -> None:
        self._prompt = prompt

    def read(self) -> str:
        """Return the next line; see `Lines`."""
        print(self._prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")


class EditedLines:
    """Lines with editing, history and completion of commands, by prompt_toolkit."""

    def __init__(self, prompt: str, words: Iterable[str], history: Path | None) -> None:
        """Open the terminal.

        Parameters
        ----------
        prompt : str
        words : iterable of str
            What Tab completes at the beginning of a line.
        history : Path or None
            Where lines are kept; None keeps them in memory.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        self._session: PromptSession[str] = PromptSession(
            prompt,
            completer=WordCompleter(list(words), sentence=True),
            complete_while_typing=False,
            history=InMemoryHistory() if history is None else FileHistory(str(history)),
            key_bindings=_new_line_key(),
            prompt_continuation="  ",
        )

    def read(self) -> str:
        """Return the next line; see `Lines`."""
        return self._session.prompt()


def open_lines(history: Path | None) -> Lines:
    """Return the lines of this process: edited ones where it has a terminal.

    Raises
    ------
    OSError
        If the history's file cannot be made, or written by its owner alone.
    """
    if not sys.stdin.isatty():
        return PlainLines()
    if not sys.stdout.isatty():
        return PlainLines(PROMPT)
    if history is not None:
        make_private(history)
    return EditedLines(PROMPT, COMMANDS, history)


def default_history() -> Path:
    """Return where history is kept unless another place is asked for."""
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return folder / "llama2q" / "chat_history"


def make_private(path: Path) -> None:
    """Make sure that a file is there and that only its owner can read and write it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)) as file:
        if hasattr(os, "fchmod") and stat.S_IMODE(os.fstat(file.fileno()).st_mode) != 0o600:
            os.fchmod(file.fileno(), 0o600)


def _new_line_key() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
