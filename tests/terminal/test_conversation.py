"""The file of a chat: what is said comes back, and anything else is refused."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2q.chat import Message
from llama2q.errors import ChatFileError
from llama2q.terminal.conversation import Conversation

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


@given(st.none() | TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=4))
def test_comes_back(system: str | None, turns: list[tuple[str, str]]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder, "a.json")
        Conversation(system, turns).save(path)
        assert Conversation.load(path) == Conversation(system, turns)


def test_messages() -> None:
    plain = Conversation()
    assert plain.asking("a") == [Message("user", "a")]
    talk = Conversation("s", [("q", "a")])
    assert [(m.role, m.content) for m in talk.asking("r")] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "r"),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")
def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("something else")
    path.chmod(0o644)
    Conversation("s").save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_remains_of_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    Conversation("before").save(path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Conversation("after").save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert Conversation.load(path).system == "before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'llama2q-chat'"),
        ({"version": 2}, "version 2; this llama2q reads 1"),
        ({"more": 1}, "expected the keys"),
        ({"system": 3}, "system is a int"),
        ({"system": "\ud800"}, "lone surrogate"),
        ({"turns": {}}, "turns is no list"),
        ({"turns": [["q", "a"]]}, "turn 0 is not an object"),
        ({"turns": [{"question": "q"}]}, "turn 0 is not an object"),
        ({"turns": [{"question": "q", "answer": None}]}, "answer of turn 0 is a NoneType"),
    ],
)
def test_other_values(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.json"
    Conversation("s", [("q", "a")]).save(path)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(ChatFileError, match=message) as caught:
        Conversation.load(path)
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xff", b"[" * 100_000, b"null"])
def test_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ChatFileError, match="is no saved chat"):
        Conversation.load(path)
