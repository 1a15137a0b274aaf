"""The sampler: selection, ties and the counter-based draw.

Where probabilities are equal they are exact (exp(0) = 1), so a token is checked against the
NumPy-free model of the draw itself; elsewhere frequencies are held to a bound of the binomial
distribution.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2q import _core
from llama2q.errors import InvalidArgumentError, NonFiniteError
from philox import philox4x32, uniform
from strategies import SEEDS, assert_same_bits, floats

ISAS = _core.isas()
DRAWS = 4000
SIGMAS = 6.0
"""A frequency this many standard deviations off has probability below 2e-9."""


def sample(
    logits: Any,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: Any = 0,
    sequence_index: Any = 0,
    position: Any = 0,
    isa: str | None = None,
) -> np.ndarray:
    """Call the kernel with scalars spread over the rows."""
    logits = np.ascontiguousarray(np.atleast_2d(np.asarray(logits, np.float32)))
    n = max(len(logits), np.size(seed), np.size(position), np.size(sequence_index))
    rows = np.ascontiguousarray(np.broadcast_to(logits, (n, logits.shape[1])))

    def spread(value: Any, dtype: type) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype), n))

    return _core.sample(
        rows,
        spread(temperature, np.float32),
        spread(top_p, np.float32),
        spread(top_k, np.int32),
        spread(min_p, np.float32),
        spread(seed, np.uint64),
        spread(sequence_index, np.int32),
        spread(position, np.int32),
        isa,
    )


def frequencies(logits: Any, **how: Any) -> np.ndarray:
    seeds = np.arange(DRAWS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    drawn = sample(logits, seed=seeds, **how)
    return np.bincount(drawn, minlength=np.size(logits)) / DRAWS


def assert_distribution(found: np.ndarray, expected: np.ndarray) -> None:
    """Hold each frequency to SIGMAS standard deviations of DRAWS binomial draws."""
    expected = np.asarray(expected)
    limit = SIGMAS * np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(found - expected) <= limit + 1e-12).all(), (found, expected)


# --- random numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_model_gives_the_published_vectors(counter: Any, key: Any, expected: Any) -> None:
    """Random123's kat_vectors for philox4x32 with 10 rounds."""
    assert philox4x32(counter, key) == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab", [2, 3, 100, 4096, 2**18])
def test_draw_is_philox(isa: str, vocab: int) -> None:
    """Equal logits: the token is the first whose cumulative probability exceeds the draw."""
    cases = [(seed, index, position) for seed in (0, 1, 42, 2**32 - 1, 2**32, 2**64 - 1)
             for index in (0, 1, 77) for position in (0, 1, 1000, 2**31 - 1)]  # fmt: skip
    cases = cases[:12] if vocab == 2**18 else cases
    seeds, indices, positions = zip(*cases, strict=True)
    drawn = sample(
        np.zeros(vocab),
        seed=np.array(seeds, np.uint64),
        sequence_index=indices,
        position=positions,
        isa=isa,
    )
    assert drawn.tolist() == [math.floor(uniform(*case) * vocab) for case in cases]


def test_one_draw_per_position() -> None:
    """Rows of one call are independent of each other and of their order."""
    logits = floats(1, (50, 300), 0, 3.0)
    positions = np.arange(50)
    together = sample(logits, seed=7, position=positions)
    alone = [int(sample(logits[i], seed=7, position=i)[0]) for i in range(50)]
    assert together.tolist() == alone
    backwards = sample(logits[::-1], seed=7, position=positions[::-1])
    assert backwards[::-1].tolist() == alone


# --- argmax -----------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@given(seed=SEEDS, vocab=st.integers(1, 200), levels=st.integers(1, 5))
def test_temperature_zero_is_argmax_lowest_id_first(
    isa: str, seed: int, vocab: int, levels: int
) -> None:
    logits = np.random.default_rng(seed).integers(-levels, levels + 1, (4, vocab))
    drawn = sample(logits, temperature=0, top_p=0.5, top_k=2, seed=seed, isa=isa)
    assert drawn.tolist() == np.argmax(logits, axis=1).tolist()


@pytest.mark.parametrize("place", [0, 5, 15, 16, 40])
def test_argmax_of_infinitely_unlikely_others(place: int) -> None:
    logits = np.full(41, -np.inf)
    logits[place] = -3
    assert sample(logits, temperature=0)[0] == place
    assert sample(logits, temperature=0.8)[0] == place


def test_minus_zero_ties_with_zero() -> None:
    assert sample([-1, -0.0, 0.0], temperature=0)[0] == 1


# --- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 2.0])
def test_softmax_frequencies(temperature: float) -> None:
    logits = np.array([1.0, 0.5, -0.25, 2.0, 0.0])
    weights = np.exp(logits / temperature)
    assert_distribution(frequencies(logits, temperature=temperature), weights / weights.sum())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("top_k", "kept"), [(1, [3]), (2, [0, 3]), (3, [0, 1, 3]), (99, range(5))])
