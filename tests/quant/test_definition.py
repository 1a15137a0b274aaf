"""The NumPy definition against loops over single elements."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama2q.errors import InvalidArgumentError, NonFiniteWeightError, QuantizationError
from llama2q.quant import GRIDS, GROUP_SIZES, dense, grid_values, int4, int8
from llama2q.quant.bits import round_scale, widen

F32 = np.float32
TINY = float(np.finfo(np.float32).smallest_subnormal)


def f16_values() -> list[Fraction]:
    """All non-negative finite float16 values, ascending, as exact fractions."""
    return [Fraction(float(v)) for v in np.arange(0x7C00, dtype=np.uint16).view(np.float16)]


def rounded_scale(s32: np.float32) -> float:
    """Round as FORMAT.md section 5 says, in exact arithmetic."""
    if s32 == 0:
        return 0.0
    values = ALL_F16
    magnitude = abs(Fraction(float(s32)))
    above = next((i for i, v in enumerate(values) if v >= magnitude), None)
    if above is None:
        assert magnitude < 65520
        return math.copysign(65504.0, float(s32))
    if magnitude < Fraction(1, 2**14):
        index = above
    else:
        low, high = values[above - 1], values[above]
        nearer_low = magnitude - low < high - magnitude
        tie = magnitude - low == high - magnitude
        index = above - 1 if nearer_low or (tie and (above - 1) % 2 == 0) else above
    return math.copysign(float(values[index]), float(s32))


ALL_F16 = f16_values()


def int4_group(x: list[np.float32], grid: tuple[int, ...]) -> tuple[float, list[int]]:
    high, low = max(x), min(x)
    extreme = low if -low >= high else high
    scale = rounded_scale(F32(extreme) / F32(grid[0]))
    if scale == 0:
        return 0.0, [0] * len(x)
    codes = []
    for value in x:
        y = F32(value) / F32(scale)
        code = 0
        for a, b in pairwise(grid):
            if F32(a + b) / F32(2) < y:
                code += 1
        codes.append(code)
    return scale, codes


def int8_group(x: list[np.float32]) -> tuple[float, list[int]]:
    scale = rounded_scale(max(abs(v) for v in x) / F32(127))
    if scale == 0:
        return 0.0, [0] * len(x)
    return scale, [round(max(-127.0, min(127.0, float(F32(v) / F32(scale))))) for v in x]


def check_int4(weights: NDArray[np.float32], group_size: int, name: str) -> None:
    """Compare every code and scale, by the byte positions of FORMAT.md section 4.1."""
    rows, cols = weights.shape
    grid = GRIDS[name]
    codes, scales = int4.encode(weights, group_size, grid_values(name))
    k = -(-cols // group_size) * group_size
    n_bands = -(-rows // 16)
    assert codes.shape == (n_bands, k // 8, 64)
    assert codes.dtype == np.uint8
    assert scales.shape == (n_bands, k // group_size, 16)
    assert scales.dtype == np.float16
    code_bytes, flat_scales = codes.tobytes(), scales.reshape(-1)
    decoded = int4.decode(codes, scales, rows, cols, grid_values(name))
    for row in range(n_bands * 16):
        for g in range(k // group_size):
            start, stop = g * group_size, min((g + 1) * group_size, cols)
            expected_scale, expected = 0.0, [0] * group_size
            if row < rows:
                expected_scale, found = int4_group(list(weights[row, start:stop]), grid)
                expected = found + [0] * (group_size - len(found))
            index = ((row // 16) * (k // group_size) + g) * 16 + row % 16
            scale = float(flat_scales[index])
            assert (scale, math.copysign(1, scale)) == (
                expected_scale,
                math.copysign(1, expected_scale),
            )
            for i, code in enumerate(expected):
                col = start + i
                at = ((row // 16) * (k // 8) + col // 8) * 64 + 4 * (row % 16) + col % 4
                byte = code_bytes[at]
                assert (byte >> 4 if col % 8 >= 4 else byte & 15) == code
                if row < rows and col < cols:
                    assert decoded[row, col] == F32(grid[code]) * F32(expected_scale)


def check_int8(weights: NDArray[np.float32], group_size: int) -> None:
    """Compare every code and scale, by the byte positions of FORMAT.md sections 4.2 and 4.4."""
    rows, cols = weights.shape
    codes, scales = int8.encode(weights, group_size)
    row_codes, row_scales = int8.encode_rows(weights, group_size)
    k = -(-cols // group_size) * group_size
    n_bands = -(-rows // 16)
    assert codes.shape == (n_bands, k // 4, 64)
    assert codes.dtype == np.int8
    assert scales.shape == (n_bands, k // group_size, 16)
    assert row_codes.shape == (rows, cols)
    assert row_scales.shape == (rows, k // group_size)
    flat, flat_scales = codes.reshape(-1), scales.reshape(-1)
    decoded = int8.decode(codes, scales, rows, cols)
    np.testing.assert_array_equal(int8.decode_rows(row_codes, row_scales, group_size), decoded)
    for row in range(n_bands * 16):
        for g in range(k // group_size):
            start, stop = g * group_size, min((g + 1) * group_size, cols)
            expected_scale, expected = 0.0, [0] * group_size
            if row < rows:
                expected_scale, found = int8_group(list(weights[row, start:stop]))
                expected = found + [0] * (group_size - len(found))
                assert float(row_scales[row, g]) == expected_scale
                assert row_codes[row, start:stop].tolist() == found
            index = ((row // 16) * (k // group_size) + g) * 16 + row % 16
            assert float(flat_scales[index]) == expected_scale
            for i, code in enumerate(expected):
                col = start + i
                at = ((row // 16) * (k // 4) + col // 4) * 64 + 4 * (row % 16) + col % 4
                assert flat[at] == code
                if row < rows and col < cols:
                    assert decoded[row, col] == F32(code) * F32(expected_scale)


def special_weights(rows: int, cols: int, seed: int) -> NDArray[np.float32]:
    """Return weights of wildly different magnitude, zeros and ties included."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (rows, cols)).astype(np.float32)
    exponent = rng.choice([0, -10, -17, -24, -30, -126, -149, 10, 13], size=(rows, 1))
    weights = np.ldexp(weights, exponent).astype(np.float32)
    weights[rng.random((rows, cols)) < 0.1] = 0.0
    weights[rng.random((rows, cols)) < 0.05] = -0.0
    kind = rng.integers(0, 8, rows)
    weights[kind == 0] = 0.0
    whole = np.rint(rng.normal(0, 20, (rows, cols))).astype(np.float32)
    weights[kind == 1] = whole[kind == 1]  # many ties and exact grid values
    weights[kind == 2] = np.abs(weights[kind == 2])  # negative scales for int4
    weights[kind == 3, ::7] = TINY
    return weights


