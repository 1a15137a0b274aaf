"""Products of float32 matrices in place: C +- A^T B, and the lower triangle of X^T X."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import contract
from llama2q import _core
from llama2q.errors import InvalidArgumentError
from strategies import SEEDS, SPICES, Array, assert_same_bits, assert_within, floats
from tolerances import bound

ISAS = _core.isas()
# (m, n, k): register tiles and strips that are whole and not, several tiles of C, two depths.
SHAPES = [(1, 1, 1), (16, 17, 16), (7, 130, 5), (130, 49, 300), (300, 16, 17), (400, 397, 3)]


def matrices(m: int, n: int, k: int, spice: int = 0) -> tuple[Array, Array, Array]:
    return floats(1, (m, n), spice), floats(2, (k, m), spice), floats(3, (k, n), spice)


def product(c: Array, a: Array, b: Array, *more: object) -> Array:
    result = c.copy()
    _core.add_product(result, a, b, *more)  # type: ignore[arg-type]
    return result


@pytest.mark.parametrize("isa", ISAS)
@given(seed=SEEDS, spice=SPICES, m=st.integers(1, 20), n=st.integers(1, 60), k=st.integers(0, 9),
       subtract=st.booleans())  # fmt: skip
def test_contract(isa: str, seed: int, spice: int, m: int, n: int, k: int, subtract: bool) -> None:
    c, a = floats(seed, (m, n), spice), floats(seed + 1, (k, m), spice)
    b = floats(seed + 2, (k, n), spice)
    expected = contract.add_product(c, a, b, subtract=subtract)
    assert_same_bits(product(c, a, b, subtract, isa, 1), expected)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("subtract", [False, True])
def test_float64(m: int, n: int, k: int, subtract: bool) -> None:
    """One rounding per term of a chain."""
    c, a, b = matrices(m, n, k)
    wide = a.astype(np.float64).T @ b
    exact = c - wide if subtract else c + wide
    magnitude = np.abs(c) + np.abs(a).astype(np.float64).T @ np.abs(b)
    assert_within(product(c, a, b, subtract), exact, bound(magnitude, k))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_same_bits(isa: str, m: int, n: int, k: int) -> None:
    """On every instruction set, for any number of threads and however k is cut."""
    c, a, b = matrices(m, n, k, 10)
    expected = product(c, a, b, False, "scalar", 1)
    for n_threads in (1, 2, 3):
        assert_same_bits(product(c, a, b, False, isa, n_threads), expected)
    half = k // 2
    again = product(product(c, a[:half], b[:half], False, isa), a[half:], b[half:], False, isa)
    assert_same_bits(again, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 130, 300, 400])
def test_gram(isa: str, size: int) -> None:
    """The lower triangle is that of the product; what is above it stays."""
    x = floats(size, (21, size), 10)
    h = floats(size + 1, (size, size))
    expected = product(h, x, x, False, "scalar", 1)
    above = np.triu_indices(size, 1)
    expected[above] = h[above]
    for n_threads in (1, 2, 3):
        found = h.copy()
        _core.add_gram(found, x, isa, n_threads)
        assert_same_bits(found, expected)


@pytest.mark.parametrize("isa", ISAS)
def test_neighbours_are_not_touched(isa: str) -> None:
    """C stands in the middle of a larger array."""
    a, b = floats(1, (5, 9)), floats(2, (5, 50))
    room = np.full(3 * 450, 7.0, np.float32)
    c = room[450:900].reshape(9, 50)
    c[:] = 0
    _core.add_product(c, a, b, isa=isa)
    assert (room[:450] == 7).all()
    assert (room[900:] == 7).all()


def test_nothing_to_do() -> None:
    c = floats(1, (3, 4))
    assert_same_bits(product(c, np.empty((0, 3), np.float32), np.empty((0, 4), np.float32)), c)
    empty = np.empty((0, 0), np.float32)
    _core.add_gram(empty, np.empty((5, 0), np.float32))
    _core.add_product(empty, empty, empty)


def test_overlap_is_refused() -> None:
    room = floats(1, (20, 20))
    with pytest.raises(InvalidArgumentError, match="x overlaps h"):
        _core.add_gram(room, room)
    with pytest.raises(InvalidArgumentError, match="b overlaps c"):
        _core.add_product(room, floats(2, (3, 20)), room[4:7])
    _core.add_product(room[:10], room[10:13, :10].copy(), room[10:13])
