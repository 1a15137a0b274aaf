"""The references themselves: against published output, exact arithmetic, and each other."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

import contract
from builders import KV_DTYPES, TINY, random_weights
from reference import Forward, cache_rounding, inv_freq, scale_to_f16
from reference_weights import (
    band_columns,
    band_int4,
    band_int8,
    load_meta,
    unband_columns,
    unband_int4,
    unband_int8,
)
from tolerances import end_to_end

PUBLISHED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    "do.\"\nLily didn't want to help her mom, so she"
)
"""stories260K at temperature 0, as karpathy/llama2.c's test_all.py expects it of run.c and of
PyTorch."""


def test_greedy_text_as_published(shared_dir: Path) -> None:
    folder = shared_dir / "checkpoints" / "stories260K"
    ids = Forward(load_meta(folder)).greedy([1], 200)
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert tokenizer.decode(ids) == PUBLISHED


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("kind", ["f32", "int4"])
def test_incremental_equals_whole(kind: str, kv_dtype: str) -> None:
    """Equal up to float64: at most 1e-9 of logits of order 1, a millionth of a float32 rounding.

    int8 activations may fall to another side of a tie by that; none does here.
    """
    weights = random_weights(TINY, kind)
    ids = np.random.default_rng(0).integers(0, TINY.vocab_size, 40)
    whole = Forward(weights, kv_dtype=kv_dtype).step(ids)
    forward = Forward(weights, kv_dtype=kv_dtype)
    parts = [forward.step(ids[begin : begin + 3]) for begin in range(0, 40, 3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["f32", "int8", "int4"])
def test_contract_lies_within_the_tolerance(kind: str) -> None:
    """The float32 contract and the float64 oracle describe one model."""
    weights = random_weights(TINY, kind)
    ids = np.random.default_rng(1).integers(0, TINY.vocab_size, 12)
    exact, tolerance = end_to_end(weights, ids)
    found = Forward(weights, contract.ContractOps()).step(ids)
    assert 0 < np.abs(found - exact).max() <= tolerance


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(a=FLOATS, b=FLOATS, c=FLOATS)
@example(a=1 + 2**-12, b=1 + 2**-12, c=2.0**-60)
@example(a=1 + 2**-23, b=1 - 2**-23, c=-1.0)
@example(a=2.0**-75, b=2.0**-75, c=0.0)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = contract.fma(np.float32(a), np.float32(b), np.float32(c)).reshape(())[()]
    if not np.isfinite(found):
        assert abs(exact) >= Fraction(2**128 - 2**103)
        return
    error = abs(Fraction(float(found)) - exact)
    for end in (np.float32(-np.inf), np.float32(np.inf)):
        neighbour = np.nextafter(found, end)
        if not np.isfinite(neighbour):
            continue
        other = abs(Fraction(float(neighbour)) - exact)
        assert error <= other
        if error == other:
            assert int(found.view(np.uint32)) % 2 == 0


def test_int8_cache_rounding() -> None:
    x = np.array([[[127.0, -63.5, 1.5, 2.5]], [[0, 0, 0, 0]]], np.float32)
    cached = cache_rounding(x, "int8")
    assert cached.scales is not None
    assert cached.scales.tolist() == [[1.0], [0.0]]
    assert cached.values[:, 0].tolist() == [[127, -64, 2, 2], [0, 0, 0, 0]]


def test_small_scales_are_rounded_up() -> None:
    step = 2.0**-24
    scales = np.array([1.25 * step, -1.25 * step, 3 * step, 0.0, 2.0**-14], np.float32)
    expected = np.array([2 * step, -2 * step, 3 * step, 0.0, 2.0**-14])
    assert (scale_to_f16(scales) == expected).all()


def test_inv_freq_is_close_to_pow() -> None:
    expected = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(inv_freq(64, 10000.0), expected, rtol=4e-16)


def test_band_layout_round_trip() -> None:
    """One element at a place that DESIGN.md section 4 gives by formula, and back again."""
    codes = np.random.default_rng(0).integers(0, 16, (20, 40)).astype(np.uint8)
    packed = band_int4(codes, 32)
    assert packed.shape == (2, 8, 64)
    b, j, r, i = 1, 3, 2, 1
    assert packed[b, j, 4 * r + i] == codes[18, 8 * j + i] | codes[18, 8 * j + 4 + i] << 4
    assert (unband_int4(packed)[:20, :40] == codes).all()
    signed = codes.astype(np.int8) - 8
    assert band_int8(signed, 32)[b, j, 4 * r + i] == signed[18, 4 * j + i]
    assert (unband_int8(band_int8(signed, 32))[:20, :40] == signed).all()
    assert band_columns(signed)[b, 5, r] == signed[18, 5]
    assert (unband_columns(band_columns(signed))[:20] == signed).all()
