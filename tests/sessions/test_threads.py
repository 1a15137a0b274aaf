"""Sessions under threads, interrupts, errors and `close`: they stay usable, and hold nothing."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fake_model import FakeLlama, by_hash
from llama2q import Llama, Session
from llama2q.errors import CancelledError, ClosedError, SessionBusyError

VOCAB = 4096


def free(llm: Llama) -> bool:
    return llm.engine.pool.n_available == llm.engine.pool.n_blocks


def calls_of(session: Session) -> dict[str, Callable[[], Any]]:
    return {
        "append": lambda: session.append([5]),
        "generate": lambda: session.generate([5], max_tokens=1),
        "stream": lambda: session.stream([5]),
        "fork": session.fork,
        "rewind": lambda: session.rewind(0),
        "save": lambda: session.save("/nonexistent/a"),
        "load": lambda: session.load("/nonexistent/a"),
    }


def test_busy_while_a_stream_is_open(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    with llm.session() as session:
        stream = session.stream([1, 5], max_tokens=5, seed=1)
        for call in calls_of(session).values():
            with pytest.raises(SessionBusyError, match="a stream of this session is open"):
                call()
        next(stream)
        with pytest.raises(SessionBusyError):
            session.append([5])
        list(stream)
        session.append([5])


def test_closed_stream_leaves_what_it_gave(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    with llm.session() as session:
        session.append([1, 5])
        stream = session.stream([6], seed=1)
        given = [next(stream) for _ in range(3)]
        stream.close()
        tokens = stream.completion.token_ids
        assert tokens[: len(given)] == sum((chunk.token_ids for chunk in given), ())
        assert session.token_ids == (1, 5, 6, *tokens)
        found = session.append([7])
        assert np.array_equal(found, by_hash(VOCAB)((1, 5, 6, *tokens, 7)))


def test_stream_that_was_never_begun_leaves_nothing(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    with llm.session() as session:
        session.append([1, 5])
        session.stream([6]).close()
        assert session.token_ids == (1, 5)
        stream = session.stream([6])
        del stream
        gc.collect()
        assert session.token_ids == (1, 5)
        session.append([7])
    assert model.n_steps == 2


@pytest.mark.parametrize("name", ["append", "generate", "stream", "fork", "rewind", "save", "load"])
def test_closed(fake_llama: FakeLlama, name: str) -> None:
    llm, _ = fake_llama()
    session = llm.session()
    session.append([1] * 100)
    session.close()
    session.close()
    assert free(llm)
    with pytest.raises(ClosedError, match="session has been closed"):
        calls_of(session)[name]()


def test_closed_model(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    session = llm.session()
    session.append([1])
    llm.close()
    with pytest.raises(ClosedError, match="model has been closed"):
        session.append([5])
    session.close()


def test_dropped_session_gives_its_blocks_back(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    session = llm.session()
    session.append([1] * 100)
    assert not free(llm)
    del session
    gc.collect()
    assert free(llm)


@pytest.mark.parametrize("call", ["append", "generate"])
def test_close_from_another_thread(fake_llama: FakeLlama, call: str) -> None:
    llm, model = fake_llama()
    model.layer_seconds = 0.05
    session = llm.session()
    raised: list[type[Exception]] = []

    def work() -> None:
        try:
            session.append([1] * 70) if call == "append" else session.generate([1] * 70)
        except Exception as error:
            raised.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert model.in_step.wait(10)
    session.close()
    assert free(llm)
    thread.join(10)
    assert raised == [ClosedError]
    model.layer_seconds = 0.0


def test_close_with_an_open_stream(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    session = llm.session()
    stream = session.stream([1, 5])
    next(stream)
    session.close()
    assert free(llm)
    assert list(stream) == []
    assert stream.completion.finish_reason == "abort"


def test_close_inside_a_step(fake_llama: FakeLlama) -> None:
    """As a signal handler does that runs on the calling thread."""
    llm, model = fake_llama()
    session = llm.session()
    model.on_step = lambda n: session.close() if n == 2 else None
    with pytest.raises(ClosedError):
        session.generate([1, 5], max_tokens=50)
    assert free(llm)


def test_use_inside_a_step_is_refused(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    with llm.session() as session:

        def use(n: int) -> None:
            with pytest.raises(SessionBusyError):
                session.append([5])

        model.on_step = use
        session.append([1])
        model.on_step = lambda n: None
        assert session.token_ids == (1,)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("at", [2, 4])
def test_an_error_leaves_the_session_as_it_was(
    fake_llama: FakeLlama, error: type[BaseException], at: int
) -> None:
    llm, model = fake_llama()
    with llm.session() as session:
        session.append([1] * 100)

        def fail(n: int) -> None:
            if n == at:
                raise error

        model.on_step = fail
        with pytest.raises(error):
            session.generate([6] * 40, max_tokens=10, seed=1)
        assert session.token_ids == (1,) * 100
        if at == 2:
            model.on_step = lambda n: fail(n - 1)
            with pytest.raises(error):
                session.append([6] * 40)
            assert session.token_ids == (1,) * 100
        model.on_step = lambda n: None
        found = session.generate([7], max_tokens=3, seed=1)
        fresh, _ = fake_llama()
        assert found.token_ids == fresh.generate([1] * 100 + [7], max_tokens=3, seed=1).token_ids
        assert found.usage.cached_tokens == 100


def test_calls_from_many_threads_run_one_after_the_other(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    model.layer_seconds = 0.001
    with llm.session() as session:
        threads = [
            threading.Thread(target=session.append, args=([token] * 20,)) for token in range(5, 11)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        ids = session.token_ids
        assert sorted(ids[::20]) == list(range(5, 11))
        assert all(len(set(ids[i : i + 20])) == 1 for i in range(0, 120, 20))
        assert np.array_equal(session.append([9]), by_hash(VOCAB)((*ids, 9)))


def test_many_sessions_at_once_over_few_blocks(fake_llama: FakeLlama) -> None:
    """Each gives what it gives alone, though they take each other's blocks all the time."""
    llm, _ = fake_llama(n_ctx=512, max_sequences=1)
    logits_of = by_hash(VOCAB)
    faults: list[object] = []

    def work(index: int) -> None:
        ids = [1] + [5] * 70
        try:
            with llm.session() as session:
                session.append(ids)
                for turn in range(6):
                    new = [10 + index] * (1 + 17 * turn)
                    result = session.generate(new, temperature=0, max_tokens=4)
                    ids += new
                    for token in result.token_ids:
                        assert token == int(np.argmax(logits_of(tuple(ids))))
                        ids.append(token)
                    assert session.token_ids == tuple(ids)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert free(llm)


def test_waiting_for_blocks_ends_with_close(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama(n_ctx=64, max_sequences=1)
    model.layer_seconds = 0.02
    running = threading.Thread(target=lambda: llm.generate([5], max_tokens=10))
    running.start()
    assert model.in_step.wait(10)
    session = llm.session()
    raised: list[Exception] = []

    def wait() -> None:
        try:
            session.append([1])
        except (ClosedError, CancelledError) as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.05)
    session.close()
    waiting.join(10)
    assert not waiting.is_alive()
    running.join(10)
    assert [type(error) for error in raised] == [ClosedError]
