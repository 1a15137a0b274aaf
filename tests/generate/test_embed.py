"""Embeddings: against the hidden states of the float64 reference, and what they promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from llama2q import Llama
from llama2q.errors import ClosedError, ContextLengthError, InvalidArgumentError
from llama2q.kv_sequence import Sequence
from llama2q.ragged import Span
from reference import Float64Ops, Forward
from reference_weights import load_meta
from tolerances import FACTOR, RUNS, RandomRounding

TEXTS = ["Once upon a time", "The king had three sons.", "", "She said that " * 90]


def rows_of(llm: Llama, ids: list[int]) -> np.ndarray:
    """Return the hidden states of all tokens, float32 (n_tokens, dim), in one step."""
    sequence = Sequence(llm.engine.pool, len(ids))
    try:
        return llm.engine.forward_hidden([Span(sequence, ids, len(ids))])
    finally:
        sequence.release()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_float64(mini_checkpoint: Path, convert_mini: Callable[..., Path], pooling: Any) -> None:
    """The unquantized model against the oracle, within the measured spread of its rounding."""
    weights = load_meta(mini_checkpoint)

    def pooled(rows: np.ndarray) -> np.ndarray:
        return rows.mean(axis=0) if pooling == "mean" else rows[-1]

    with llama2q.load(convert_mini("none"), n_ctx=256, kv_dtype="f32") as llm:
        ids = np.array(llm.tokenizer.encode(TEXTS[1]))
        vector = llm.embed(TEXTS[1], pooling, normalize=False)
        unit = llm.embed(TEXTS[1], pooling)
    exact = pooled(Forward(weights).hidden(ids))
    moved = (
        Forward(weights, Float64Ops(noise=RandomRounding(np.random.default_rng(run)))).hidden(ids)
        for run in range(RUNS)
    )
    tolerance = FACTOR * max(np.abs(pooled(rows) - exact).max() for rows in moved)
    assert vector.shape == (weights.shape.dim,)
    assert np.abs(vector - exact).max() <= tolerance
    length = np.linalg.norm(vector.astype(np.float64))
    np.testing.assert_allclose(unit, vector / length, rtol=2**-23)
    assert np.linalg.norm(unit.astype(np.float64)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("text", TEXTS)
def test_pooling(mini: Llama, text: str) -> None:
    rows = rows_of(mini, mini.tokenizer.encode(text)).astype(np.float64)
    total = np.zeros(rows.shape[1])
    for row in rows:
        total += row
    mean = (total / len(rows)).astype(np.float32)
    np.testing.assert_array_equal(mini.embed(text, normalize=False), mean)
    np.testing.assert_array_equal(
        mini.embed(text, "last", normalize=False), rows[-1].astype(np.float32)
    )


def test_a_list_gives_rows(mini: Llama) -> None:
    rows = mini.embed(TEXTS)
    assert rows.dtype == np.float32
    assert rows.shape == (len(TEXTS), mini.config.dim)
    for row, text in zip(rows, TEXTS, strict=True):
        np.testing.assert_array_equal(mini.embed(text), row)
        np.testing.assert_array_equal(mini.embed([mini.tokenizer.encode(text)])[0], row)
    assert mini.embed([]).shape == (0, mini.config.dim)


def test_threads_make_no_difference(mini: Llama, mini_file: Path) -> None:
    for n_threads in (1, 3):
        with llama2q.load(mini_file, n_threads=n_threads) as llm:
            np.testing.assert_array_equal(llm.embed(TEXTS), mini.embed(TEXTS))


def test_blocks_are_given_back(mini_file: Path) -> None:
    with llama2q.load(mini_file, n_ctx=64) as llm:
        pool = llm.engine.pool
        llm.embed(TEXTS[:3])
        with pytest.raises(ContextLengthError, match="the context holds 64"):
            llm.embed(TEXTS)
        assert pool.n_available == pool.n_free == pool.n_blocks
        n_ctx = llm.embed([1] * 64)
        assert np.isfinite(n_ctx).all()
    with pytest.raises(ClosedError):
        llm.embed("The king")


@pytest.mark.parametrize(
    ("texts", "pooling", "words"),
    [
        ("The king", "cls", "the same for every text"),
        ("The king", "max", "expected one of mean, last"),
        ([], "max", "expected one of mean, last"),
        ([[1, 2], []], "mean", "empty"),
        ([1, -1], "mean", "outside the vocabulary"),
        (["The king", 5], "mean", "a prompt of the list"),
        (5, "mean", "expected a string"),
    ],
)
def test_refused(mini: Llama, texts: Any, pooling: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        mini.embed(texts, pooling)
