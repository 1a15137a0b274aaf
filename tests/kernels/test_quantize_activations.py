"""Activation quantization: DESIGN.md section 5 point 1, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2q import _core
from llama2q.errors import InvalidArgumentError, NonFiniteError
from reference import quantize_activations
from strategies import SEEDS, SPICES, assert_same_bits, floats

ISAS = _core.isas()
GROUPS = (32, 64, 128)


@pytest.mark.parametrize("isa", ISAS)
@given(seed=SEEDS, spice=SPICES, n=st.integers(1, 5), cols=st.integers(1, 400),
       group_size=st.sampled_from(GROUPS), exponent=st.integers(-126, 66))  # fmt: skip
def test_rule(
    isa: str, seed: int, spice: int, n: int, cols: int, group_size: int, exponent: int
) -> None:
    x = floats(seed, (n, cols), spice, 2.0**exponent)
    codes, scales = _core.quantize_activations(x, group_size, isa)
    expected_codes, expected_scales = quantize_activations(x, group_size)
    assert_same_bits(codes, expected_codes[:, : codes.shape[1]])
    assert_same_bits(scales, expected_scales)


@pytest.mark.parametrize("isa", ISAS)
def test_ties_go_to_even(isa: str) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :9] = 127, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 126.5
    codes, scales = _core.quantize_activations(x, 32, isa)
    assert codes[0, :9].tolist() == [127, 0, 2, 2, 4, 0, -2, -2, 126]
    assert scales.tolist() == [[1.0]]


@pytest.mark.parametrize("isa", ISAS)
def test_threshold_is_two_to_minus_100(isa: str) -> None:
    x = np.zeros((2, 64), np.float32)
    x[0, 3] = -(2.0**-100)
    x[1, 3] = np.nextafter(np.float32(2.0**-100), np.float32(0))
    codes, scales = _core.quantize_activations(x, 64, isa)
    assert codes[0, 3] == -127
    assert scales[0, 0] == np.float32(2.0**-100) / np.float32(127)
    assert not codes[1].any()
    assert_same_bits(scales[1], np.zeros(1, np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_largest_value(isa: str) -> None:
    largest = np.finfo(np.float32).max
    x = np.full((1, 128), -largest, np.float32)
    codes, scales = _core.quantize_activations(x, 128, isa)
    assert (codes == -127).all()
    assert scales[0, 0] == largest / np.float32(127)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 31, 32, 99])
def test_non_finite_raises(isa: str, value: float, place: int) -> None:
    x = np.ones((2, 100), np.float32)
    x[1, place] = value
    with pytest.raises(NonFiniteError):
        _core.quantize_activations(x, 32, isa)


def test_group_size_must_be_known() -> None:
    with pytest.raises(InvalidArgumentError):
        _core.quantize_activations(np.ones((1, 48), np.float32), 48)
