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
