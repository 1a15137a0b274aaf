"""The loop of a chat: turns, commands, errors, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fake_model import FakeLlama, FakeModel
from llama2q import Llama, SamplingParams
from llama2q.chat import encode_chat
from llama2q.terminal import TerminalChat
from llama2q.terminal.chat import visible

Line = str | type[BaseException]


class Script:
    """Lines that are typed one after the other; an exception is raised."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = iter(lines)

    def read(self) -> str:
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


class Talk:
    """A chat over the fake model, and what it showed."""

    def __init__(self, llm: Llama, model: FakeModel) -> None:
        self.llm = llm
        self.model = model
        self.notes: list[str] = []
        self.chat: TerminalChat

    def run(self, *lines: Line, **options: Any) -> TerminalChat:
        params = SamplingParams(**{"seed": 7, "max_tokens": 6, **options.pop("sampling", {})})
        options.setdefault("template", "llama2-chat")
        self.chat = TerminalChat(self.llm, Script(lines), self.notes.append, params, **options)
        self.chat.run()
        return self.chat


@pytest.fixture
def talk(fake_llama: FakeLlama) -> Callable[..., Talk]:
    return lambda **options: Talk(*fake_llama(**options))


def test_turns(talk: Callable[..., Talk], capsys: pytest.CaptureFixture[str]) -> None:
    one = talk()
    turns = one.run("Hello", "", "  ", "And now?", system="Be brief.").conversation.turns
    assert [question for question, _ in turns] == ["Hello", "And now?"]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": turns[0][1]},
        {"role": "user", "content": "And now?"},
    ]
    with one.llm.session() as session:
        # The second answer has the seed after the first one's.
        expected = session.chat(messages, seed=8, max_tokens=6, template="llama2-chat").text
    assert turns[1][1] == expected
    assert capsys.readouterr().out == f"{turns[0][1]}\n{turns[1][1]}\n"
    ids = encode_chat(one.llm.tokenizer, messages)
    assert f"context {len(ids) + 6} of" in one.notes[-1]
    assert "6 tokens, " in one.notes[-1]
    assert "cut by max-tokens" in one.notes[-1]


def test_only_new_tokens_are_computed(talk: Callable[..., Talk]) -> None:
    one = talk()
    one.run("Hello " * 30, "And now?")
    n_first = int(one.notes[0].partition("prompt ")[2].split()[0])
    n_kept = int(one.notes[1].partition(" new, ")[2].split()[0])
    assert n_kept >= n_first - 1


def test_undo_reset_and_system(talk: Callable[..., Talk]) -> None:
    one = talk()
    chat = one.run("a", "b", "/undo", "/system  Be kind. ", "/system")
    assert [question for question, _ in chat.conversation.turns] == ["a"]
    assert chat.conversation.system == "Be kind."
    assert one.notes[2:] == ["taken back: b", *["system prompt: Be kind."] * 2]
    one.notes.clear()
    chat = one.run("a", "/system x", "/system -", "/reset", "/undo", "/retry")
    assert chat.conversation.turns == []
    assert chat.conversation.system is None
    assert one.notes[3:] == [
        "1 questions and answers forgotten.",
        "error: there is nothing to take back",
        "error: there is no question to answer anew",
    ]


def test_retry_draws_anew(talk: Callable[..., Talk]) -> None:
    first = talk().run("a").conversation.turns
    again = talk().run("a", "/retry").conversation.turns
    assert [question for question, _ in again] == ["a"]
    assert again[0][1] != first[0][1]
    greedy = talk().run("a", "/retry", sampling={"temperature": 0}).conversation.turns
    assert len(greedy) == 1


