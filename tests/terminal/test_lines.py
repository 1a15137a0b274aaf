"""Lines that are typed: the history's place and mode, commands by name."""

from __future__ import annotations

import io
import stat
import sys
from pathlib import Path

import pytest

from llama2q.terminal.commands import COMMANDS, help_text, split
from llama2q.terminal.lines import PlainLines, default_history, make_private, open_lines

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")


@posix
@pytest.mark.parametrize("mode", [None, 0o644, 0o600])
def test_the_history_is_private(tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "state" / "llama2q" / "history"
    if mode is not None:
        path.parent.mkdir(parents=True)
        path.write_text("+before\n")
        path.chmod(mode)
    make_private(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == ("" if mode is None else "+before\n")
    if mode is None:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has a place of its own")
def test_place_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_history() == tmp_path / "llama2q" / "chat_history"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_history() == tmp_path / ".local/state/llama2q/chat_history"


def test_lines_of_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are read plainly, and leave no history."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\nthree"))
    lines = open_lines(tmp_path / "history")
    assert [lines.read() for _ in range(3)] == ["one", "", "three"]
    with pytest.raises(EOFError):
        lines.read()
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "history").exists()


def test_a_terminal_without_output_is_prompted_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    assert PlainLines("> ").read() == "one"
    assert capsys.readouterr() == ("", "> ")


def test_commands_are_told_from_texts() -> None:
    assert split("/system Be brief. ") == ("/system", "Be brief.")
    assert split("/undo") == ("/undo", "")
    assert split("undo") is None
    assert split(" /undo") is None
    assert split("") is None
    assert all(f"  {name}" in help_text() for name in COMMANDS)
