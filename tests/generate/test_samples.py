"""Several samples of a prompt: each is what it would be alone, and the prompt is read once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import llama2q
from fake_model import FakeLlama, by_hash, scripted
from llama2q import Completion, Llama, SamplingParams, _core
from llama2q.errors import InvalidArgumentError
from llama2q.generate.batch import Batch
from llama2q.generate.prompt import Prompt
from llama2q.generate.request import Request
from llama2q.kv_blocks import BLOCK

VOCAB = 4096
SETTINGS: dict[str, Any] = {
    "temperature": 1.0, "top_p": 0.95, "seed": 77, "max_tokens": 25, "repetition_penalty": 1.1,
    "logprobs": 2, "prompt_logprobs": 1,
}  # fmt: skip


def alone(llm: Llama, ids: list[int], index: int, settings: dict[str, Any]) -> Completion:
    """Run one sample by itself: it reads the whole prompt."""
    params = SamplingParams(**settings)
    request = Request(llm.engine, Prompt(llm.engine, ids, params), index)
    batch = Batch(llm.engine, [request], _core.CancelFlag(), finishes=True)
    while not batch.is_done:
        batch.step()
    return request.completion()


def assert_same(found: Completion, expected: Completion) -> None:
    assert replace(found, timings=expected.timings, others=()) == expected


def prompt_of(llm: Llama, length: int) -> list[int]:
    ids = llm.tokenizer.encode("She said that the king of the land was " * 40)
    return ids[:length]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130, 200])
def test_samples_equal_separate_runs(mini: Llama, length: int) -> None:
    ids = prompt_of(mini, length)
    result = mini.generate(ids, n=5, **SETTINGS)
    assert [sample.index for sample in result.samples] == list(range(5))
    for index, sample in enumerate(result.samples):
        assert_same(sample, alone(mini, ids, index, SETTINGS))
    assert len({sample.token_ids for sample in result.samples}) > 1
    assert mini.engine.pool.n_available == mini.engine.pool.n_blocks


def test_samples_of_several_prompts(mini: Llama) -> None:
    prompts = [prompt_of(mini, n) for n in (70, 5, 300)]
    together = mini.generate(prompts, n=3, **SETTINGS)
    for ids, result in zip(prompts, together, strict=True):
        for index, sample in enumerate(result.samples):
            assert_same(sample, alone(mini, ids, index, SETTINGS))


def test_sample_zero_is_the_result_without_n(mini: Llama) -> None:
    one = mini.generate("The king", **SETTINGS)
    assert one.samples == (one,)
    assert_same(mini.generate("The king", n=3, **SETTINGS), one)


def test_unknown_seed_is_one_for_all(mini: Llama) -> None:
    result = mini.generate("The king", n=3, temperature=1.0, max_tokens=5)
    assert len({sample.seed for sample in result.samples}) == 1
    again = mini.generate("The king", n=3, temperature=1.0, max_tokens=5, seed=result.seed)
    assert [s.token_ids for s in again.samples] == [s.token_ids for s in result.samples]


@pytest.mark.parametrize("length", [3 * BLOCK, 3 * BLOCK + 10])
def test_prompt_is_read_once_and_its_full_blocks_are_shared(
    fake_llama: FakeLlama, length: int
) -> None:
    llm, model = fake_llama(by_hash(VOCAB))
    least_free = [llm.engine.pool.n_blocks]
    model.on_step = lambda n: least_free.append(llm.engine.pool.n_free)
    llm.generate([5] * length, n=4, max_tokens=8, ignore_eos=True, seed=1)
    assert model.step_sizes[:1] == [length]
    assert sum(model.step_sizes) == length + 4 * 7
    assert len(model.copies) == (3 if length % BLOCK else 0)
    # Three shared blocks, and one of each sample's own.
    assert llm.engine.pool.n_blocks - min(least_free) == 3 + 4


def test_more_samples_than_fit_take_over_the_prompt(fake_llama: FakeLlama) -> None:
    """One context's worth of blocks: samples follow each other, and the prompt stays."""
    length = 2 * BLOCK + 5
    settings: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, "seed": 3}
    roomy, _ = fake_llama(by_hash(VOCAB), n_ctx=512, max_sequences=8)
    expected = roomy.generate([5] * length, n=5, **settings)
    llm, model = fake_llama(by_hash(VOCAB), n_ctx=512, max_sequences=1)
    result = llm.generate([5] * length, n=5, **settings)
    for sample, other in zip(result.samples, expected.samples, strict=True):
        assert sample.token_ids == other.token_ids
    assert sum(model.step_sizes) == length + 5 * 299
    assert model.copies == []