def test_save_and_load(talk: Callable[..., Talk], tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    one = talk()
    saved = one.run("a", "b", f"/save {path}", system="s").conversation
    loaded = one.run("/load " + str(path), "/undo").conversation
    assert loaded.system == "s"
    assert loaded.turns == saved.turns[:1]
    one.notes.clear()
    one.run("/save", "/load", f"/load {tmp_path / 'none.json'}", f"/save {tmp_path / 'no' / 'x'}")
    assert one.notes[:2] == ["error: /save needs a path", "error: /load needs a path"]
    assert all(note.startswith("error: ") and "No such file" in note for note in one.notes[2:])
    assert len(one.notes) == 4


def test_stats_help_and_unknown(talk: Callable[..., Talk]) -> None:
    one = talk()
    one.run("/stats", "a", "/stats", "/help", "/nope x", "/exit", "never")
    assert "last answer" not in one.notes[0]
    assert "last answer: 6 tokens" in one.notes[2]
    assert "KV cache f16" in one.notes[2]
    assert "/retry" in one.notes[3]
    assert "there is no command /nope" in one.notes[4]
    assert len(one.notes) == 5


def test_a_text_that_begins_with_a_slash(talk: Callable[..., Talk]) -> None:
    assert talk().run(" /undo is a word").conversation.turns[0][0] == "/undo is a word"


def test_errors_leave_the_chat_as_it_was(talk: Callable[..., Talk]) -> None:
    one = talk(n_ctx=64)
    chat = one.run("a", "[INST]", "word " * 100, "b")
    assert [question for question, _ in chat.conversation.turns] == ["a", "b"]
    assert "holds '[INST]'" in one.notes[1]
    assert "--keep-tags" in one.notes[1]
    assert "the context holds 64" in one.notes[2]
    kept = one.run("[INST]", strict=False).conversation.turns
    assert kept[0][0] == "[INST]"


def test_full_context(talk: Callable[..., Talk]) -> None:
    one = talk(n_ctx=64)
    one.run("a " * 20, sampling={"max_tokens": 1000})
    assert "context 64 of 64 (100 %)" in one.notes[0]
    assert "the context is full: /undo or /reset" in one.notes[0]
    one.notes.clear()
    chat = one.run(*["word " * 8] * 6, when_full="slide")
    assert len(chat.conversation.turns) == 6
    assert not any(note.startswith("error") for note in one.notes)


# --- Ctrl-C -----------------------------------------------------------------------------------


def interrupt(times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def interrupting(model: FakeModel, at: int, times: int = 1) -> None:
    """Press Ctrl-C during the step of that number, counted from now."""
    first = model.n_steps

    def on_step(number: int) -> None:
        if number == first + at:
            interrupt(times)

    model.on_step = on_step


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_the_first_stops_the_answer(talk: Callable[..., Talk]) -> None:
    one = talk()
    before = signal.getsignal(signal.SIGINT)
    interrupting(one.model, 4)
    chat = one.run("a", "b", sampling={"max_tokens": 8, "temperature": 0})
    assert signal.getsignal(signal.SIGINT) is before
    (_, stopped), (_, whole) = chat.conversation.turns
    assert "stopped; Ctrl-C again leaves" in one.notes[0]
    assert "stopped" not in one.notes[1]
    expected = one.llm.chat(
        [{"role": "user", "content": "a"}], max_tokens=8, temperature=0, template="llama2-chat"
    ).text
    assert stopped
    assert expected.startswith(stopped)
    assert stopped != expected
    assert whole


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_before_the_answer_the_question_is_taken_back(talk: Callable[..., Talk]) -> None:
    one = talk()
    interrupting(one.model, 1)
    chat = one.run("a", "b")
    assert [question for question, _ in chat.conversation.turns] == ["b"]
    assert one.notes[0] == "stopped before an answer; the question is taken back."


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_a_stopped_retry_keeps_the_answer(talk: Callable[..., Talk]) -> None:
    one = talk()
    n_steps = 1 + 5  # of the first answer: its prompt, and 5 tokens
    interrupting(one.model, n_steps + 1)
    chat = one.run("a", "/retry")
    assert "taken back" in one.notes[1]
    assert chat.conversation.turns == talk().run("a").conversation.turns


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_the_second_leaves(talk: Callable[..., Talk]) -> None:
    one = talk()
    chat = one.run(KeyboardInterrupt, "a", KeyboardInterrupt, KeyboardInterrupt, "never")
    assert [question for question, _ in chat.conversation.turns] == ["a"]
    assert one.notes[0] == one.notes[2] == "Ctrl-C again leaves; so does Ctrl-D."
    # After one that stopped an answer, the next one leaves.
    interrupting(one.model, 3)
    chat = one.run("a", KeyboardInterrupt, "never")
    assert len(chat.conversation.turns) == 1
    # Two during an answer.
    interrupting(one.model, 3, times=2)
    one.run("a", KeyboardInterrupt, "never")
    assert one.model.n_steps < 30


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e4\n\t", "plain \u00e4\n\t"),
        ("\U0001f469\u200d\U0001f52c", "\U0001f469\u200d\U0001f52c"),
        ("\x1b[2J\x07\r\x9b", r"\x1b[2J\x07\r\x9b"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown
