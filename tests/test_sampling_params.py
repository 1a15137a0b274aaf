"""SamplingParams: defaults, ranges, messages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from llama2q.errors import InvalidArgumentError
from llama2q.sampling import SamplingParams


def test_defaults_are_metas() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.9, 0, 0.0)
    assert (params.seed, params.max_tokens, params.stop, params.stop_token_ids) == (
        None,
        None,
        (),
        (),
    )


def test_defaults_change_no_logit() -> None:
    params = SamplingParams()
    assert (params.repetition_penalty, params.presence_penalty) == (1.0, 0.0)
    assert (params.frequency_penalty, params.logit_bias, params.min_tokens) == (0.0, {}, 0)
    assert (params.ignore_eos, params.n, params.echo) == (False, 1, False)
    assert (params.logprobs, params.prompt_logprobs) == (None, None)
    assert params.logits_processors == ()


def test_fields_that_contradict_each_other() -> None:
    with pytest.raises(InvalidArgumentError, match="min_tokens is 5, more than max_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(InvalidArgumentError, match="n is 3 and temperature 0"):
        SamplingParams(n=3, temperature=0)
    assert SamplingParams(min_tokens=5, max_tokens=5).min_tokens == 5


def test_logit_bias_is_copied() -> None:
    biases = {np.int64(7): 1, 8: -math.inf}
    params = SamplingParams(logit_bias=biases)  # type: ignore[arg-type]
    biases[np.int64(9)] = 5
    assert params.logit_bias == {7: 1.0, 8: -math.inf}
    assert type(next(iter(params.logit_bias))) is int


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -0.1, "temperature is -0.1; expected a finite number at least 0"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", "hot", "temperature is 'hot'; expected a number at least 0"),
        ("temperature", True, "temperature is True"),
        ("temperature", 1e39, "temperature is 1e.39; expected a finite number at least 0"),
        ("temperature", 10**400, "expected a number at least 0"),
        ("top_p", 0, "top_p is 0.0; expected a number above 0"),
        ("top_p", 1e-40, "top_p is 1e-40; expected a number above 0"),
        ("top_p", 1.01, "top_p is 1.01; expected a finite number from 0 to 1"),
        ("top_p", None, "top_p is None"),
        ("min_p", -1e-9, "min_p is -1e-09"),
        ("min_p", 2, "min_p is 2.0"),
        ("top_k", -1, r"top_k is -1; expected an integer from 0 to 2\*\*31 - 1 \(0 is off\)"),
        ("top_k", 1.5, "top_k is 1.5"),
        ("top_k", 2**31, "top_k is 2147483648"),
        ("seed", -1, r"seed is -1; expected an integer from 0 to 2\*\*64 - 1"),
        ("seed", 2**64, "seed is 18446744073709551616"),
        ("seed", 0.5, r"seed is 0\.5"),
        ("max_tokens", 0, r"max_tokens is 0; expected an integer from 1 .*None is no limit"),
        ("max_tokens", "9", "max_tokens is '9'"),
        ("stop", "", "stop holds ''; expected strings of at least one character"),
        ("stop", ["a", 3], "stop holds 3"),
        ("stop", 3, "stop is 3; expected a string or a sequence"),
        ("stop_token_ids", [2, -1], r"stop_token_ids\[1\] is -1"),
        ("stop_token_ids", 7, "stop_token_ids is 7; expected a sequence of ids"),
        ("stop_token_ids", "7", "stop_token_ids is '7'"),
        ("repetition_penalty", 0, r"repetition_penalty is 0.0; .* above 0 \(1 is off\)"),
        ("repetition_penalty", math.inf, "repetition_penalty is inf; expected a finite number"),
        ("presence_penalty", 2.1, "presence_penalty is 2.1; .* from -2 to 2"),
        ("frequency_penalty", -3, "frequency_penalty is -3.0; .* from -2 to 2"),
        ("logit_bias", [(1, 2.0)], "logit_bias is .*; expected a mapping of token ids"),
        ("logit_bias", {"7": 1}, r"token id of logit_bias is '7'; expected an integer from 0"),
        ("logit_bias", {7: 101}, r"logit_bias\[7\] is 101.0; .* from -100 to 100"),
        ("logit_bias", {7: math.nan}, r"logit_bias\[7\] is nan"),
        ("logit_bias", {7: "x"}, r"logit_bias\[7\] is 'x'"),
        ("min_tokens", -1, r"min_tokens is -1; .*\(0 is off\)"),
        ("ignore_eos", 1, "ignore_eos is 1; expected a bool"),
        ("echo", None, "echo is None; expected a bool"),
        ("n", 0, "n is 0; expected an integer from 1"),
        ("n", 2.0, "n is 2.0"),
        ("logprobs", -1, "logprobs is -1; expected an integer from 0 .*None is off"),
        ("logprobs", True, "logprobs is True"),
        ("prompt_logprobs", "5", "prompt_logprobs is '5'"),
        ("logits_processors", print, "logits_processors is .*; expected a sequence of callables"),
        ("logits_processors", [print, 3], r"logits_processors\[1\] is 3; expected a callable"),
    ],
)
def test_out_of_range(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        SamplingParams(**{name: value})


def test_numbers_and_sequences_are_normalized() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(4),  # type: ignore[arg-type]
        stop="end",
        stop_token_ids=[np.int32(9)],  # type: ignore[list-item]
    )
    assert type(params.temperature) is float
    assert type(params.top_k) is int
    assert params.stop == ("end",)
    assert params.stop_token_ids == (9,)
    assert hash(params) == hash(dataclasses.replace(params))


def test_keywords_replace_fields() -> None:
    base = SamplingParams(top_k=5, seed=3)
    assert SamplingParams.of(base, {"seed": 4}) == SamplingParams(top_k=5, seed=4)
    assert SamplingParams.of(None, {}) == SamplingParams()


def test_unknown_keyword() -> None:
    with pytest.raises(InvalidArgumentError, match="'temprature'; did you mean temperature"):
        SamplingParams.of(None, {"temprature": 1.0})
    with pytest.raises(InvalidArgumentError, match="'n_predict'; known: temperature, top_p"):
        SamplingParams.of(None, {"n_predict": 1})
    with pytest.raises(InvalidArgumentError, match="params is a dict"):
        SamplingParams.of({"seed": 1}, {})  # type: ignore[arg-type]
