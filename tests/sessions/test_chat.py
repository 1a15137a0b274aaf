"""Chat in a session: the ids of the whole dialogue, of which only what differs is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fake_model import FakeLlama
from llama2q import SamplingParams, Session
from llama2q.errors import InvalidArgumentError


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
