"""Fused attention: the float64 bound, and the contract's order to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import contract
from builders import KV_DTYPES
from llama2q import _core
from llama2q.errors import InvalidArgumentError, NonFiniteError
from reference import cache_rounding
from strategies import SEEDS, assert_same_bits, assert_within, floats
from tolerances import of_attention

ISAS = _core.isas()
LENGTHS = (1, 63, 64, 65, 255, 256, 257, 1000)
HEADS = ((4, 2, 8), (2, 1, 48), (4, 4, 64), (8, 1, 128))


def inputs(
    seed: int, n_keys: int, n: int, heads: tuple[int, int, int], scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v and ascending positions, the last key's among them."""
    n_heads, n_kv_heads, head_dim = heads
    rng = np.random.default_rng(seed)
    inner = rng.choice(n_keys, min(n, n_keys), replace=False)
    positions = np.unique(np.append(inner, n_keys - 1)).astype(np.int32)
    q = floats(seed, (len(positions), n_heads, head_dim), 0, scale)
    k = floats(seed + 1, (n_keys, n_kv_heads, head_dim), 0, scale)
    v = floats(seed + 2, (n_keys, n_kv_heads, head_dim), 3)
    return q, k, np.clip(v, -1000, 1000), positions


def flat(y: np.ndarray) -> np.ndarray:
    return y.reshape(len(y), -1)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("n_keys", LENGTHS)
@pytest.mark.parametrize("heads", HEADS)
def test_float64(kv_dtype: str, n_keys: int, heads: tuple[int, int, int]) -> None:
    q, k, v, positions = inputs(n_keys, n_keys, 5, heads)
    exact, limit = of_attention(
        q, cache_rounding(k, kv_dtype), cache_rounding(v, kv_dtype), positions
    )
    assert_within(flat(_core.attention(q, k, v, positions, kv_dtype)), exact, limit)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize(
    ("n_keys", "heads"),
    [(1, (4, 2, 8)), (65, (2, 1, 48)), (257, (6, 2, 64)), (600, (2, 2, 8)), (1000, (4, 1, 8))],
)
def test_contract(isa: str, kv_dtype: str, n_keys: int, heads: tuple[int, int, int]) -> None:
    q, k, v, positions = inputs(n_keys, n_keys, 2, heads)
    expected = contract.attention(
        q, cache_rounding(k, kv_dtype), cache_rounding(v, kv_dtype), positions
    )
    found = _core.attention(q, k, v, positions, kv_dtype, isa)
    assert_same_bits(flat(found), expected)


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@settings(max_examples=25)
@given(seed=SEEDS, n_keys=st.integers(1, 700), n=st.integers(1, 9),
       heads=st.sampled_from([*HEADS, (3, 1, 2), (4, 2, 34)]),
       scale=st.sampled_from([1e-30, 0.1, 1.0, 5.0]))  # fmt: skip
def test_isas_agree(
    isa: str, kv_dtype: str, seed: int, n_keys: int, n: int, heads: tuple[int, int, int],
    scale: float,
) -> None:  # fmt: skip
    q, k, v, positions = inputs(seed, n_keys, n, heads, scale)
    found = _core.attention(q, k, v, positions, kv_dtype, isa)
    assert_same_bits(found, _core.attention(q, k, v, positions, kv_dtype, "scalar"))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_threads_agree(kv_dtype: str) -> None:
    q, k, v, positions = inputs(1, 300, 40, (6, 2, 64))
    one = _core.attention(q, k, v, positions, kv_dtype, None, 1)
    for n_threads in (2, 3, 7):
        assert_same_bits(_core.attention(q, k, v, positions, kv_dtype, None, n_threads), one)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("heads", [(2, 2, 64), (3, 1, 16), (8, 1, 34), (30, 1, 8)])