shapes = st.tuples(
    st.sampled_from([1, 2, 15, 16, 17, 33]), st.sampled_from([1, 3, 31, 32, 33, 64, 100, 172])
)


@settings(max_examples=25)
@given(shapes, st.sampled_from(GROUP_SIZES), st.sampled_from(list(GRIDS)), st.integers(0, 999))
def test_int4_is_its_definition(
    shape: tuple[int, int], group_size: int, grid: str, seed: int
) -> None:
    check_int4(special_weights(*shape, seed), group_size, grid)


@settings(max_examples=25)
@given(shapes, st.sampled_from(GROUP_SIZES), st.integers(0, 999))
def test_int8_is_its_definition(shape: tuple[int, int], group_size: int, seed: int) -> None:
    check_int8(special_weights(*shape, seed), group_size)


@pytest.mark.parametrize("value", [0.0, -0.0, TINY, -TINY, 8 * TINY, 1e-38, 2.0**-27, 3e5, -3e5])
def test_constant_groups(value: float) -> None:
    weights = np.full((3, 40), value, dtype=np.float32)
    for grid in GRIDS:
        check_int4(weights, 32, grid)
    check_int8(weights, 32)


def test_scale_rounding_over_all_float16_neighbours() -> None:
    values = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (values[:-1] + values[1:]) * F32(0.5)  # exact in float32
    for probe in (values, between, np.nextafter(values, F32(0)), np.nextafter(between, F32(0))):
        found = round_scale(probe).astype(np.float32)
        tiny = probe < F32(2.0**-14)
        assert (found[tiny] >= probe[tiny]).all()
        assert (found[tiny] - probe[tiny] < F32(2.0**-24)).all()
        np.testing.assert_array_equal(found[~tiny], probe[~tiny].astype(np.float16))
        np.testing.assert_array_equal(round_scale(-probe), -round_scale(probe))


