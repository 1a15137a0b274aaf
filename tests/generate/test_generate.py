"""The loop around the model: ends, stops, limits, batches, admission."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fake_model import FakeLlama, scripted
from llama2q import Completion, SamplingParams, _core
from llama2q.errors import (
    ClosedError,
    ContextLengthError,
    InvalidArgumentError,
    KvCacheFullError,
)

VOCAB = 4096
EOS = 2
GREEDY = {"temperature": 0.0}


def script_for(text: str, fake_llama: FakeLlama, *, end: bool = True) -> list[int]:
    """Ids that continue the prompt "Hello" with a text."""
    tokenizer = fake_llama()[0].tokenizer
    start = tokenizer.encode("Hello")
    ids = tokenizer.encode("Hello" + text)
    assert ids[: len(start)] == start
    return [*ids[len(start) :], *([EOS] if end else [])]


def complete(fake_llama: FakeLlama, script: list[int], **sampling: Any) -> Completion:
    n_prompt = len(fake_llama()[0].tokenizer.encode("Hello"))
    llm, _ = fake_llama(scripted(script, n_prompt, VOCAB))
    return llm.generate("Hello", **GREEDY, **sampling)


def assert_same(result: Completion, other: Completion) -> None:
    """Equal but for the times."""
    assert replace(result, timings=other.timings) == other


def test_end_of_text(fake_llama: FakeLlama) -> None:
    script = script_for(" there, my friend", fake_llama)
    result = complete(fake_llama, script)
    assert result.text == " there, my friend"
    assert result.token_ids == tuple(script[:-1])
    assert (result.finish_reason, result.stop_reason) == ("stop", None)
    assert result.usage.completion_tokens == len(script) - 1
    assert result.usage.prompt_tokens == len(fake_llama()[0].tokenizer.encode("Hello"))
    assert result.timings.tokens_per_second > 0


def test_max_tokens(fake_llama: FakeLlama) -> None:
    script = script_for(" there, my friend", fake_llama)
    result = complete(fake_llama, script, max_tokens=2)
    assert result.token_ids == tuple(script[:2])
    assert (result.finish_reason, result.stop_reason) == ("length", None)


def test_stop_string(fake_llama: FakeLlama) -> None:
    script = script_for(" there, my friend. Then more", fake_llama)
    result = complete(fake_llama, script, stop=["end. ", "never"])
    assert result.text == " there, my fri"
    assert (result.finish_reason, result.stop_reason) == ("stop", "end. ")
    assert result.token_ids == tuple(script[: len(result.token_ids)])


def test_half_a_stop_string_at_the_end_is_text(fake_llama: FakeLlama) -> None:
    script = script_for(" there, my friend", fake_llama)
    assert complete(fake_llama, script, stop="friends").text == " there, my friend"


def test_stop_token_id(fake_llama: FakeLlama) -> None:
    script = script_for(" there, my friend", fake_llama)
    result = complete(fake_llama, script, stop_token_ids=[script[2]])
    assert result.token_ids == tuple(script[:2])
    assert (result.finish_reason, result.stop_reason) == ("stop", script[2])


def test_stop_id_outside_the_vocabulary(fake_llama: FakeLlama) -> None:
    with pytest.raises(InvalidArgumentError, match="holds 4096; the vocabulary ends at 4095"):
        fake_llama()[0].generate("Hello", stop_token_ids=[VOCAB])


def test_unfinished_character_at_the_end(fake_llama: FakeLlama) -> None:
    llama = [3 + byte for byte in "🦙".encode()]
    assert complete(fake_llama, [*llama, EOS]).text == "🦙"
    assert complete(fake_llama, [*llama[:2], EOS]).text == "\ufffd\ufffd"
    assert complete(fake_llama, llama, max_tokens=3).text == "\ufffd" * 3


def test_stop_string_made_by_the_flush(fake_llama: FakeLlama) -> None:
    result = complete(fake_llama, [3 + 0xF0, EOS], stop="\ufffd")
    assert (result.text, result.finish_reason, result.stop_reason) == ("", "stop", "\ufffd")


def test_text_after_a_prompt_without_text(fake_llama: FakeLlama) -> None:
    tokenizer = fake_llama()[0].tokenizer
    ids = tokenizer.encode("Hello there", bos=False)
    llm, _ = fake_llama(scripted([*ids, EOS], 1, VOCAB))
    assert llm.generate("", **GREEDY).text == "Hello there"
    assert llm.generate([1], **GREEDY).text == "Hello there"


def test_string_gets_exactly_one_bos_and_ids_none(fake_llama: FakeLlama) -> None:
    seen: list[tuple[int, ...]] = []

    def record(history: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        seen.append(history)
        return np.eye(VOCAB, dtype=np.float32)[EOS]

    llm, _ = fake_llama(record)
    llm.generate("<s>Hello", **GREEDY)
    llm.generate([5, 6], **GREEDY)
    llm.generate(np.array([1, 1, 7]), **GREEDY)  # type: ignore[call-overload]
    assert seen[0][0] == 1
    assert seen[0].count(1) == 1
    assert seen[1:] == [(5, 6), (1, 1, 7)]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty; expected at least one"),
        ([1, VOCAB], "token id 4096 at index 1 is outside the vocabulary; expected 0 to 4095"),
        ([-1], "token id -1 at index 0"),
        ([1.5], r"type float64; expected a list of integers"),
        (["a", 3], "a prompt of the list is 3; expected a string or a list of token ids"),
        ([[1], []], "empty; expected at least one"),
        (7, "the prompt is a int"),
        (b"abc", "the prompt is a bytes"),
        (None, "the prompt is a NoneType"),
    ],
)
def test_bad_prompts(fake_llama: FakeLlama, prompt: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        fake_llama()[0].generate(prompt)


def test_context_full(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama(n_ctx=70, max_sequences=1)
    result = llm.generate([1] * 60, seed=1)
    assert len(result.token_ids) == 10
    assert result.finish_reason == "length"
    assert_same(llm.generate([1] * 60, seed=1, max_tokens=500), result)
    assert len(llm.generate([1] * 69).token_ids) == 1
    assert model.n_blocks == 2


def test_prompt_longer_than_the_context(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama(n_ctx=70)
    for n in (70, 71, 5000):
        with pytest.raises(ContextLengthError, match=rf"has {n} tokens and the context holds 70"):
            llm.generate([1] * n)
    assert model.n_steps == 0


def test_n_ctx_beyond_the_model(fake_llama: FakeLlama) -> None:
    with pytest.raises(InvalidArgumentError, match="n_ctx is 999999; the model's context is"):
        fake_llama(n_ctx=999_999)


def test_prompt_is_fed_in_chunks(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    llm.generate([5] * 1300, max_tokens=2, seed=1)
    assert model.step_sizes == [512, 512, 276, 1]


def test_batch_equals_alone(fake_llama: FakeLlama) -> None:
    rng = np.random.default_rng(7)
    prompts = [rng.integers(3, VOCAB, n).tolist() for n in (1, 600, 3, 64, 65, 700, 2)]
    llm, model = fake_llama(max_sequences=8)
    together = llm.generate(prompts, max_tokens=70, seed=11, temperature=0.8)
    assert max(model.step_sizes) > 512
    for prompt, result in zip(prompts, together, strict=True):
        assert_same(llm.generate(prompt, max_tokens=70, seed=11, temperature=0.8), result)


def test_more_prompts_than_the_cache_holds(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama(n_ctx=128, max_sequences=2)
    prompts = [[5 + i] * (10 + i) for i in range(7)]
    together = llm.generate(prompts, seed=3)
    assert [len(result.token_ids) for result in together] == [118 - i for i in range(7)]
    for prompt, result in zip(prompts, together, strict=True):
        assert_same(llm.generate(prompt, seed=3), result)


def test_list_of_strings_and_one_element_lists(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    results = llm.generate(["Hello", [5, 6]], max_tokens=3, seed=1)
    assert isinstance(results, list)
    assert len(results) == 2
    assert len(llm.generate([[5, 6]], max_tokens=3)) == 1
    assert isinstance(llm.generate([5, 6], max_tokens=3), Completion)


def test_sampler_gets_seed_position_and_settings(
    fake_llama: FakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, _ = fake_llama()
    calls: list[tuple[Any, ...]] = []
    sample = _core.sample

    def spy(*args: Any) -> Any:
        calls.append(args)
        return sample(*args)

    monkeypatch.setattr(_core, "sample", spy)
    params = SamplingParams(temperature=0.5, top_p=0.75, top_k=40, min_p=0.125, seed=2**64 - 1)
    llm.generate([[5] * 10, [6] * 3], params, max_tokens=2)
    logits, temperature, top_p, top_k, min_p, seed, index, position = calls[0][:8]
    assert logits.shape == (2, VOCAB)
    assert temperature.tolist() == [0.5, 0.5]
    assert top_p.tolist() == [0.75, 0.75]
    assert top_k.tolist() == [40, 40]
    assert min_p.tolist() == [0.125, 0.125]
    assert seed.tolist() == [2**64 - 1] * 2
    assert index.tolist() == [0, 0]
    # The position that the new token will occupy.
    assert position.tolist() == [10, 3]
    assert calls[1][7].tolist() == [11, 4]


def test_seed_is_drawn_and_reported(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    first, second = llm.generate([[5], [5]], max_tokens=20, temperature=1.0)
    assert 0 <= first.seed < 2**63
    assert first.seed != second.seed
    again = llm.generate([5], max_tokens=20, temperature=1.0, seed=first.seed)
    assert again.token_ids == first.token_ids


def test_interrupt_leaves_the_model_usable(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()

    def interrupt(n: int) -> None:
        if n == 3:
            raise KeyboardInterrupt

    model.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Hello", "there"], max_tokens=9)
    assert llm.engine.pool.n_available == llm.engine.pool.n_blocks
    assert len(llm.generate("Hello", max_tokens=4).token_ids) == 4


def test_closed_model(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    llm.close()
    llm.close()
    for call in (llm.generate, llm.stream):
        with pytest.raises(ClosedError, match="closed; load it again"):
            call("Hello")
    with pytest.raises(ClosedError):
        llm.logits([1])
    assert llm.tokenizer.encode("") == [1]


def test_close_while_generating(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    model.layer_seconds = 0.01
    raised: list[BaseException] = []

    def run() -> None:
        try:
            llm.generate("Hello")
        except ClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert model.in_step.wait(10)
    llm.close()
    thread.join(10)
    assert len(raised) == 1


def test_threads_wait_for_each_other(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama(n_ctx=64, max_sequences=1)
    model.layer_seconds = 0.001
    results: list[Completion] = []
    threads = [
        threading.Thread(target=lambda: results.append(llm.generate([5], seed=1))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 4
    assert len({result.token_ids for result in results}) == 1


def test_an_open_stream_holds_the_cache(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama(n_ctx=64, max_sequences=1)
    stream = llm.stream([5])
    next(stream)
    with pytest.raises(KvCacheFullError, match=r"0 of 1 blocks available.*close streams"):
        llm.generate([5])
    stream.close()
    llm.generate([5])


def test_logits_in_slices(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama()
    ids = np.random.default_rng(3).integers(3, VOCAB, 300).tolist()
    rows = llm.logits(ids)
    assert (rows.shape, rows.dtype) == ((300, VOCAB), np.float32)
    assert model.step_sizes == [256, 44]
    for i in (0, 255, 256, 299):
        np.testing.assert_array_equal(rows[i], model.logits_of(tuple(ids[: i + 1])))


def test_logits_beyond_the_context(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama(n_ctx=64)
    assert len(llm.logits([5] * 64)) == 64
    with pytest.raises(ContextLengthError, match="65 tokens; the context holds 64"):
        llm.logits([5] * 65)
