"""`llama2q chat` in a real terminal: tmux types, and reads the screen."""

from __future__ import annotations

import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE = 60.0
ENDLESS = ("--temperature", "0", "--max-tokens", "1000000", "--when-full", "slide")
"""The demo model never ends this way."""


class Terminal:
    """A terminal of 100 by 50 characters in which one command runs."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self._socket = folder / "tmux"
        self._status = folder / "status"
        run = f"{shlex.join(command)}; echo $? > {shlex.quote(str(self._status))}; sleep 600"
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "50", run)

    def _tmux(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-u", "-S", str(self._socket), *arguments],
            check=True,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
        ).stdout

    def type(self, *keys: str) -> None:
        """Press keys by tmux's names; what is none of them is typed."""
        self._tmux("send-keys", *keys)

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-J", "-S", "-200")

    def wait(self, condition: Callable[[str], bool]) -> str:
        """Return the screen as soon as it is as wanted."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            screen = self.screen()
            if condition(screen):
                return screen
            time.sleep(0.05)
        raise AssertionError(f"not in {PATIENCE} s; the screen:\n{self.screen()}")

    def wait_for(self, text: str, times: int = 1) -> str:
        return self.wait(lambda screen: screen.count(text) >= times)

    def exit_code(self) -> int:
        self.wait(lambda _: self._status.exists() and self._status.read_text() != "")
        return int(self._status.read_text())

    def close(self) -> None:
        self._tmux("kill-server")


Open = Callable[..., Terminal]


@pytest.fixture
def chat(tmp_path: Path, mini_file: Path) -> Iterator[Open]:
    if shutil.which("tmux") is None:
        pytest.skip("no tmux here: it is the terminal of this test")
    opened: list[Terminal] = []

    def open_chat(*options: str) -> Terminal:
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        command = [sys.executable, "-m", "llama2q", "chat", str(mini_file), *options]
        opened.append(Terminal(folder, command))
        opened[-1].wait(lambda screen: screen.rstrip().endswith(">"))
        return opened[-1]

    yield open_chat
    for terminal in opened:
        terminal.close()


def stop_after_some_text(terminal: Terminal, question: str) -> None:
    """Ask, and press Ctrl-C while the answer comes."""
    terminal.type(question)
    asked = terminal.wait(lambda screen: screen.rstrip().endswith(f"> {question}"))
    terminal.type("Enter")
    # Text comes, and more of it: the question may have left the screen by then.
    begun = terminal.wait(lambda screen: len(screen.rstrip()) != len(asked.rstrip()))
    terminal.wait(lambda screen: screen != begun)
    terminal.type("C-c")


def has_stopped(screen: str) -> bool:
    return screen.rstrip().endswith("stopped; Ctrl-C again leaves]\n>")


def test_a_chat(chat: Open, tmp_path: Path) -> None:
    history, saved = tmp_path / "history", tmp_path / "saved.json"
    first = chat("--history", str(history), *ENDLESS)
    assert "fits." in first.screen()
    assert "chat format base." in first.screen()

    # The first Ctrl-C stops the answer; the chat goes on.
    stop_after_some_text(first, "Hello")
    first.wait(has_stopped)
    first.type("/stats", "Enter")
    first.wait_for("last answer:")

    # Editing within a line, completion, and the line before.
    first.type("/sytem Be brief", "Home", "Right", "Right", "Right", "s", "End", ".", "Enter")
    first.wait_for("system prompt: Be brief.")
    first.type("/ret", "Tab")
    first.wait_for("> /retry")
    first.type("BSpace", "BSpace", "BSpace", "set", "Enter")
    first.wait_for("1 questions and answers forgotten.")
    first.type("Up", "Up", "BSpace", "!", "Enter")
    first.wait_for("system prompt: Be brief!")
    first.type("/reset  ", "C-u", f"/save {saved}", "Enter")
    first.wait_for("saved: 0 questions")

    # Two Ctrl-C leave.
    stop_after_some_text(first, "Again")
    first.wait(has_stopped)
    first.type("C-c")
    assert first.exit_code() == 0
    assert "Traceback" not in first.screen()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert "+Hello\n" in history.read_text()

    # Another chat finds the lines of the first, and the saved chat; Ctrl-D leaves.
    before = history.read_text()
    second = chat("--history", str(history), "--max-tokens", "3")
    second.type(f"/load {saved}", "Enter")
    second.wait_for("loaded: 0 questions")
    second.type("Up", "Up", "Enter")
    second.wait_for("cut by max-tokens]")
    assert "> Again" in second.screen()
    second.type("C-d")
    assert second.exit_code() == 0
    assert history.read_text().startswith(before)
    assert history.read_text().endswith("+Again\n")


def test_without_history(chat: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    terminal = chat("--no-history", "--max-tokens", "3")
    terminal.type("one", "M-Enter", "two", "Enter")
    terminal.wait_for("cut by max-tokens]")
    # Lines of this chat are at hand all the same.
    terminal.type("Up", "Enter")
    screen = terminal.wait_for("cut by max-tokens]", times=2)
    assert screen.count("> one\n  two\n") == 2
    terminal.type("/exit", "Enter")
    assert terminal.exit_code() == 0
    assert not (tmp_path / "state").exists()
