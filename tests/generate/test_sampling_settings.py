"""Penalties, bias, lengths, logprobs and processors, from the settings to the result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fake_model import FakeLlama, scripted
from llama2q import Completion, Llama, Logprob, kernels
from llama2q.errors import ContextLengthError, InvalidArgumentError, NonFiniteError

VOCAB = 4096
EOS = 2
PROMPT = "Once upon a time"


def replayed(llm: Llama, settings: dict[str, Any], result: Completion) -> list[int]:
    """Draw each token again from the logits of a fresh run over the whole text."""
    prompt = llm.tokenizer.encode(PROMPT)
    rows = llm.logits([*prompt, *result.token_ids])
    drawn = []
    for i in range(len(result.token_ids)):
        edited = kernels.edit_logits(
            rows[len(prompt) - 1 + i],
            bias=settings.get("logit_bias"),
            prompt_ids=prompt,
            output_ids=result.token_ids[:i],
            repetition=settings.get("repetition_penalty", 1.0),
            frequency=settings.get("frequency_penalty", 0.0),
            presence=settings.get("presence_penalty", 0.0),
        )
        (token,) = kernels.sample(
            edited[None], temperature=settings["temperature"], top_p=0.9, seed=5,
            position=len(prompt) + i,
        )  # fmt: skip
        drawn.append(int(token))
    return drawn


@pytest.mark.parametrize(
    "edits",
    [{"repetition_penalty": 1.3}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.7},
     {"logit_bias": {263: -100, 809: -math.inf, 900: 2.0}},
     {"repetition_penalty": 0.8, "presence_penalty": -0.3, "frequency_penalty": 1.9,
      "logit_bias": {400: 2.5}}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_edits_apply_to_prompt_and_output(
    mini: Llama, edits: dict[str, Any], temperature: float
) -> None:
    settings = {"temperature": temperature, "seed": 5, "max_tokens": 80, **edits}
    result = mini.generate(PROMPT, **settings)
    assert list(result.token_ids) == replayed(mini, settings, result)
    plain = mini.generate(PROMPT, temperature=temperature, seed=5, max_tokens=80)
    assert plain.token_ids != result.token_ids


def test_logit_bias_rules(mini: Llama) -> None:
    forced = mini.generate(PROMPT, logit_bias={777: 100.0}, max_tokens=5, seed=1)
    assert forced.token_ids == (777,) * 5
    with pytest.raises(InvalidArgumentError, match="logit_bias holds 4096; the vocabulary ends"):
        mini.generate(PROMPT, logit_bias={VOCAB: 1.0})
    banned = {token: -math.inf for token in range(VOCAB)}
    with pytest.raises(NonFiniteError, match="-inf throughout"):
        mini.generate(PROMPT, logit_bias=banned)


# --- lengths ----------------------------------------------------------------------------------


def complete(fake_llama: FakeLlama, script: list[int], **settings: Any) -> Completion:
    llm, _ = fake_llama(scripted(script, 2, VOCAB))
    return llm.generate([1, 300], temperature=0, **settings)


def test_min_tokens_bans_every_end(fake_llama: FakeLlama) -> None:
    script = [400, EOS, 401, 402]
    assert complete(fake_llama, script).token_ids == (400,)
    result = complete(fake_llama, script, min_tokens=4, stop_token_ids=[402], max_tokens=30)
    # Banned, EOS gives way to the lowest id of those left.
    assert result.token_ids[:3] == (400, 0, 401)
    assert result.token_ids[3] == 0
    assert result.finish_reason == "stop"
    assert len(result.token_ids) == 5
    assert complete(fake_llama, [EOS], min_tokens=3, max_tokens=3).token_ids == (0, 0, 0)


def test_min_tokens_holds_stop_strings_off(fake_llama: FakeLlama) -> None:
    the = fake_llama()[0].tokenizer.encode("on the", bos=False)[-1]
    early = complete(fake_llama, [the], stop="the")
    assert (early.text, early.stop_reason) == (" ", "the")
    late = complete(fake_llama, [the], stop="the", min_tokens=2)
    assert (late.text, late.stop_reason) == (" the the ", "the")
    # A string that began in the first tokens is not found.
    across = complete(fake_llama, [the], stop="the the", min_tokens=2, max_tokens=3)
    assert (across.text, across.finish_reason) == (" the the the", "length")


def test_ignore_eos(fake_llama: FakeLlama) -> None:
    script = [400, EOS, 401]
    result = complete(fake_llama, script, ignore_eos=True, max_tokens=7)
    assert result.token_ids == (400, EOS, 401, 400, EOS, 401, 400)
    assert result.finish_reason == "length"
    stopped = complete(fake_llama, script, ignore_eos=True, stop_token_ids=[EOS])
    assert (stopped.token_ids, stopped.stop_reason) == ((400,), EOS)
    both = complete(fake_llama, script, ignore_eos=True, min_tokens=3, max_tokens=3)
    assert both.token_ids == (400, EOS, 401)


# --- log-probabilities ------------------------------------------------------------------------


def test_logprobs_are_of_the_models_own_logits(mini: Llama) -> None:
    prompt = mini.tokenizer.encode(PROMPT)
    result = mini.generate(
        PROMPT, logprobs=3, temperature=1.4, top_k=50, repetition_penalty=1.5, seed=4,
        max_tokens=30, logit_bias={500: 4.0}, logits_processors=[lambda ids, logits: logits * 2],
    )  # fmt: skip
    assert result.logprobs is not None
    assert len(result.logprobs) == len(result.token_ids)
    rows = mini.logits([*prompt, *result.token_ids])[len(prompt) - 1 : -1]
    chosen = np.array(result.token_ids, np.int32)
    ids, values, chosen_values, ranks = kernels.logprobs(rows, chosen, 3)
    for i, entry in enumerate(result.logprobs):
        assert list(entry)[:3] == ids[i].tolist()
        assert [entry[int(token)].logprob for token in ids[i]] == values[i].tolist()
        assert [entry[int(token)].rank for token in ids[i]] == [1, 2, 3]
        own = entry[result.token_ids[i]]
        assert (own.logprob, own.rank) == (float(chosen_values[i]), int(ranks[i]))
        assert len(entry) == (3 if own.rank <= 3 else 4)
    assert any(len(entry) == 4 for entry in result.logprobs)
    assert result.cumulative_logprob == math.fsum(chosen_values.tolist())


def test_logprobs_zero_is_the_chosen_alone(mini: Llama) -> None:
    result = mini.generate(PROMPT, logprobs=0, max_tokens=4, seed=1)
    assert result.logprobs is not None
    assert [list(entry) for entry in result.logprobs] == [[token] for token in result.token_ids]
    text = "".join(entry[token].decoded_token for token, entry in
                   zip(result.token_ids, result.logprobs, strict=True))  # fmt: skip
    assert text == result.text
    with pytest.raises(InvalidArgumentError, match="logprobs is 4097; the vocabulary has 4096"):
        mini.generate(PROMPT, logprobs=4097)


@pytest.mark.parametrize("length", [1, 2, 128, 129, 300])
def test_prompt_logprobs(mini: Llama, length: int) -> None:
    ids = mini.tokenizer.encode("The king of the land was " * 60)[:length]
    result = mini.generate(ids, prompt_logprobs=2, max_tokens=3, seed=9)
    assert result.token_ids == mini.generate(ids, max_tokens=3, seed=9).token_ids
    assert result.prompt_logprobs is not None
    assert len(result.prompt_logprobs) == length
    assert result.prompt_logprobs[0] is None
    if length == 1:
        return
    rows = mini.logits(ids)[:-1]
    likely, _, own, ranks = kernels.logprobs(rows, np.array(ids[1:], np.int32), 2)
    for i, entry in enumerate(result.prompt_logprobs[1:]):
        assert entry is not None
        assert list(entry)[:2] == likely[i].tolist()
        expected = Logprob(float(own[i]), int(ranks[i]), mini.tokenizer.text_of(ids[i + 1]))
        assert entry[ids[i + 1]] == expected


def test_score(mini: Llama) -> None:
    text = "The king of the land was old. " * 20
    ids = mini.tokenizer.encode(text)
    result = mini.score(text)
    assert result == mini.score(ids) == mini.score(np.array(ids))  # type: ignore[arg-type]
    assert result.token_ids == tuple(ids)
    rows = mini.logits(ids)[:-1]
    own = kernels.logprobs(rows, np.array(ids[1:], np.int32))[2]
    assert result.logprobs == tuple(own.tolist())
    assert result.total == math.fsum(result.logprobs)
    assert result.perplexity == math.exp(-result.total / (len(ids) - 1))
    assert mini.engine.pool.n_available == mini.engine.pool.n_blocks


def test_score_limits(mini: Llama) -> None:
    for text in ("", [1]):
        with pytest.raises(InvalidArgumentError, match="leaves none to score"):
            mini.score(text)
    with pytest.raises(InvalidArgumentError, match="score takes one text"):
        mini.score(["a", "b"])  # type: ignore[list-item]
    with pytest.raises(ContextLengthError, match="can be scored"):
        mini.score([1] * (mini.n_ctx + 2))
    assert len(mini.score([1] * 65 + [2] * 64).logprobs) == 128


# --- processors -------------------------------------------------------------------------------


def test_processors_run_in_order_and_see_the_text(mini: Llama) -> None:
    seen: list[list[int]] = []

    def only_two(token_ids: list[int], logits: np.ndarray) -> np.ndarray:
        seen.append(token_ids)
        assert logits.dtype == np.float32
        assert logits.shape == (VOCAB,)
        banned = np.full_like(logits, -np.inf)
        banned[[900, 901]] = 1.0
        return banned

    def second(token_ids: list[int], logits: np.ndarray) -> np.ndarray:
        assert np.isfinite(logits).sum() == 2
        logits[901] += 50.0
        return logits

    result = mini.generate(PROMPT, logits_processors=[only_two, second], max_tokens=4, seed=2)
    assert result.token_ids == (901,) * 4
    prompt = mini.tokenizer.encode(PROMPT)
    assert seen == [[*prompt, *[901] * n] for n in range(4)]


def test_bias_and_bans_come_after_processors(mini: Llama) -> None:
    def flat(token_ids: list[int], logits: np.ndarray) -> np.ndarray:
        return np.zeros_like(logits)

    result = mini.generate(
        PROMPT, logits_processors=[flat], logit_bias={EOS: 90.0, 800: 60.0}, min_tokens=3,
        max_tokens=9, temperature=0,
    )  # fmt: skip
    assert result.token_ids == (800, 800, 800)
    assert result.finish_reason == "stop"


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda x: None, InvalidArgumentError, r"logits_processors\[1\] returned a NoneType"),
        (lambda x: x.tolist(), InvalidArgumentError, r"\[1\] returned a list; expected logits"),
        (lambda x: x[:-1], InvalidArgumentError, r"returned float32 \(4095,\); expected float32"),
        (lambda x: x[None], InvalidArgumentError, r"returned float32 \(1, 4096\)"),
        (lambda x: x.astype(np.float64), InvalidArgumentError, "returned float64"),
        (lambda x: x * np.float32(np.nan), NonFiniteError, "returned nan for token 0"),
        (lambda x: np.where(np.arange(VOCAB) == 7, np.float32(np.inf), x), NonFiniteError,
         "returned inf for token 7"),
        (lambda x: x * 0 - np.float32(np.inf), NonFiniteError, "-inf throughout"),
        (lambda x: 1 // 0, ZeroDivisionError, "division"),
    ],
)  # fmt: skip
def test_bad_processors(mini: Llama, returned: Any, error: Any, message: str) -> None:
    processors = [lambda ids, logits: logits, lambda ids, logits: returned(logits)]
    with pytest.raises(error, match=message):
        mini.generate(PROMPT, logits_processors=processors, max_tokens=3)
    stream = mini.stream(PROMPT, logits_processors=processors, max_tokens=3)
    with pytest.raises(error, match=message):
        next(stream)
    assert stream.completion.finish_reason == "abort"
    assert mini.engine.pool.n_available == mini.engine.pool.n_blocks
    assert mini.generate(PROMPT, max_tokens=3).usage.completion_tokens == 3


def test_neighbours_do_not_matter(mini: Llama) -> None:
    """A batch of requests with and without edits: each as alone."""
    settings: dict[str, Any] = {
        "temperature": 0.9, "seed": 3, "max_tokens": 40, "presence_penalty": 0.8, "logprobs": 1,
    }  # fmt: skip
    prompts = [PROMPT, "The king", "She said that " * 60]
    for prompt, result in zip(prompts, mini.generate(prompts, **settings), strict=True):
        expected = mini.generate(prompt, **settings)
        assert (result.token_ids, result.logprobs) == (expected.token_ids, expected.logprobs)