def test_scale_zero_is_positive() -> None:
    zeros = round_scale(np.array([0.0, -0.0], dtype=np.float32))
    assert zeros.view(np.uint16).tolist() == [0, 0]


def test_smallest_scale_is_rounded_up() -> None:
    scales = round_scale(np.array([TINY, -TINY, 2.0**-25], dtype=np.float32))
    assert scales.view(np.uint16).tolist() == [1, 0x8001, 1]


def test_largest_scale() -> None:
    below = np.nextafter(F32(65520), F32(0))
    assert round_scale(np.array([below]))[0] == 65504
    with pytest.raises(QuantizationError, match="65504"):
        round_scale(np.array([65520.0], dtype=np.float32))
    with pytest.raises(QuantizationError):
        int8.encode(np.full((1, 4), 1e30, dtype=np.float32), 32)


def test_ties_take_the_lower_grid_value() -> None:
    weights = np.array([[-8.0, -7.5, -0.5, 0.5, 6.5, 7.0, 20.0 - 13.0]], dtype=np.float32)
    codes, _ = int4.encode(weights, 32, grid_values("uniform"))
    assert int4.unpack(codes)[0, :7].tolist() == [0, 0, 7, 8, 14, 15, 15]


def test_negative_extreme_wins_a_tie() -> None:
    weights = np.array([[8.0, -8.0]], dtype=np.float32)
    codes, scales = int4.encode(weights, 32, grid_values("uniform"))
    assert scales[0, 0, 0] == 1
    assert int4.unpack(codes)[0, :2].tolist() == [15, 0]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_inputs_equal_their_widened_form(dtype: str) -> None:
    weights = special_weights(19, 70, 5)
    if dtype == "f16":
        half = np.clip(weights, -6e4, 6e4).astype(np.float16)
    else:
        half = (weights.view(np.uint32) >> 16).astype(np.uint16)
    wide = widen(half)
    for found, expected in (
        (int4.encode(half, 32, grid_values("nonuniform")),
         int4.encode(wide, 32, grid_values("nonuniform"))),
        (int8.encode(half, 64), int8.encode(wide, 64)),
        (int8.encode_rows(half, 64), int8.encode_rows(wide, 64)),
    ):  # fmt: skip
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (17, 5), (32, 172)])
def test_dense_keeps_every_bit(dtype: type[np.generic], shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 1, shape).astype(np.float32)
    weights = (weights.view(np.uint32) >> 16).astype(dtype) if dtype is np.uint16 else weights
    weights = weights.astype(dtype, copy=False)
    weights.reshape(-1)[0] = 0x8000 if dtype is np.uint16 else -0.0
    packed = dense.encode(weights)
    assert packed.shape == (-(-shape[0] // 16), shape[1], 16)
    assert packed.dtype == dtype
    for row in range(packed.shape[0] * 16):
        for col in range(shape[1]):
            index = ((row // 16) * shape[1] + col) * 16 + row % 16
            value = weights[row, col] if row < shape[0] else weights.dtype.type(0)
            assert packed.reshape(-1)[index].tobytes() == value.tobytes()
    np.testing.assert_array_equal(dense.decode(packed, *shape), widen(weights))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_non_finite_weights_are_named(value: float, dtype: str) -> None:
    weights = np.ones((20, 50), dtype=np.float32)
    weights[18, 41] = value
    given_weights = {
        "f32": weights,
        "f16": weights.astype(np.float16),
        "bf16": (weights.view(np.uint32) >> 16).astype(np.uint16),
    }[dtype]
    for encode in (
        lambda: int4.encode(given_weights, 32, grid_values("uniform")),
        lambda: int8.encode(given_weights, 32),
        lambda: int8.encode_rows(given_weights, 32),
        lambda: dense.encode(given_weights),
    ):
        with pytest.raises(NonFiniteWeightError, match=f"row 18, column 41 is {value}"):
            encode()


def test_wrong_arguments() -> None:
    ones = np.ones((2, 2), dtype=np.float32)
    with pytest.raises(InvalidArgumentError, match="group_size is 48"):
        int8.encode(ones, 48)
    with pytest.raises(InvalidArgumentError, match="dtype float64"):
        int8.encode(ones.astype(np.float64), 32)
    with pytest.raises(InvalidArgumentError, match="shape"):
        int8.encode(np.ones((2, 0), dtype=np.float32), 32)
    with pytest.raises(InvalidArgumentError, match="grid is 'fancy'"):
        grid_values("fancy")
