"""Sessions: each call gives what one call with the whole text gives, and computes what is new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llama2q
from fake_model import FakeLlama, by_hash
from llama2q import Llama, Session
from llama2q.engine import Engine
from llama2q.errors import InvalidArgumentError
from llama2q.kv_blocks import BLOCK

VOCAB = 4096
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "seed": 5, "max_tokens": 12}


@pytest.fixture(scope="module")
def mini(mini_file: Path) -> Iterator[Llama]:
    """The demo model, loaded; its cache holds few texts, so that some are lost."""
    with Llama(Engine(mini_file, n_ctx=1024, max_sequences=2)) as llm:
        yield llm


@pytest.fixture(scope="module")
def forgetful(mini_file: Path) -> Iterator[Llama]:
    """The same one, that computes every text anew."""
    with llama2q.load(mini_file, n_ctx=1024, prefix_memory=0) as llm:
        yield llm


def words(llm: Llama, n_tokens: int) -> list[int]:
    return llm.tokenizer.encode("The king of the land said that she was old. " * 120)[:n_tokens]


@pytest.fixture(autouse=True)
def _nothing_held(mini: Llama) -> Iterator[None]:
    """Whatever a test does with its sessions, no block is held at its end."""
    yield
    assert mini.engine.pool.n_available == mini.engine.pool.n_blocks


# --- append -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_first", [1, 63, 64, 65, 200])
def test_append_gives_the_logits_of_the_whole_text(
    mini: Llama, forgetful: Llama, n_first: int
) -> None:
    ids = words(mini, n_first + 30)
    expected = forgetful.logits(ids)
    with mini.session() as session:
        assert np.array_equal(session.append(ids[:n_first]), expected[n_first - 1])
        for i in range(n_first, len(ids)):
            assert np.array_equal(session.append(ids[i : i + 1]), expected[i])
        assert session.token_ids == tuple(ids)
        assert len(session) == len(ids)


def test_append_computes_only_what_is_new(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    with llm.session() as session:
        session.append([1] + [5] * 99)
        session.append([6] * 3)
        session.append([7])
    assert model.step_sizes == [100, 3, 1]


def test_loop_of_ones_own(mini: Llama, forgetful: Llama) -> None:
    """The loop that README shows, against the engine's greedy one."""
    with mini.session() as session:
        logits = session.append(mini.tokenizer.encode("The king"))
        new = []
        while len(new) < 20:
            token = int(np.argmax(logits))
            if token == mini.tokenizer.eos_id:
                break
            new.append(token)
            logits = session.append([token])
    expected = forgetful.generate("The king", temperature=0, max_tokens=20)
    assert tuple(new) == expected.token_ids


# --- generate and stream ----------------------------------------------------------------------


def test_second_turn(mini: Llama, forgetful: Llama) -> None:
    with mini.session() as session:
        text: list[int] = []
        for turn, prompt in enumerate(("Once upon a time", " and the queen", words(mini, 150))):
            new = mini.tokenizer.encode(prompt, bos=not text) if isinstance(prompt, str) else prompt
            result = session.generate(prompt, **SAMPLING)
            expected = forgetful.generate(text + new, **SAMPLING)
            assert (result.text, result.token_ids) == (expected.text, expected.token_ids)
            assert result.usage == expected.usage
            assert result.receipt == expected.receipt
            # All that was there but the token sampled last, which is never fed.
            assert result.usage.cached_tokens == max(len(text) - 1, 0) or turn == 0
            text += [*new, *result.token_ids]
            assert session.token_ids == tuple(text)