def test_samples_that_end_at_different_times(fake_llama: FakeLlama) -> None:
    """Each heir begins where the prompt ended, whatever the one before left behind."""

    def logits_of(history: tuple[int, ...]) -> np.ndarray:
        row = by_hash(VOCAB)(history)
        row[2] = 8.0 + len(history) % 5  # end of text, now and then
        return row

    settings: dict[str, Any] = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 60, "seed": 12}
    tight, model = fake_llama(logits_of, n_ctx=192, max_sequences=1)
    found = tight.generate([9] * 70, n=12, **settings)
    roomy, _ = fake_llama(logits_of, n_ctx=192, max_sequences=8)
    for index, sample in enumerate(found.samples):
        assert_same(sample, alone(roomy, [9] * 70, index, settings))
    assert len({len(sample.token_ids) for sample in found.samples}) > 2
    assert model.step_sizes[0] == 70
    assert max(model.step_sizes[1:]) < 12


def test_error_in_the_middle_gives_every_block_back(fake_llama: FakeLlama) -> None:
    """The fixture checks the pool afterwards."""

    def fail(token_ids: list[int], logits: np.ndarray) -> np.ndarray:
        if len(token_ids) > 75:
            raise RuntimeError("by the processor")
        return logits

    llm, _ = fake_llama(by_hash(VOCAB))
    with pytest.raises(RuntimeError, match="by the processor"):
        llm.generate([5] * 70, n=6, logits_processors=[fail], max_tokens=50)


def test_stream_and_greedy_refuse_n(mini: Llama) -> None:
    with pytest.raises(InvalidArgumentError, match=r"n is 2; a stream is of one sample"):
        mini.stream("The king", n=2)
    with pytest.raises(InvalidArgumentError, match="n is 2 and temperature 0"):
        mini.generate("The king", n=2, temperature=0)


# --- echo -------------------------------------------------------------------------------------


def test_echo(mini: Llama) -> None:
    prompt = "Once upon a time"
    plain = mini.generate(prompt, seed=1, max_tokens=10)
    assert (plain.prompt, plain.prompt_token_ids) == (None, None)
    echoed = mini.generate(prompt, seed=1, max_tokens=10, echo=True)
    ids = mini.tokenizer.encode(prompt)
    assert (echoed.prompt, echoed.prompt_token_ids) == (prompt, tuple(ids))
    assert (echoed.text, echoed.token_ids) == (plain.text, plain.token_ids)
    from_ids = mini.generate(ids, seed=1, max_tokens=10, echo=True, n=2)
    assert [sample.prompt for sample in from_ids.samples] == [prompt] * 2


def test_echo_in_a_stream(mini: Llama) -> None:
    with mini.stream("Once upon a time", seed=1, max_tokens=10, echo=True) as stream:
        chunks = list(stream)
    result = stream.completion
    assert "".join(chunk.text for chunk in chunks) == f"{result.prompt}{result.text}"
    assert result.prompt_token_ids is not None
    ids = [token for chunk in chunks for token in chunk.token_ids]
    assert tuple(ids) == result.prompt_token_ids + result.token_ids
    assert llama2q.Tokenizer.decode(mini.tokenizer, ids) == f"{result.prompt}{result.text}"


def test_echo_of_an_unfinished_character(fake_llama: FakeLlama) -> None:
    """The bytes of a character may be split between prompt and output."""
    llama = [3 + byte for byte in "🦙".encode()]
    llm, _ = fake_llama(scripted([*llama[2:], 2], 3, VOCAB))
    result = llm.generate([1, *llama[:2]], temperature=0, echo=True)
    assert (result.prompt, result.text) == ("", "🦙")
