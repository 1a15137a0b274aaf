"""RMSNorm: Meta's formula, summed in 16 lanes and a tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import contract
from llama2q import _core
from llama2q.errors import InvalidArgumentError
from strategies import SEEDS, SPICES, assert_same_bits, assert_within, floats
from tolerances import of_one_op

ISAS = _core.isas()


@pytest.mark.parametrize("isa", ISAS)
@given(seed=SEEDS, spice=SPICES, n=st.integers(1, 4), dim=st.integers(1, 300),
       exponent=st.integers(-70, 0), eps=st.sampled_from([1e-5, 1e-6, 0.0]))  # fmt: skip
def test_contract(
    isa: str, seed: int, spice: int, n: int, dim: int, exponent: int, eps: float
) -> None:
    x = floats(seed, (n, dim), spice, 2.0**exponent)
    x[:, 0] = 1  # with eps 0 a row of zeros has no norm
    weight = floats(seed + 1, (dim,), 0)
    expected = contract.rms_norm(x, weight, eps)
    assert_same_bits(_core.rms_norm(x, weight, eps, isa), expected)


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 64, 172, 4096])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_float64(dim: int, scale: float) -> None:
    x, weight = floats(dim, (5, dim), 0, scale), floats(1, (dim,))
    exact, limit = of_one_op(lambda ops: ops.rms_norm(x.astype(np.float64), weight, 1e-5))
    assert_within(_core.rms_norm(x, weight, 1e-5), exact, limit)


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros((2, 33), np.float32)
    assert_same_bits(_core.rms_norm(zeros, np.ones(33, np.float32), 1e-5), zeros)


def test_shapes_are_checked() -> None:
    with pytest.raises(InvalidArgumentError):
        _core.rms_norm(np.ones((2, 33), np.float32), np.ones(32, np.float32), 1e-5)
