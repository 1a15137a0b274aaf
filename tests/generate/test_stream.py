"""Streams: the same text in pieces; closed from anywhere; nothing left behind."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from fake_model import FakeLlama, FakeModel, scripted
from llama2q import Chunk, Llama, Stream
from llama2q.errors import InvalidArgumentError

VOCAB = 4096


def free(llm: Llama) -> bool:
    return llm.engine.pool.n_available == llm.engine.pool.n_blocks


def check_chunks(chunks: list[Chunk], stream: Stream) -> None:
    result = stream.completion
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == result.token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == result.finish_reason
    assert all(chunk.text for chunk in chunks[:-1])


@pytest.mark.parametrize("stop", [(), ("e",), ("th", "an")])
def test_stream_equals_generate(fake_llama: FakeLlama, stop: tuple[str, ...]) -> None:
    llm, _ = fake_llama()
    for seed in range(5):
        settings = {"seed": seed, "max_tokens": 40, "stop": stop}
        stream = llm.stream("Hello", **settings)
        chunks = list(stream)
        check_chunks(chunks, stream)
        result = llm.generate("Hello", **settings)
        assert (stream.completion.text, stream.completion.token_ids) == (
            result.text,
            result.token_ids,
        )


def test_characters_of_several_tokens(fake_llama: FakeLlama) -> None:
    script = [3 + byte for byte in "é🦙".encode()]
    llm, _ = fake_llama(scripted([*script, 2], 1, VOCAB))
    stream = llm.stream("", temperature=0)
    chunks = list(stream)
    assert [chunk.text for chunk in chunks] == ["é", "🦙", ""]
    assert [len(chunk.token_ids) for chunk in chunks] == [2, 4, 0]
    check_chunks(chunks, stream)


def test_nothing_runs_before_the_first_chunk(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    stream = llm.stream("Hello")
    assert model.n_steps == 0
    assert free(llm)
    stream.close()


def test_blocks_are_free_after_the_last_chunk(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    stream = llm.stream("Hello", max_tokens=3)
    list(stream)
    assert free(llm)
    assert list(stream) == []
    stream.close()
    assert stream.completion.finish_reason == "length"


def test_completion_of_an_open_stream(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    with llm.stream("Hello") as stream:
        next(stream)
        with pytest.raises(InvalidArgumentError, match="still open"):
            _ = stream.completion


def test_close_half_way(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    with llm.stream("Hello", seed=1) as stream:
        text = "".join(next(stream).text for _ in range(3))
    assert free(llm)
    assert list(stream) == []
    assert stream.completion.finish_reason == "abort"
    assert stream.completion.text == text


def test_dropped_stream_gives_its_blocks_back(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    for _chunk in llm.stream("Hello"):
        break
    gc.collect()
    assert free(llm)


def consume_in_thread(llm: Llama, model: FakeModel) -> tuple[Stream, threading.Thread, list[Chunk]]:
    stream = llm.stream("Hello")
    chunks: list[Chunk] = []
    thread = threading.Thread(target=lambda: chunks.extend(stream))
    thread.start()
    assert model.in_step.wait(10)
    return stream, thread, chunks


def test_close_from_another_thread(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    model.layer_seconds = 0.05
    stream, thread, _ = consume_in_thread(llm, model)
    started = time.monotonic()
    stream.close()
    assert free(llm)
    thread.join(10)
    assert not thread.is_alive()
    assert stream.completion.finish_reason == "abort"
    # Within a layer or so, not after the step.
    assert time.monotonic() - started < 5
    model.layer_seconds = 0.0
    assert len(llm.generate("Hello", max_tokens=3).token_ids) == 3


def test_close_while_waiting_for_blocks(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama(n_ctx=64, max_sequences=1)
    model.layer_seconds = 0.02
    running = threading.Thread(target=lambda: llm.generate([5], max_tokens=10))
    running.start()
    assert model.in_step.wait(10)
    stream = llm.stream([6])
    waiting = threading.Thread(target=lambda: list(stream))
    waiting.start()
    time.sleep(0.05)
    stream.close()
    waiting.join(10)
    assert not waiting.is_alive()
    running.join(10)


def test_close_inside_a_step(fake_llama: FakeLlama) -> None:
    """As a signal handler does that runs on the stepping thread."""
    llm, model = fake_llama()
    stream = llm.stream("Hello")

    def close(n: int) -> None:
        if n == 3:
            stream.close()
            assert not free(llm)

    model.on_step = close
    assert len(list(stream)) <= 2
    assert free(llm)


def test_interrupt(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()

    def interrupt(n: int) -> None:
        if n == 3:
            raise KeyboardInterrupt

    model.on_step = interrupt
    stream = llm.stream("Hello")
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert free(llm)
    assert stream.completion.finish_reason == "abort"
    assert len(llm.generate("Hello", max_tokens=3).token_ids) == 3


def test_stream_of_a_list(fake_llama: FakeLlama) -> None:
    with pytest.raises(InvalidArgumentError, match="stream takes one prompt"):
        fake_llama()[0].stream(["a", "b"])  # type: ignore[arg-type]


def test_bad_settings_fail_at_the_call(fake_llama: FakeLlama) -> None:
    with pytest.raises(InvalidArgumentError, match="top_k is -1"):
        fake_llama()[0].stream("Hello", top_k=-1)