@pytest.mark.parametrize(("first", "n"), [(0, 30), (50, 27), (250, 9)])
def test_neighbours_in_a_tile_do_not_matter(
    isa: str, kv_dtype: str, heads: tuple[int, int, int], first: int, n: int
) -> None:
    """Consecutive tokens over the ends of tiles, blocks and chunks give what each gives alone."""
    _, k, v, _ = inputs(first, first + n, 1, heads)
    q = floats(first + 9, (n, heads[0], heads[2]), 0)
    positions = np.arange(first, first + n, dtype=np.int32)
    together = _core.attention(q, k, v, positions, kv_dtype, isa)
    for t in range(n):
        alone = _core.attention(q[t : t + 1], k, v, positions[t : t + 1], kv_dtype, isa)
        assert_same_bits(together[t : t + 1], alone)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("heads", [(8, 1, 16), (4, 4, 8)])
def test_threads_share_the_keys_of_a_token(
    isa: str, kv_dtype: str, heads: tuple[int, int, int]
) -> None:
    """With few heads the chunks of keys are dealt out, and folded in order."""
    q, k, v, _ = inputs(9, 1500, 2, heads)
    positions = np.array([1100, 1499], np.int32)
    one = _core.attention(q[:2], k, v, positions, kv_dtype, isa, 1)
    for n_threads in (2, 5, 16):
        assert_same_bits(_core.attention(q[:2], k, v, positions, kv_dtype, isa, n_threads), one)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("position", [0, 1, 62, 63, 64, 254, 255, 256])
def test_later_keys_are_never_read(kv_dtype: str, position: int) -> None:
    """A query inside the sequence gives what it gave before later keys came."""
    q, k, v, _ = inputs(2, 300, 1, (4, 2, 64))
    here = np.array([position], np.int32)
    end = position + 1
    k[end:], v[end:] = 60000, -60000
    long = _core.attention(q[:1], k, v, here, kv_dtype)
    short = _core.attention(q[:1], k[:end].copy(), v[:end].copy(), here, kv_dtype)
    assert_same_bits(long, short)


def test_one_key_gives_its_value() -> None:
    q, k, v, positions = inputs(3, 1, 1, (4, 2, 8))
    v = np.abs(v)
    y = _core.attention(q, k, v, positions).reshape(4, 8)
    assert_same_bits(y, np.repeat(v[0], 2, axis=0))


def test_large_scores_do_not_overflow() -> None:
    q, k, v, positions = inputs(4, 130, 3, (2, 1, 64), 1e6)
    exact = contract.attention(q, cache_rounding(k, "f32"), cache_rounding(v, "f32"), positions)
    assert np.isfinite(exact).all()
    assert_same_bits(flat(_core.attention(q, k, v, positions)), exact)


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_overflow_of_an_f16_cache_raises(value: float) -> None:
    q, k, v, positions = inputs(5, 3, 1, (2, 1, 8))
    v[2, 0, 5] = value
    with pytest.raises(NonFiniteError):
        _core.attention(q, k, v, positions, "f16")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_keys_raise(kv_dtype: str, value: float) -> None:
    q, k, v, positions = inputs(6, 70, 1, (2, 1, 8))
    k[66, 0, 1] = value
    with pytest.raises(NonFiniteError):
        _core.attention(q, k, v, positions, kv_dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_int8_cache_of_tiny_values(isa: str) -> None:
    """Scales below 2^-14 are rounded up, zero rows have scale 0, neither loses its sign."""
    q, k, v, positions = inputs(7, 90, 3, (2, 1, 8))
    v *= np.float32(2.0**-13) / np.abs(v).max()
    v[::7] = 0
    v[::11] *= np.float32(2.0**-130)
    k[::5] = 0
    expected = contract.attention(
        q, cache_rounding(k, "int8"), cache_rounding(v, "int8"), positions
    )
    assert_same_bits(flat(_core.attention(q, k, v, positions, "int8", isa)), expected)


def test_arguments_are_checked() -> None:
    q, k, v, positions = inputs(8, 10, 2, (4, 2, 8))
    with pytest.raises(InvalidArgumentError):
        _core.attention(q, k[:, :, :4].copy(), v, positions)
    with pytest.raises(InvalidArgumentError):
        _core.attention(q, k, v[:5].copy(), positions)
    with pytest.raises(InvalidArgumentError):
        _core.attention(q, k, v, positions + np.int32(10))
    with pytest.raises(InvalidArgumentError):
        _core.attention(q, k, v, positions, "f64")  # type: ignore[arg-type]
