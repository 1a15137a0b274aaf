"""The sum of a matrix and a low-rank product: its order, its rounding, its threads."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama2q.converter import lora_merge
from llama2q.converter.lora_merge import merge, narrow
from llama2q.errors import InvalidArgumentError, QuantizationError

DTYPES = {"f4": "f32", "f2": "f16", "u2": "bf16"}


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Cut float32 off to bf16 bits."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def in_order(
    weights: NDArray[np.float32], left: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the sum as `merge` documents it, with Python's own float64."""
    rows, cols = weights.shape
    merged = np.empty((rows, cols), np.float32)
    for i, j in itertools.product(range(rows), range(cols)):
        total = float(left[i, 0]) * float(right[0, j])
        for k in range(1, len(right)):
            total += float(left[i, k]) * float(right[k, j])
        (merged[i, j],) = struct.unpack("f", struct.pack("f", total + float(weights[i, j])))
    return merged


@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    rank=st.integers(1, 6),
    n_threads=st.integers(1, 4),
    panel=st.sampled_from([1, 64, 200, 1 << 18]),
    seed=st.integers(0, 1 << 20),
)
def test_written_order(
    rows: int, cols: int, rank: int, n_threads: int, panel: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(rows, cols)).astype(np.float32)
    left, right = rng.normal(size=(rows, rank)), rng.normal(size=(rank, cols))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_merge, "_PANEL_BYTES", panel)
        merged = merge(weights, (left, right), "f32", n_threads)
    np.testing.assert_array_equal(merged, in_order(weights, left, right))
    assert not merged.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_matrices(dtype: str) -> None:
    """Many panels; within half a unit in the last place of float32, and float64's own roundings."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(700, 300)).astype(np.float32)
    weights = bf16(values) if dtype == "u2" else values.astype(dtype)
    exact = values if dtype == "f4" else narrow_back(weights)
    left, right = rng.normal(size=(700, 64)), rng.normal(size=(64, 300))
    first, *others = (merge(weights, (left, right), "f32", n) for n in (1, 2, 5))
    for other in others:
        np.testing.assert_array_equal(first, other)
    wide = exact.astype(np.float64) + left @ right
    magnitude = np.abs(exact) + np.abs(left) @ np.abs(right)
    assert (np.abs(first - wide) <= 2.0**-24 * np.abs(wide) + 2 * 66 * 2.0**-53 * magnitude).all()


def narrow_back(weights: NDArray[Any]) -> NDArray[np.float32]:
    if weights.dtype == np.uint16:
        return (weights.astype(np.uint32) << 16).view(np.float32)
    return weights.astype(np.float32)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_narrow_to_bf16(value: float) -> None:
    """The nearest of the two neighbours, and the even one of a tie."""
    (bits,) = struct.unpack("I", struct.pack("f", value))
    low = bits >> 16
    below, above = (struct.unpack("f", struct.pack("I", part << 16))[0] for part in (low, low + 1))
    if not np.isfinite(above):
        above = float(np.copysign(2.0**128, value))
    gap_below, gap_above = abs(value - below), abs(above - value)
    nearest = low if gap_below < gap_above or (gap_below == gap_above and low % 2 == 0) else low + 1
    assert narrow(np.array([value], np.float32), "bf16")[0] == nearest


def test_narrow_keeps_what_is_no_number() -> None:
    bits = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000], np.uint32)
    values = bits.view(np.float32)
    back = narrow_back(narrow(values, "bf16"))
    np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    np.testing.assert_array_equal(back[3:], values[3:])
    half = narrow(values, "f16")
    np.testing.assert_array_equal(np.isnan(half), np.isnan(values))
    assert narrow(values, "f32") is values


def test_narrow_refuses() -> None:
    np.testing.assert_array_equal(
        narrow(np.array([65504, 65519.99, -(2.0**-24)], np.float32), "f16"),
        np.array([65504, 65504, -(2.0**-24)], np.float16),
    )
    with pytest.raises(QuantizationError, match=r"a weight is -65520; float16 ends at 65504"):
        narrow(np.array([1, -65520], np.float32), "f16")
    with pytest.raises(InvalidArgumentError, match="f64"):
        narrow(np.zeros(1, np.float32), "f64")


def test_nothing_added() -> None:
    norm = bf16(np.array([1.5, -2, 3], np.float32))
    np.testing.assert_array_equal(merge(norm, None, "f32", 1), np.array([1.5, -2, 3], np.float32))
    np.testing.assert_array_equal(merge(norm, None, "bf16", 1), norm)


def test_an_interruption_drops_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def interrupt(values: Any, dtype: str) -> Any:
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(lora_merge, "narrow", interrupt)
    monkeypatch.setattr(lora_merge, "_PANEL_BYTES", 8)
    with pytest.raises(KeyboardInterrupt):
        merge(np.zeros((500, 4), np.float32), None, "f32", 1)
    assert len(calls) < 500
