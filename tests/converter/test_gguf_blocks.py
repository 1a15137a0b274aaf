"""Blocks of GGML's types: codes moved exactly, checked byte by byte in float64 and by gguf."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from gguf import quants
from hypothesis import given
from hypothesis import strategies as st

from converter.gguf_files import BLOCK_BYTES, GRIDS, Kind, random_blocks, random_k_blocks, values_of
from llama2q.converter.gguf_blocks import dequantize, move_int4, move_int8, require_dequantizer
from llama2q.converter.gguf_types import TYPES
from llama2q.errors import MissingPackageError, NonFiniteWeightError, QuantizationError
from llama2q.quant import grid_values, int4

KINDS = [Kind.Q4_0, Kind.IQ4_NL, Kind.Q8_0]
NIBBLES = [Kind.Q4_0, Kind.IQ4_NL]


@given(st.integers(1, 40), st.integers(1, 4), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_values(n_rows: int, n_blocks: int, kind: Kind, seed: int) -> None:
    blocks = random_blocks(np.random.default_rng(seed), n_rows, 32 * n_blocks, kind)
    expected = values_of(blocks, kind)
    assert np.array_equal(dequantize(blocks, TYPES[kind]), expected)
    assert np.array_equal(quants.dequantize(blocks, kind), expected)
    codes, scales = move_int8(blocks, TYPES[kind])
    assert codes.min() >= -127
    groups = codes.reshape(*scales.shape, 32) * scales.astype(np.float64)[:, :, None]
    assert np.array_equal(groups.reshape(expected.shape), expected)
    if kind in NIBBLES:
        grid = grid_values("uniform" if kind == Kind.Q4_0 else "nonuniform")
        assert np.array_equal(grid, GRIDS[kind])
        lines, banded = move_int4(blocks)
        found = int4.decode(lines, banded, n_rows, 32 * n_blocks, grid)
        assert np.array_equal(found, expected)
        tail = n_rows % 16
        if tail:
            assert not banded[-1, :, tail:].view(np.uint16).any()
            assert not lines.reshape(*lines.shape[:2], 16, 4)[-1, :, tail:].any()


def test_one_block_by_hand() -> None:
    """Element i in the low nibble of byte i, element 16 + i in its high one; then our lines."""
    scale = np.array([0.5], "<f2").tobytes()
    block = np.frombuffer(scale + bytes(i | (15 - i) << 4 for i in range(16)), np.uint8)[None]
    values = dequantize(block, TYPES[Kind.Q4_0])[0]
    assert np.array_equal(values[:16], (np.arange(16) - 8) / 2)
    assert np.array_equal(values[16:], (7 - np.arange(16)) / 2)
    lines, scales = move_int4(block)
    assert lines.shape == (1, 4, 64)
    assert lines[0, :, :4].tobytes().hex() == "40516273c8d9eafbbfae9d8c37261504"
    assert scales[0, 0, 0] == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_scales_are_kept(kind: Kind) -> None:
    """Negative, subnormal, -0: our format holds any finite scale."""
    scales = np.array([0.0, -0.0, 2.0**-24, -(2.0**-24), -1.5, 65504.0], np.float16)
    blocks = random_blocks(np.random.default_rng(1), 1, 32 * scales.size, kind)
    view = blocks.reshape(1, -1, BLOCK_BYTES[kind])
    view[0, :, :2] = scales.view(np.uint8).reshape(-1, 2)
    bits = scales.view(np.uint16)
    assert np.array_equal(move_int8(blocks, TYPES[kind])[1][0].view(np.uint16), bits)
    if kind in NIBBLES:
        assert np.array_equal(move_int4(blocks)[1][0, :, 0].view(np.uint16), bits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite(kind: Kind, scale: float) -> None:
    blocks = random_blocks(np.random.default_rng(1), 3, 96, kind)
    view = blocks.reshape(3, 3, BLOCK_BYTES[kind])
    view[1, 2, :2] = np.array([scale], np.float16).view(np.uint8)
    match = "row 1, block 2 of 32 columns has the scale"
    with pytest.raises(NonFiniteWeightError, match=match):
        move_int8(blocks, TYPES[kind])
    with pytest.raises(NonFiniteWeightError, match=match):
        dequantize(blocks, TYPES[kind])
    if kind in NIBBLES:
        with pytest.raises(NonFiniteWeightError, match=match):
            move_int4(blocks)


def test_the_code_that_no_file_holds() -> None:
    blocks = random_blocks(np.random.default_rng(1), 3, 64, Kind.Q8_0)
    blocks.reshape(3, 2, 34)[2, 1, 2 + 5] = 128
    with pytest.raises(QuantizationError, match="row 2, column 37 has the code -128"):
        move_int8(blocks, TYPES[Kind.Q8_0])
    assert np.array_equal(dequantize(blocks, TYPES[Kind.Q8_0]), values_of(blocks, Kind.Q8_0))


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K])
def test_other_types_are_read_by_the_package(kind: Kind) -> None:
    blocks = random_k_blocks(np.random.default_rng(1), 20, 512, kind)
    found = dequantize(blocks, TYPES[kind])
    assert np.array_equal(found, quants.dequantize(blocks, kind))
    assert found.shape == (20, 512)


def test_every_type_is_read() -> None:
    for kind in TYPES.values():
        require_dequantizer(kind)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    for kind in TYPES.values():
        if kind.kept:
            require_dequantizer(kind)
        else:
            with pytest.raises(MissingPackageError, match=r"pip install 'llama2q\[gguf\]'"):
                require_dequantizer(kind)
