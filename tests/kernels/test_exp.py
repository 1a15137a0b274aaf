"""Our own exp, and SwiGLU over it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import contract
from llama2q import _core
from reference import Float64Ops
from strategies import SEEDS, SPICES, assert_same_bits, assert_within, floats
from tolerances import U, of_one_op

ISAS = _core.isas()


def dense_sample() -> np.ndarray:
    """Every 61st float32 in (-87, 87): about 36 million bit patterns a sign, thinned by 61."""
    top = int(np.float32(87).view(np.uint32))
    positive = np.arange(0, top, 61 * 16, dtype=np.uint32).view(np.float32)
    wide = np.linspace(-87, 87, 400001, dtype=np.float32)[1:-1]
    return np.concatenate([positive, -positive, wide])


def test_error_is_what_the_tolerances_assume() -> None:
    """`Float64Ops.exp_roundings` units of u = 2^-24, over 2.7 million arguments."""
    x = dense_sample()
    exact = np.exp(x.astype(np.float64))
    relative = np.abs(_core.exp(x).astype(np.float64) / exact - 1)
    assert relative.max() <= Float64Ops().exp_roundings * U


@pytest.mark.parametrize("isa", ISAS)
def test_ends(isa: str) -> None:
    inside = np.nextafter(np.float32(-87), np.float32(0))
    x = np.array([0.0, -0.0, -87.0, -87.5, -1e30, -np.inf, inside], np.float32)
    y = _core.exp(x, isa)
    assert_same_bits(y[:6], np.array([1, 1, 0, 0, 0, 0], np.float32))
    assert y[6] > 0
    assert np.isfinite(_core.exp(np.array([87.0], np.float32), isa)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_nan(isa: str) -> None:
    """A damaged value must reach the check that reports it."""
    x = np.full((1, 20), np.nan, np.float32)
    assert np.isnan(_core.exp(x, isa)).all()
    assert np.isnan(_core.swiglu(x, np.ones_like(x), isa)).all()
    assert np.isnan(_core.swiglu(np.ones_like(x), x, isa)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_isas_agree_on_exp(isa: str) -> None:
    x = np.concatenate([dense_sample(), -(np.arange(870000, dtype=np.float32) / 10000)])
    assert_same_bits(_core.exp(x, isa), _core.exp(x, "scalar"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 172])
def test_exp_of_every_length(isa: str, n: int) -> None:
    x = -np.abs(floats(n, (172,), 30))
    assert_same_bits(_core.exp(x[:n], isa), _core.exp(x, "scalar")[:n])


@pytest.mark.parametrize("isa", ISAS)
@given(seed=SEEDS, spice=SPICES, n=st.integers(1, 4), width=st.integers(1, 180),
       exponent=st.integers(-130, 8))  # fmt: skip
def test_swiglu_contract(
    isa: str, seed: int, spice: int, n: int, width: int, exponent: int
) -> None:
    gate = floats(seed, (n, width), spice, 2.0**exponent)
    up = floats(seed + 1, (n, width), spice)
    assert_same_bits(_core.swiglu(gate, up, isa), contract.swiglu(gate, up))


def test_swiglu_float64() -> None:
    gate, up = floats(1, (50, 172), 0, 30.0), floats(2, (50, 172))
    exact, limit = of_one_op(lambda ops: ops.swiglu(gate.astype(np.float64), up.astype(np.float64)))
    assert_within(_core.swiglu(gate, up), exact, limit)


def test_swiglu_of_large_gates() -> None:
    """Beyond +-87 exp's argument is clamped: the gate passes whole, or vanishes."""
    gate = np.array([[1000.0, 88.0, -88.0, -1000.0, 3e38, -3e38]], np.float32)
    y = _core.swiglu(gate, np.ones_like(gate))
    assert y[0, :2].tolist() == [1000.0, 88.0]
    assert y[0, 4] == gate[0, 4]
    expected = gate[0, [2, 3, 5]] / (1 + np.exp(87.0))
    assert_within(y[0, [2, 3, 5]], expected, 8 * U * np.abs(expected))
