"""Chat in a session: the ids of the whole dialogue, of which only what differs is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fake_model import FakeLlama
from llama2q import SamplingParams, Session
from llama2q.errors import ContextLengthError, InvalidArgumentError


def prepare(
    messages: Sequence[str], params: SamplingParams, *, strict: bool, template: str | None
) -> tuple[list[int], SamplingParams]:
    """One token a character, and one behind each message."""
    ids = [1]
    for text in messages:
        ids += [100 + ord(character) for character in text] + [4 if strict else 5]
    return ids, params


@pytest.fixture
def chat(fake_llama: FakeLlama) -> Any:
    llm, model = fake_llama()
    return llm, model, Session(llm.engine, prepare=prepare)


def test_second_turn_computes_what_is_new(chat: Any) -> None:
    llm, model, session = chat
    with session:
        first = session.chat(["a" * 80], seed=1, max_tokens=4)
        begin = prepare(["a" * 80], SamplingParams(), strict=True, template=None)[0]
        assert session.token_ids == (*begin, *first.token_ids)
        answer = "".join(chr(token - 100) for token in first.token_ids if token >= 100)
        assert len(answer) == 4
        model.step_sizes.clear()
        second = session.chat(["a" * 80, "b" * 9], seed=1, max_tokens=1)
    # The answer was left out of the dialogue: what follows the first message is new.
    assert model.step_sizes == [10]
    ids = prepare(["a" * 80, "b" * 9], SamplingParams(), strict=True, template=None)[0]
    assert second.token_ids == llm.generate(ids, seed=1, max_tokens=1).token_ids
    assert second.usage.prompt_tokens == len(ids)
    assert second.usage.cached_tokens == len(begin)


def test_stream_chat(chat: Any) -> None:
    _, _, session = chat
    with session, session.fork() as fork:
        stream = session.stream_chat(["hello"], seed=1, max_tokens=6, strict=False)
        text = "".join(chunk.text for chunk in stream)
        assert text == fork.chat(["hello"], seed=1, max_tokens=6, strict=False).text
        assert session.token_ids == fork.token_ids
        assert session.token_ids[6] == 5


def test_without_a_format(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    with Session(llm.engine) as session, pytest.raises(InvalidArgumentError, match="chat format"):
        session.chat(["a"])


# --- dialogues that outgrow the context ---------------------------------------------------------


def turns(n_questions: int, width: int = 20) -> list[dict[str, str]]:
    """Make a dialogue with so many questions, and answers to all but the last one."""
    texts = [f"{i:<{width}}" for i in range(2 * n_questions - 1)]
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def spelt(
    messages: Sequence[dict[str, str]], params: SamplingParams, **_: Any
) -> tuple[list[int], SamplingParams]:
    """One token a character, and one before each message."""
    ids = [1]
    for message in messages:
        ids += [4, *(100 + ord(character) for character in message["content"])]
    return ids, params


SYSTEM = {"role": "system", "content": "brief"}
SETTINGS: dict[str, Any] = {"seed": 1, "max_tokens": 2}


@pytest.fixture
def sliding(fake_llama: FakeLlama) -> Any:
    llm, model = fake_llama(n_ctx=128)
    return model, Session(llm.engine, when_full="slide", prepare=spelt)


def test_the_oldest_turns_are_left_behind(sliding: Any) -> None:
    model, session = sliding
    with session:
        for n_questions in (1, 2, 3):
            session.chat([SYSTEM, *turns(n_questions)], **SETTINGS)
            assert session.token_ids[:-2] == tuple(spelt([SYSTEM, *turns(n_questions)], None)[0])
        # 7 messages do not fit: half the context holds the system message and 2 of them, or 1.
        session.chat([SYSTEM, *turns(4)], **SETTINGS)
        assert session.token_ids[:-2] == tuple(spelt([SYSTEM, turns(4)[-1]], None)[0])
        # What was left behind stays so: the next turn begins with the same tokens.
        model.step_sizes.clear()
        session.chat([SYSTEM, *turns(5)], **SETTINGS)
        assert session.token_ids[:-2] == tuple(spelt([SYSTEM, *turns(5)[-3:]], None)[0])
        assert sum(model.step_sizes) == 2 * 21 + 1


def test_another_dialogue_begins_whole(sliding: Any) -> None:
    _, session = sliding
    with session:
        session.chat(turns(4), **SETTINGS)
        with session.fork() as fork:
            fork.chat(turns(5), **SETTINGS)
            assert len(fork.token_ids) == 1 + 5 * 21 + 2
        other = [{**message, "content": "x"} for message in turns(5)]
        session.chat(other, **SETTINGS)
        assert session.token_ids[:-2] == tuple(spelt(other, None)[0])
        session.chat(turns(1), **SETTINGS)
        assert session.token_ids[:-2] == tuple(spelt(turns(1), None)[0])


def test_a_question_that_the_context_cannot_hold(sliding: Any, fake_llama: FakeLlama) -> None:
    _, session = sliding
    with session:
        for n_questions in (1, 4):
            with pytest.raises(ContextLengthError, match="the context holds 128"):
                session.chat(turns(n_questions, width=200), **SETTINGS)
        session.chat(turns(2), **SETTINGS)
    llm, _ = fake_llama(n_ctx=128)
    with (
        Session(llm.engine, prepare=spelt) as stopping,
        pytest.raises(ContextLengthError, match="rewind"),
    ):
        stopping.chat(turns(4), **SETTINGS)