def test_top_k(isa: str, top_k: int, kept: Any) -> None:
    logits = np.array([1.0, 0.5, -0.25, 2.0, 0.0])
    weights = np.where(np.isin(np.arange(5), list(kept)), np.exp(logits), 0)
    assert_distribution(frequencies(logits, top_k=top_k, isa=isa), weights / weights.sum())


def test_top_k_keeps_the_lower_ids_of_a_tie() -> None:
    found = frequencies(np.zeros(10), top_k=4)
    assert_distribution(found, np.array([0.25] * 4 + [0.0] * 6))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("top_p", "n_kept"),
    [(1e-30, 1), (0.2, 1), (0.25, 2), (0.49, 2), (0.5, 3), (0.75, 4), (0.999, 4), (1.0, 4)],
)
def test_top_p_keeps_while_the_sum_before_is_not_above_p(
    isa: str, top_p: float, n_kept: int
) -> None:
    """Four tokens of exactly 1/4: Meta drops those whose preceding sum is greater than p."""
    found = frequencies(np.zeros(4), top_p=top_p, isa=isa)
    assert_distribution(found, np.array([1 / n_kept] * n_kept + [0.0] * (4 - n_kept)))


def test_top_p_takes_the_most_likely_first() -> None:
    logits = np.log([0.1, 0.6, 0.05, 0.25])
    found = frequencies(logits, top_p=0.8)
    assert_distribution(found, np.array([0, 0.6, 0, 0.25]) / 0.85)
    assert_distribution(frequencies(logits, top_p=0.5), np.array([0, 1.0, 0, 0]))


@pytest.mark.parametrize(("min_p", "kept"), [(0.0, 4), (0.15, 3), (0.3, 2), (0.9, 1), (1.0, 1)])
def test_min_p_is_relative_to_the_most_likely(min_p: float, kept: int) -> None:
    weights = np.array([1.0, 0.5, 0.25, 0.125])
    expected = np.where(np.arange(4) < kept, weights, 0)
    assert_distribution(frequencies(np.log(weights), min_p=min_p), expected / expected.sum())


def test_draw_walks_in_descending_order() -> None:
    """The kept tokens are laid on [0, 1) from the most likely down, ties by id."""
    logits = np.log([0.125, 0.5, 0.25, 0.125])
    for seed in range(300):
        u = uniform(seed, 3, 9)
        edges = [(0.5, 1), (0.75, 2), (0.875, 0), (1.0, 3)]
        if min(abs(u - edge) for edge, _ in edges) < 1e-6:
            continue
        expected = next(token for edge, token in edges if u < edge)
        assert sample(logits, seed=seed, sequence_index=3, position=9)[0] == expected


@pytest.mark.parametrize("isa", ISAS[1:])
@given(seed=SEEDS, vocab=st.integers(1, 600),
       temperature=st.sampled_from([0.1, 0.6, 0.8, 1.0, 5.0]),
       top_p=st.sampled_from([1e-9, 0.5, 0.9, 0.95, 1.0]),
       top_k=st.sampled_from([0, 1, 7, 40, 1000]),
       min_p=st.sampled_from([0.0, 0.05, 0.5]), spice=st.sampled_from([0, 3]))  # fmt: skip
def test_isas_agree(
    isa: str, seed: int, vocab: int, temperature: float, top_p: float, top_k: int, min_p: float,
    spice: int,
) -> None:  # fmt: skip
    logits = np.minimum(floats(seed, (8, vocab), spice, 4.0), 100)
    how: dict[str, Any] = {
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
        "seed": seed, "position": np.arange(8),
    }  # fmt: skip
    assert_same_bits(sample(logits, isa=isa, **how), sample(logits, isa="scalar", **how))


# --- checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_logits_raise(temperature: float, value: float) -> None:
    with pytest.raises(NonFiniteError):
        sample([0.0, value, 1.0], temperature=temperature)


@pytest.mark.parametrize(
    "how",
    [{"temperature": -0.1}, {"temperature": np.nan}, {"temperature": np.inf},
     {"top_p": 0.0}, {"top_p": -0.1}, {"top_p": 1.5}, {"top_p": np.nan},
     {"top_k": -1}, {"min_p": -0.1}, {"min_p": 1.1}],
)  # fmt: skip
def test_parameters_are_checked(how: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError):
        sample([0.0, 1.0], **how)  # type: ignore[arg-type]


def test_lengths_are_checked() -> None:
    one = np.ones(1, np.float32)
    with pytest.raises(InvalidArgumentError):
        _core.sample(
            np.zeros((2, 5), np.float32), one, one, np.zeros(1, np.int32), one,
            np.zeros(1, np.uint64), np.zeros(1, np.int32), np.zeros(1, np.int32),
        )  # fmt: skip
