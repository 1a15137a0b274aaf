"""Generation with the demo model and the real core: the promises, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llama2q
from llama2q import Completion, Llama
from llama2q.errors import CancelledError
from llama2q.kv_sequence import Sequence
from llama2q.ragged import Span

PROMPTS = ["Once upon a time", "The king", "", "She said that " * 60]
SETTINGS = {"temperature": 0.8, "top_p": 0.95, "seed": 1234, "max_tokens": 60}


def same(first: Completion, second: Completion) -> bool:
    return replace(first, timings=second.timings) == second


def test_batch_equals_alone(mini: Llama) -> None:
    together = mini.generate(PROMPTS, **SETTINGS)
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert same(mini.generate(prompt, **SETTINGS), result)
    assert len({result.text for result in together}) == len(PROMPTS)


def test_stream_equals_generate(mini: Llama) -> None:
    with mini.stream("Once upon a time", **SETTINGS) as stream:
        text = "".join(chunk.text for chunk in stream)
    result = mini.generate("Once upon a time", **SETTINGS)
    assert text == result.text
    assert same(stream.completion, result)


def test_text_follows_the_prompt(mini: Llama) -> None:
    prompt = "Once upon a time"
    result = mini.generate(prompt, **SETTINGS)
    ids = mini.tokenizer.encode(prompt) + list(result.token_ids)
    assert mini.tokenizer.decode(ids) == prompt + result.text


def test_reproducible_seeds(mini: Llama) -> None:
    first = mini.generate("The king", temperature=1.0, max_tokens=40)
    again = mini.generate("The king", temperature=1.0, max_tokens=40, seed=first.seed)
    assert same(first, again)
    assert mini.generate("The king", temperature=1.0, max_tokens=40).text != first.text


def test_threads_make_no_difference(mini: Llama, mini_file: Path) -> None:
    expected = mini.generate(PROMPTS[3], **SETTINGS)
    for n_threads in (1, 3):
        with llama2q.load(mini_file, n_threads=n_threads) as llm:
            assert same(llm.generate(PROMPTS[3], **SETTINGS), expected)


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_chunked_prompt_equals_whole(mini: Llama, size: int) -> None:
    ids = mini.tokenizer.encode(PROMPTS[3])[:150]
    whole = mini.logits(ids)
    sequence = Sequence(mini.engine.pool, len(ids))
    try:
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            rows = mini.engine.forward([Span(sequence, part, len(part))])
            np.testing.assert_array_equal(
                rows.view(np.uint32), whole[start : start + len(part)].view(np.uint32)
            )
    finally:
        sequence.release()


def test_rewound_sequence_equals_a_fresh_one(mini: Llama) -> None:
    ids = mini.tokenizer.encode(PROMPTS[3])[:140]
    other = list(reversed(ids))
    sequence = Sequence(mini.engine.pool, len(ids))
    try:
        mini.engine.forward([Span(sequence, [*ids[:100], *other[:40]], 0)])
        sequence.rewind(100)
        rows = mini.engine.forward([Span(sequence, ids[100:], 40)])
    finally:
        sequence.release()
    np.testing.assert_array_equal(rows, mini.logits(ids)[100:])


def test_two_threads_at_once(mini: Llama) -> None:
    alone = [mini.generate(prompt, **SETTINGS) for prompt in PROMPTS]
    found: dict[int, Completion] = {}

    def run(i: int) -> None:
        if i % 2:
            found[i] = mini.generate(PROMPTS[i], **SETTINGS)
        else:
            stream = mini.stream(PROMPTS[i], **SETTINGS)
            list(stream)
            found[i] = stream.completion

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(same(found[i], alone[i]) for i in range(len(PROMPTS)))


def test_cancelled_step_leaves_the_sequence_as_it_was(mini: Llama) -> None:
    flag = llama2q._core.CancelFlag()
    flag.set()
    sequence = Sequence(mini.engine.pool, 10)
    try:
        with pytest.raises(CancelledError):
            mini.engine.forward([Span(sequence, [1, 5, 6])], flag)
        assert sequence.n_tokens == 0
        rows = mini.engine.forward([Span(sequence, [1, 5, 6])])
    finally:
        sequence.release()
    np.testing.assert_array_equal(rows, mini.logits([1, 5, 6])[2:])


def test_close_during_the_prompt(mini: Llama) -> None:
    started = time.monotonic()
    mini.generate([1] + [5, 6, 7] * 1300, max_tokens=1)
    whole = time.monotonic() - started
    stream = mini.stream([1] + [7, 6, 5] * 1300)  # of which the cache holds nothing
    thread = threading.Thread(target=lambda: list(stream))
    started = time.monotonic()
    thread.start()
    time.sleep(whole / 10)
    stream.close()
    thread.join(60)
    assert not thread.is_alive()
    completion = stream.completion
    assert (completion.finish_reason, completion.token_ids) == ("abort", ())
    assert mini.engine.pool.n_available == mini.engine.pool.n_blocks


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_in_a_script(mini_file: Path) -> None:
    """KeyboardInterrupt comes out of generate, and the model can be used again."""
    code = f"""
import llama2q
with llama2q.load({str(mini_file)!r}) as llm:
    expected = llm.generate("The king", seed=1, max_tokens=20).text
    print("ready", flush=True)
    try:
        while True:
            llm.generate([1] + [5, 6, 7] * 1300, max_tokens=50)
    except KeyboardInterrupt:
        assert llm.generate("The king", seed=1, max_tokens=20).text == expected
        assert llm.engine.pool.n_available == llm.engine.pool.n_blocks
        print("usable", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "usable\n"
    assert process.returncode == 0


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("quant", ["int8", "none"])
def test_every_kind_of_file_and_cache(
    convert_mini: Callable[..., Path], quant: str, kv_dtype: str
) -> None:
    with llama2q.load(convert_mini(quant=quant), kv_dtype=kv_dtype) as llm:
        assert llm.engine.kv_dtype == kv_dtype
        text = llm.generate("Once upon a time", temperature=0, max_tokens=30).text
    assert len(text.split()) > 10
