"""RoPE on Meta's interleaved pairs, at exact angles."""

from __future__ import annotations

import numpy as np
import pytest

import contract
from llama2q import _core, kernels
from llama2q.errors import InvalidArgumentError
from reference import inv_freq, yarn_rope
from strategies import assert_same_bits, assert_within, floats
from tolerances import of_one_op

ISAS = _core.isas()
POSITIONS = np.array(
    [0, 1, 2, 63, 64, 255, 256, 1000, 4095, 4096, 16383, 65535, 99999, 100000], np.int32
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n_heads", "head_dim"), [(3, 8), (1, 48), (2, 64), (4, 128), (1, 2)])
def test_contract(isa: str, n_heads: int, head_dim: int) -> None:
    x = floats(head_dim, (len(POSITIONS), n_heads, head_dim), 5)
    frequencies = inv_freq(head_dim, 10000.0)
    expected = contract.rope(x, POSITIONS, frequencies)
    assert_same_bits(_core.rope(x, POSITIONS, frequencies, isa), expected)


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_float64(head_dim: int, theta: float) -> None:
    positions = np.arange(0, 100001, 97, dtype=np.int32)
    x = floats(1, (len(positions), 2, head_dim))
    frequencies = inv_freq(head_dim, theta)
    exact, limit = of_one_op(lambda ops: ops.rope(x.astype(np.float64), positions, frequencies))
    assert_within(_core.rope(x, positions, frequencies), exact, limit)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("factor", [0.1, 1.2302585092994046, 3.0])
def test_attention_factor(isa: str, factor: float) -> None:
    """On cos and sin in float64, before these are rounded; 1 changes no bit."""
    x = floats(7, (len(POSITIONS), 3, 64), 5)
    frequencies = inv_freq(64, 10000.0)
    rotated = _core.rope(x, POSITIONS, frequencies, isa, factor)
    assert_same_bits(rotated, contract.rope(x, POSITIONS, frequencies, factor))
    exact, limit = of_one_op(
        lambda ops: ops.rope(x.astype(np.float64), POSITIONS, frequencies, factor)
    )
    assert_within(rotated, exact, limit)
    public = kernels.rope(x, POSITIONS, frequencies, attention_factor=factor, isa=isa)
    assert_same_bits(public, rotated)
    plain = _core.rope(x, POSITIONS, frequencies, isa)
    assert_same_bits(kernels.rope(x, POSITIONS, frequencies, isa=isa), plain)
    assert_same_bits(_core.rope(x, POSITIONS, frequencies, isa, 1.0), plain)


@pytest.mark.parametrize("factor", [4.0, 32.0])
def test_yarn(factor: float) -> None:
    """The public kernel with YaRN's frequencies and factor, against float64."""
    yarn = yarn_rope(64, 10000.0, factor, 4096)
    x = floats(8, (len(POSITIONS), 2, 64), 5)
    exact, limit = of_one_op(
        lambda ops: ops.rope(x.astype(np.float64), POSITIONS, yarn.inv_freq, yarn.factor)
    )
    found = kernels.rope(x, POSITIONS, yarn.inv_freq, attention_factor=yarn.factor)
    assert_within(found, exact, limit)


def test_pairs_are_neighbours() -> None:
    """At position 1 the first pair turns by one radian: (1, 0) becomes (cos 1, sin 1)."""
    x = np.zeros((1, 1, 8), np.float32)
    x[0, 0, 0] = 1
    y = _core.rope(x, np.array([1], np.int32), inv_freq(8, 10000.0))
    expected = np.array([np.cos(1.0), np.sin(1.0), 0, 0, 0, 0, 0, 0], np.float32)
    assert_same_bits(y[0, 0], expected)


def test_position_zero_changes_nothing() -> None:
    x = np.abs(floats(3, (1, 2, 64)))
    y = _core.rope(x, np.zeros(1, np.int32), inv_freq(64, 10000.0))
    assert_same_bits(y, x)


def test_arguments_are_checked() -> None:
    x = np.ones((1, 2, 64), np.float32)
    with pytest.raises(InvalidArgumentError):
        _core.rope(x, np.zeros(2, np.int32), inv_freq(64, 10000.0))
    with pytest.raises(InvalidArgumentError):
        _core.rope(x, np.zeros(1, np.int32), inv_freq(32, 10000.0))
    with pytest.raises(InvalidArgumentError):
        _core.rope(x, np.array([-1], np.int32), inv_freq(64, 10000.0))
    for factor in (0.0, -1.0, 1001.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError, match="attention_factor"):
            kernels.rope(x, np.zeros(1, np.int32), inv_freq(64, 10000.0), attention_factor=factor)
    with pytest.raises(InvalidArgumentError, match="inv_freq"):
        _core.rope(x, np.zeros(1, np.int32), 2 * inv_freq(64, 10000.0))