def test_second_turn_computes_only_new_tokens(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    with llm.session() as session:
        session.generate([1] + [5] * 99, max_tokens=4, seed=1)
        session.generate([6] * 10, max_tokens=3, seed=1)
    assert model.step_sizes == [100, 1, 1, 1, 11, 1, 1]


def test_generate_after_append_computes_nothing_twice(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    with llm.session() as session:
        session.append([1] * 64)
        result = session.generate(max_tokens=2, seed=3, repetition_penalty=1.2)
    assert model.step_sizes == [64, 1]
    assert result.usage.cached_tokens == 64
    fresh, _ = fake_llama()
    expected = fresh.generate([1] * 64, max_tokens=2, seed=3, repetition_penalty=1.2)
    assert result.token_ids == expected.token_ids


def test_empty_prompt_of_an_empty_session(mini: Llama, forgetful: Llama) -> None:
    with mini.session() as session:
        found = session.generate("", **SAMPLING)
        assert found.token_ids == forgetful.generate("", **SAMPLING).token_ids
        assert session.token_ids[0] == mini.tokenizer.bos_id
    with mini.session() as session, pytest.raises(InvalidArgumentError, match="are empty"):
        session.generate(**{**SAMPLING, "stop": "x"}, prompt=[])


def test_stream_equals_generate(mini: Llama) -> None:
    with mini.session() as one, mini.session() as two:
        for prompt in ("Once upon a time", " there was"):
            stream = one.stream(prompt, **SAMPLING)
            chunks = list(stream)
            result = two.generate(prompt, **SAMPLING)
            assert "".join(chunk.text for chunk in chunks) == result.text
            assert stream.completion.token_ids == result.token_ids
        assert one.token_ids == two.token_ids


def test_end_of_text_is_not_added(fake_llama: FakeLlama) -> None:
    def logits_of(history: tuple[int, ...]) -> np.ndarray:
        row = by_hash(VOCAB)(history)
        row[2] = 99.0 if len(history) % 10 == 9 else row[2]
        return row

    llm, _ = fake_llama(logits_of)
    with llm.session() as session:
        result = session.generate([1, 5, 6], seed=1)
        assert (result.finish_reason, len(result.token_ids)) == ("stop", 6)
        assert session.token_ids == (1, 5, 6, *result.token_ids)


# --- fork and rewind --------------------------------------------------------------------------


def test_forks_go_their_own_ways(mini: Llama, forgetful: Llama) -> None:
    ids = words(mini, 2 * BLOCK + 9)
    with mini.session() as session:
        session.append(ids)
        forks = [session.fork() for _ in range(3)]
        for token, fork in enumerate((session, *forks), start=400):
            found = fork.generate([token], **SAMPLING)
            expected = forgetful.generate([*ids, token], **SAMPLING)
            assert found.token_ids == expected.token_ids
            assert found.usage.cached_tokens == len(ids)
        for fork in forks:
            fork.close()


def test_fork_keeps_the_next_logits(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    with llm.session() as session:
        session.append([1] * 70)
        with session.fork() as fork:
            tokens = [s.generate(seed=1, max_tokens=1).token_ids for s in (fork, session)]
    assert tokens[0] == tokens[1]
    assert model.step_sizes == [70]
    assert len(model.copies) == 1


def test_rewind(mini: Llama, forgetful: Llama) -> None:
    ids = words(mini, 200)
    with mini.session() as session:
        session.append(ids)
        for n_tokens in (199, 130, 128, 64, 1, 0):
            session.rewind(n_tokens)
            assert session.token_ids == tuple(ids[:n_tokens])
            with session.fork() as fork:
                found = fork.append([7, 8])
            assert np.array_equal(found, forgetful.logits([*ids[:n_tokens], 7, 8])[-1])
        for wrong in (-1, 1, 2.0):
            with pytest.raises(InvalidArgumentError, match=r"rewind to .*; the session has 0"):
                session.rewind(wrong)  # type: ignore[arg-type]


def test_logits_after_another_token_are_not_taken(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    with llm.session() as session:
        session.append([1, 5, 6, 7])
        session.rewind(3)
        found = session.generate(temperature=0, max_tokens=1)
    assert found.token_ids == llm.generate([1, 5, 6], temperature=0, max_tokens=1).token_ids


def test_rewound_text_is_not_computed_again(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    with llm.session() as session:
        session.append([1] * 100)
        session.rewind(90)
        session.append([1] * 10 + [9] * 5)
    assert model.step_sizes == [100, 5]


# --- any order of calls -----------------------------------------------------------------------


@given(data=st.data())
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_order_of_calls(data: st.DataObject, mini: Llama, forgetful: Llama) -> None:
    """Two contexts of blocks for up to four sessions: some are lost, and computed again."""
    sessions: list[tuple[Session, list[int]]] = [(mini.session(), [1])]
    sessions[0][0].append([1])
    try:
        for _ in range(data.draw(st.integers(2, 6))):
            session, ids = data.draw(st.sampled_from(sessions))
            action = data.draw(st.sampled_from(["append", "generate", "rewind", "fork", "other"]))
            new = [data.draw(st.integers(3, 6))] * data.draw(st.sampled_from([1, 30, 64, 150]))
            if action == "append":
                found = session.append(new)
                ids += new
                assert np.array_equal(found, forgetful.logits(ids)[-1])
            elif action == "generate":
                tokens = session.generate(new, seed=1, max_tokens=5, ignore_eos=True).token_ids
                ids += new
                assert (
                    tokens
                    == forgetful.generate(ids, seed=1, max_tokens=5, ignore_eos=True).token_ids
                )
                ids += tokens
            elif action == "rewind":
                n_tokens = data.draw(st.integers(1, len(ids)))
                session.rewind(n_tokens)
                del ids[n_tokens:]
            elif action == "fork" and len(sessions) < 4:
                sessions.append((session.fork(), ids.copy()))
            else:
                mini.generate([3] * 200, max_tokens=1)
            assert session.token_ids == tuple(ids)
    finally:
        for session, _ in sessions:
            session.close()
    assert mini.engine.pool.n_available == mini.engine.pool.n_blocks


# --- the cache is shared ----------------------------------------------------------------------


def test_calls_share_beginnings(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    system = [1] + [5] * 150
    with llm.session() as one, llm.session() as two:
        one.generate([*system, 6], max_tokens=1, seed=1)
        two.generate([*system, 7], max_tokens=1, seed=1)
        result = llm.generate([*system, 8], max_tokens=1, seed=1)
        list(llm.stream([*system, 9], max_tokens=1, seed=1))
    assert model.step_sizes == [152, 152 - 128, 152 - 128, 152 - 128]
    assert result.usage.cached_tokens == 128


def test_a_whole_prompt_in_the_cache_still_gives_logits(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    first = llm.generate([5] * 128, max_tokens=2, seed=1)
    again = llm.generate([5] * 128, max_tokens=2, seed=1)
    assert replace(again, timings=first.timings) == first
    assert model.step_sizes == [128, 1, 64, 1]
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 64)


def test_samples_publish_the_prompt_alone(fake_llama: FakeLlama) -> None:
    """They begin again where it ends: nobody else may hold the block that is written there."""
    llm, _ = fake_llama()
    llm.generate([5] * 150, n=3, max_tokens=200, seed=1, ignore_eos=True)
    assert llm.engine.pool.n_cached == 2
    llm.generate([6] * 150, max_tokens=200, seed=1, ignore_eos=True)
    assert llm.engine.pool.n_cached == 2 + 5


def test_prompt_logprobs_compute_the_whole_prompt(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    first = llm.generate([5] * 200, max_tokens=1, seed=1, prompt_logprobs=1)
    again = llm.generate([5] * 200, max_tokens=1, seed=1, prompt_logprobs=1)
    assert again.prompt_logprobs == first.prompt_logprobs
    assert again.usage.cached_tokens == 0


def test_sessions_give_way(fake_llama: FakeLlama) -> None:
    """One context of blocks: an idle session loses its own to others, and takes them again."""
    llm, model = fake_llama(n_ctx=256, max_sequences=1)
    with llm.session() as session:
        session.append([1] * 200)
        llm.generate([9] * 3, seed=1, max_tokens=250)  # needs the whole pool
        model.step_sizes.clear()
        found = session.append([7])
    assert model.step_sizes == [201]
    assert np.array_equal(found, by_hash(VOCAB)((*[1] * 200, 7)))


def test_sessions_keep_what_others_do_not_need(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama(n_ctx=256, max_sequences=1)
    with llm.session() as session:
        session.append([1] * 200)
        llm.generate([9] * 3, seed=1, max_tokens=120)  # two blocks: not there without the session's
        model.step_sizes.clear()
        session.append([7])
    assert model.step_sizes == [201 - 2 * BLOCK]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"when_full": "drop"}, "when_full is 'drop'; expected one of stop, slide"),
        ({"keep": -1}, "keep is -1; expected an integer, 0 to 4095"),
        ({"keep": 4096}, "keep is 4096"),
    ],
)
def test_arguments(fake_llama: FakeLlama, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        fake_llama()[0].session(**arguments)


def test_settings_without_use(fake_llama: FakeLlama) -> None:
    with fake_llama()[0].session() as session:
        for settings_, message in (({"n": 2}, "n is 2"), ({"prompt_logprobs": 1}, "prompt_logp")):
            with pytest.raises(InvalidArgumentError, match=message):
                session.generate("a", **settings_)
            with pytest.raises(InvalidArgumentError, match=message):
                session.stream("a", **settings_)
