"""Float32 arrays for property tests: bulk from a seed, with special values strewn in."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

SPECIALS = np.array(
    [0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, 2.0**-127, -(2.0**-130), 2.0**-101, 2.0**-100,
     -(2.0**-99), 0.5, -0.5, 1.0, -1.0, 1.5, 127.0, -127.0, 2.0**24, -(2.0**40), 2.0**60],
    np.float32,
)  # fmt: skip
"""Zeros, denormals, the thresholds of DESIGN.md section 5, ties, and large values."""


def floats(seed: int, shape: tuple[int, ...], spice: int = 0, scale: float = 1.0) -> Array:
    """Normal values times scale; `spice` elements in 100 replaced by special ones.

    From spice 50 on, the last axis also gets runs of 32 zeros, so that whole groups are zero.
    """
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(shape) * scale).astype(np.float32)
    special = SPECIALS[rng.integers(0, len(SPECIALS), shape)]
    values = np.where(rng.integers(0, 100, shape) < spice, special, values)
    if spice >= 50:
        runs = rng.integers(0, 4, (*shape[:-1], -(-shape[-1] // 32))) == 0
        values[np.repeat(runs, 32, axis=-1)[..., : shape[-1]]] = 0
    return np.ascontiguousarray(values)


SEEDS = st.integers(0, 2**32 - 1)
SPICES = st.sampled_from([0, 3, 30, 60, 100])


def assert_same_bits(found: Array, expected: Array) -> None:
    """Fail unless both arrays have the same type, shape and bits (so -0 differs from 0)."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[found.dtype.itemsize]
    left, right = found.view(kind), expected.view(kind)
    different = np.argwhere(left != right)
    if len(different):
        first = tuple(different[0])
        raise AssertionError(
            f"{len(different)} of {found.size} elements differ, first at {first}: "
            f"found {found[first]!r}, expected {expected[first]!r}"
        )


def assert_within(found: Array, exact: Array, limit: Array) -> None:
    """Fail unless |found - exact| <= limit everywhere."""
    error = np.abs(found.astype(np.float64) - exact)
    worst = np.argwhere(~(error <= limit))
    if len(worst):
        first = tuple(worst[0])
        raise AssertionError(
            f"{len(worst)} of {found.size} elements are off by more than their bound, first at "
            f"{first}: found {found[first]!r}, exact {exact[first]!r}, "
            f"bound {np.broadcast_to(limit, found.shape)[first]!r}"
        )
