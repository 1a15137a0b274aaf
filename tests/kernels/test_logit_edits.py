"""Bias, penalties and bans, against their definition in NumPy.

Each is one float32 operation, so NumPy in float32 gives the same bits; in float64 it is the
definition itself, to which the result is held within the bound of the roundings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2q import _core, kernels
from llama2q.errors import InvalidArgumentError
from strategies import SEEDS, SPICES, assert_same_bits, assert_within, floats
from tolerances import TINY, U


def defined(
    logits: np.ndarray, bias: dict[int, float], prompt: list[int], output: list[int],
    repetition: Any, frequency: Any, presence: Any, banned: list[int],
) -> np.ndarray:  # fmt: skip
    """Compute in the type of `logits`, in which all numbers are given."""
    number = logits.dtype.type
    x = logits.copy()
    for token, value in bias.items():
        x[token] = x[token] + number(value)
    for token in sorted({*prompt, *output}):
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token in sorted(set(output)):
        x[token] = x[token] - frequency * number(output.count(token))
        x[token] = x[token] - presence
    x[banned] = -np.inf
    return x


def case(seed: int, vocab: int, spice: int) -> tuple[np.ndarray, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    logits = floats(seed, (vocab,), spice, 5.0)
    logits = np.clip(logits, -1e6, 1e6)
    ids = rng.integers(0, vocab, 40).tolist()
    return logits, {
        "bias": {token: float(np.float32(rng.uniform(-100, 100))) for token in ids[:10]},
        "prompt": ids[5:20], "output": ids[15:35] + ids[15:20],
        "repetition": np.float32(rng.choice([0.5, 1.0, 1.1, 1.3, 3.0])),
        "frequency": np.float32(rng.uniform(-2, 2)), "presence": np.float32(rng.uniform(-2, 2)),
        "banned": ids[:2],
    }  # fmt: skip


def edit(logits: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    return kernels.edit_logits(
        logits, bias=how["bias"], prompt_ids=how["prompt"], output_ids=how["output"],
        repetition=float(how["repetition"]), frequency=float(how["frequency"]),
        presence=float(how["presence"]), banned_ids=how["banned"],
    )  # fmt: skip


@given(seed=SEEDS, vocab=st.sampled_from([1, 2, 17, 500]), spice=SPICES)
def test_float32_definition(seed: int, vocab: int, spice: int) -> None:
    logits, how = case(seed, vocab, spice)
    assert_same_bits(edit(logits, how), defined(logits, **how))


@given(seed=SEEDS, vocab=st.sampled_from([2, 17, 500]))
def test_float64_definition(seed: int, vocab: int) -> None:
    """Five roundings: bias, repetition, frequency * count, and the two subtractions.

    Each is off by at most u of its own result, and the repetition penalty scales what came before
    by at most 3 or 1 / 0.5; so the error is at most 5 u (1 + 3) of the sum of all magnitudes.
    A rounded sum has the sign of the exact one, so both take the same side of the penalty.
    """
    logits, how = case(seed, vocab, 0)
    wide = {
        name: np.float64(value) if isinstance(value, np.float32) else value
        for name, value in how.items()
    }
    exact = defined(logits.astype(np.float64), **wide)
    largest = 3 * (np.abs(logits).max() + 100.0) + 2.0 * len(how["output"]) + 2.0
    found = edit(logits, how)
    assert (np.isinf(found) == np.isinf(exact)).all()
    finite = np.isfinite(exact)
    limit = np.full(found.shape, 20 * U * largest + TINY)
    assert_within(found[finite], exact[finite], limit[finite])


def test_meanings() -> None:
    """By hand: 0 is untouched, 1 in the prompt, 2 in the output twice, 3 in both, 4 biased."""
    logits = np.array([2, 2, 2, -2, 1], np.float32)
    how = {"prompt_ids": [1, 3], "output_ids": [2, 3, 2]}
    repeated = kernels.edit_logits(logits, **how, repetition=4.0)
    assert repeated.tolist() == [2, 0.5, 0.5, -8, 1]
    present = kernels.edit_logits(logits, **how, presence=0.5)
    assert present.tolist() == [2, 2, 1.5, -2.5, 1]
    frequent = kernels.edit_logits(logits, **how, frequency=0.5)
    assert frequent.tolist() == [2, 2, 1.0, -2.5, 1]
    assert kernels.edit_logits(logits, bias={4: -3.0}).tolist() == [2, 2, 2, -2, -2]
    # The bias comes first: what it makes negative is multiplied.
    both = kernels.edit_logits(logits, bias={1: -3.0}, prompt_ids=[1], repetition=4.0)
    assert both.tolist() == [2, -4, 2, -2, 1]
    banned = kernels.edit_logits(logits, bias={0: -np.inf, 1: 50.0}, banned_ids=[1])
    assert banned.tolist() == [-np.inf, -np.inf, 2, -2, 1]


def test_neutral_values_change_no_bit() -> None:
    logits = floats(3, (300,), 60)
    same = kernels.edit_logits(logits, prompt_ids=range(200), output_ids=range(100, 300))
    assert_same_bits(same + np.float32(0), logits + np.float32(0))


NO_IDS, NO_FLOATS = np.empty(0, np.int32), np.empty(0, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias_ids": [4], "biases": [1.0]}, "bias_ids holds 4; expected 0 to 3"),
        ({"seen_ids": [-1], "counts": [0]}, "seen_ids holds -1"),
        ({"banned_ids": [9]}, "banned_ids holds 9"),
        ({"seen_ids": [1], "counts": [-1]}, "counts hold -1"),
        ({"seen_ids": [1], "counts": [1, 2]}, r"counts has shape \(2,\); expected \(1,\)"),
        ({"bias_ids": [1], "biases": [np.nan]}, "biases hold nan"),
        ({"bias_ids": [1], "biases": [np.inf]}, "biases hold inf"),
        ({"repetition": 0.0}, "repetition is 0"),
        ({"repetition": np.inf}, "repetition is inf"),
        ({"frequency": np.nan}, "frequency is nan"),
        ({"presence": -np.inf}, "presence -inf"),
    ],
)
def test_checks(change: dict[str, Any], message: str) -> None:
    how: dict[str, Any] = {
        "bias_ids": NO_IDS, "biases": NO_FLOATS, "seen_ids": NO_IDS, "counts": NO_IDS,
        "repetition": 1.0, "frequency": 0.0, "presence": 0.0, "banned_ids": NO_IDS,
    }  # fmt: skip
    for name, value in change.items():
        how[name] = np.array(value, how[name].dtype) if isinstance(value, list) else value
    with pytest.raises(InvalidArgumentError, match=message):
        _core.edit_logits(np.zeros(4, np.float32), **how)


def test_read_only_and_wrong_arrays() -> None:
    rest = (NO_IDS, NO_FLOATS, NO_IDS, NO_IDS, 1.0, 0.0, 0.0, NO_IDS)
    frozen = np.zeros(4, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(InvalidArgumentError, match="read-only"):
        _core.edit_logits(frozen, *rest)
    with pytest.raises(InvalidArgumentError, match="dtype float64; expected float32"):
        _core.edit_logits(np.zeros(4), *rest)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=">f4; expected float32"):
        _core.edit_logits(np.zeros(4, ">f4"), *rest)
    with pytest.raises(InvalidArgumentError, match="not C-contiguous"):
        _core.edit_logits(np.zeros(8, np.float32)[::2], *rest)
    with pytest.raises(InvalidArgumentError, match=r"shape \(1, 4\); expected \(\*,\)"):
        _core.edit_logits(np.zeros((1, 4), np.float32), *rest)
