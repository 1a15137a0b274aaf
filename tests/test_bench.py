"""The bench: what it measures and refuses, never how fast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2q.bench import Bench, BenchSettings, bench
from llama2q.engine import Engine
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.kv_sequence import Sequence
from llama2q.ragged import Span

QUICK = BenchSettings(
    prefill=(5, 70), decode=3, depth=(0, 100), step=(1, 4), batch=(1, 3), limit_seconds=0.01
)


@pytest.fixture(scope="module")
def model(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini()


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2q.bench._STEP_SECONDS", 0.0)


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
def test_rows(model: Path, kv_dtype: Any) -> None:
    seen = []
    report = bench(model, replace(QUICK, kv_dtype=kv_dtype), lambda *now: seen.append(now))
    found = [(r.kind, r.tokens, r.depth, r.sequences) for r in report.rows]
    assert found == [
        ("prefill", 5, 0, 1),
        ("prefill", 70, 0, 1),
        ("decode", 3, 0, 1),
        ("step", 1, 0, 1),
        ("step", 4, 0, 1),
        ("decode", 3, 100, 1),
        ("step", 1, 100, 1),
        ("step", 4, 100, 1),
        ("batch", 3, 0, 1),
        ("batch", 3, 0, 3),
    ]
    assert [now[0] for now in seen] == list(range(len(found)))
    for row in report.rows:
        per_call = {"decode": 1, "batch": row.sequences}.get(row.kind, row.tokens)
        assert row.tokens_per_second == pytest.approx(per_call / row.seconds)
        assert row.limit in ("bandwidth", "dots")
        assert row.share_of_limit is not None
        assert row.share_of_limit > 0
    assert report.kv_dtype == kv_dtype
    assert report.n_ctx == 104
    assert set(report.limits) == {"read_bytes_per_second", "int8_ops_per_second"}
    assert report.peak_rss_bytes > 0


def test_unquantized_models_are_not_bound_by_dots(convert_mini: Callable[..., Path]) -> None:
    settings = BenchSettings(prefill=(200,), decode=1, limit_seconds=0.01)
    report = bench(convert_mini(quant="none"), settings)
    assert {row.limit for row in report.rows} == {"bandwidth"}


def test_without_limits(model: Path) -> None:
    report = bench(model, BenchSettings(prefill=(4,), decode=0, limit_seconds=0, repeat=3))
    (row,) = report.rows
    assert report.limits == {}
    assert (row.limit, row.share_of_limit) == (None, None)
    assert len(row.samples) == 3
    assert row.tokens_per_second == pytest.approx(sorted(row.samples)[1])


def test_bytes_and_operations(model: Path) -> None:
    """One call reads every matrix but the embedding table once: its bytes are what the file has."""
    with Engine(model, n_ctx=64, kv_dtype="f16", max_sequences=1) as engine:
        measured = Bench(engine, {"read_bytes_per_second": 1.0, "int8_ops_per_second": 1e30})
        config = engine.config
        file_bytes = sum(
            info.nbytes
            for name, info in engine.file.tensors.items()
            if name.endswith((".codes", ".scales")) and not name.startswith("tok_embeddings")
        )
        kv_bytes = 4 * config.n_layers * config.kv_dim
        row = measured.row("step", 2, 10)
        assert row.share_of_limit == pytest.approx((file_bytes + 12 * kv_bytes) / row.seconds)
        measured = Bench(engine, {"read_bytes_per_second": 1e30, "int8_ops_per_second": 1.0})
        layer = 2 * config.dim * (config.dim + config.kv_dim) + 3 * config.dim * config.hidden_dim
        head = config.dim * config.vocab_size
        row = measured.row("prefill", 3)
        expected = 2 * (3 * config.n_layers * layer + head)
        assert row.share_of_limit == pytest.approx(expected / row.seconds)


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
def test_the_cache_at_a_depth_is_written(model: Path, kv_dtype: Any) -> None:
    """A cache never written would be zero pages, which take no memory to read."""
    with (
        Engine(model, n_ctx=256, kv_dtype=kv_dtype, max_sequences=2) as engine,
        ExitStack() as stack,
    ):
        sequence = Bench(engine, {})._sequence(stack, 200, 1)
        assert sequence.n_tokens == 200
        blank = Sequence(engine.pool, 201)
        blank.ensure(201)
        blank.advance(200)
        for block in sequence.blocks[:4]:
            # Attention over one written block instead of a blank one shows in the logits.
            before = engine.forward([Span(blank, [7])])
            blank.rewind(200)
            engine.copy_block(block, blank.blocks[sequence.blocks.index(block)])
            after = engine.forward([Span(blank, [7])])
            blank.rewind(200)
            assert (before != after).any()
        np.testing.assert_array_equal(after, engine.forward([Span(sequence, [7])]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefill": (0,)},
        {"prefill": (-5, 5)},
        {"prefill": (1.5,)},
        {"decode": -1},
        {"depth": (-1,)},
        {"step": (0,)},
        {"batch": (0,)},
        {"repeat": 0},
        {"limit_seconds": -1.0},
        {"limit_seconds": 61.0},
        {"limit_seconds": float("nan")},
        {"n_threads": 0},
        {"kv_dtype": "f8"},
    ],
)
def test_wrong_settings(model: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        bench(model, BenchSettings(**{"limit_seconds": 0.0, **wrong}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefill": (100_000,)}, "a prompt of 100000 tokens"),
        ({"depth": (0, 100_000)}, "depth 100000 and 32 decoded tokens are 100032 tokens"),
        ({"decode": 0, "depth": (100_000,), "step": (4,)}, "a step of 4 tokens"),
    ],
)
def test_context_too_long(model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ContextLengthError, match=message):
        bench(model, BenchSettings(**settings))
