"""Logits are equal bit for bit however they are computed: DESIGN.md section 1."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from builders import KV_DTYPES, TINY, core_model, ints, random_weights, run, step
from llama2q import _core
from reference_weights import Shape, Weights
from strategies import assert_same_bits

ISAS = _core.isas()
KINDS = ("int4", "int8", "f32", "bf16")
THREADS = (1, 2, 3, 7)
CHUNKS = (1, 7, 64)
LONG = Shape(dim=16, hidden_dim=24, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32)
"""Cheap at thousands of positions: one layer, two heads of 8."""


@cache
def weights_of(kind: str, shape: Shape = TINY) -> Weights:
    return random_weights(shape, kind)


@cache
def prompt(n: int, vocab_size: int = TINY.vocab_size, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, n).tolist()


@cache
def expected(kind: str, kv_dtype: str, n: int) -> np.ndarray:
    """Logits of the scalar kernel on one thread, the prompt whole."""
    return run(core_model(weights_of(kind), kv_dtype, n_threads=1, isa="scalar"), prompt(n))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_isas_and_threads(isa: str, kind: str, kv_dtype: str) -> None:
    for n_threads in THREADS:
        model = core_model(weights_of(kind), kv_dtype, n_threads=n_threads, isa=isa)
        assert model.isa == isa
        assert model.n_threads == n_threads
        assert_same_bits(run(model, prompt(70)), expected(kind, kv_dtype, 70))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_of_the_prompt(kind: str, kv_dtype: str, chunk: int) -> None:
    model = core_model(weights_of(kind), kv_dtype)
    assert_same_bits(run(model, prompt(150), chunk=chunk), expected(kind, kv_dtype, 150))


def test_longer_than_the_work_space() -> None:
    """More tokens than one pass over the layers takes."""
    shape, n = LONG, 1100
    ids = prompt(n, shape.vocab_size)
    model = core_model(weights_of("int8", shape), n_blocks=20)
    assert_same_bits(run(model, ids), run(model, ids, chunk=100))


# --- beside other sequences --------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_ragged_batch(kind: str, kv_dtype: str) -> None:
    """Three sequences in scattered blocks: prompts together, one ahead, then single tokens."""
    model = core_model(weights_of(kind), kv_dtype, n_blocks=9)
    ids = [prompt(75, seed=1), prompt(66, seed=2), prompt(130, seed=3)]
    tables = [[8, 1], [3, 5], [0, 7, 4]]
    alone = [run(model, tokens) for tokens in ids]
    fed = [0, 0, 0]
    found: list[list[np.ndarray]] = [[], [], []]
    plan = [(60, 10, 0), (0, 50, 100), (1, 1, 1), (10, 0, 20), (1, 4, 9), (1, 1, 0), (2, 0, 0)]
    for counts in plan:
        who = [i for i in range(3) if counts[i]]
        parts = [(ids[i][fed[i] : fed[i] + counts[i]], fed[i], tables[i]) for i in who]
        for i, rows in zip(who, step(model, parts), strict=True):
            found[i].append(rows)
            fed[i] += counts[i]
    assert fed == [75, 66, 130]
    for i in range(3):
        assert_same_bits(np.concatenate(found[i]), alone[i])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16, 17])
def test_batched_decode(n: int) -> None:
    """Single tokens of n sequences in one step."""
    model = core_model(weights_of("int4"), n_blocks=17)
    sequences = [prompt(9, seed=i) for i in range(n)]
    step(model, [(ids[:8], 0, [i]) for i, ids in enumerate(sequences)])
    together = step(model, [(ids[8:], 8, [i]) for i, ids in enumerate(sequences)])
    for ids, rows in zip(sequences, together, strict=True):
        assert_same_bits(rows, run(model, ids)[8:])


def test_rows_asked_for_do_not_matter() -> None:
    model = core_model(weights_of("int4"))
    ids, every = prompt(30), run(core_model(weights_of("int4")), prompt(30))
    for asked in ([29], [0], [3, 4, 17], list(range(30))):
        rows = model.step(
            ints(ids), ints(range(30)), ints([0] * 30), np.zeros((1, 1), np.int32), ints(asked)
        )
        assert_same_bits(rows, every[asked])


@pytest.mark.parametrize("kind", KINDS)
def test_ops_make_the_step(kind: str) -> None:
    """The five ops of a layer, called one by one, give what the step gives."""
    model, n = core_model(weights_of(kind)), 20
    ids, positions, owner = ints(prompt(n)), ints(range(n)), ints([0] * n)
    table = np.zeros((1, 1), np.int32)
    x = model.embed(ids)
    for layer in range(TINY.n_layers):
        q = model.qkv(layer, x, positions, owner, table)
        x = model.project(layer, model.attend(layer, q, positions, owner, table), x)
        x = model.down(layer, model.gate_up(layer, x), x)
    assert_same_bits(model.output(x), run(core_model(weights_of(kind)), prompt(n)))
    hidden = model.step(ids, positions, owner, table, positions, "hidden")
    assert_same_bits(model.output(x, "hidden"), hidden)


# --- the cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_rewind(kv_dtype: str) -> None:
    """Tokens written over after going back leave nothing behind."""
    model = core_model(weights_of("int8"), kv_dtype)
    first, other = prompt(100, seed=1), prompt(100, seed=2)
    run(model, first)
    again = run(model, other[40:], start=40)
    fresh = run(core_model(weights_of("int8"), kv_dtype), first[:40] + other[40:])
    assert_same_bits(again, fresh[40:])
    shorter = run(model, other[40:41], start=40)
    assert_same_bits(shorter, fresh[40:41])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_shared_prefix_and_fork(kv_dtype: str) -> None:
    """A full block read by two sequences, and a partial one copied."""
    model = core_model(weights_of("int8"), kv_dtype)
    stem, left, right = prompt(90, seed=1), prompt(20, seed=2), prompt(20, seed=3)
    run(model, stem, table=[5, 2])
    model.copy_blocks(ints([2]), ints([6]))
    rows = step(model, [(left, 90, [5, 2]), (right, 90, [5, 6])])
    alone = core_model(weights_of("int8"), kv_dtype)
    assert_same_bits(rows[0], run(alone, stem + left)[90:])
    assert_same_bits(rows[1], run(alone, stem + right)[90:])


# --- long -------------------------------------------------------------------------------------


@cache
def long_expected(kv_dtype: str) -> np.ndarray:
    model = core_model(weights_of("int8", LONG), kv_dtype, n_blocks=63, isa=ISAS[-1])
    return run(model, prompt(4003, LONG.vocab_size))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("position", [300, 1500, 4000])
def test_isas_at_long_positions(isa: str, kv_dtype: str, position: int) -> None:
    ids = prompt(4003, LONG.vocab_size)
    model = core_model(weights_of("int8", LONG), kv_dtype, n_blocks=63, isa=isa)
    run(model, ids[:position], chunk=512)
    tail = run(model, ids[position : position + 3], start=position)
    assert_same_bits(tail, long_expected(kv_dtype)[position : position + 3])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_at_long_positions(kv_dtype: str, chunk: int) -> None:
    model = core_model(weights_of("int8", LONG), kv_dtype, n_blocks=63)
    ids = prompt(4003, LONG.vocab_size)
    assert_same_bits(run(model, ids, chunk=chunk), long_expected(kv_dtype))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_threads_at_long_positions(kv_dtype: str) -> None:
    ids = prompt(4003, LONG.vocab_size)
    for n_threads in (1, 3, 7):
        model = core_model(weights_of("int8", LONG), kv_dtype, n_blocks=63, n_threads=n_threads)
        assert_same_bits(run(model, ids[:1600]), long_expected(kv_dtype)[:1600])


@pytest.mark.parametrize("kind", ["int4", "int8", "bf16"])
@pytest.mark.parametrize("hidden_dim", [11008, 28672])
def test_long_rows(kind: str, hidden_dim: int) -> None:
    """K of w2 in Llama 2 7B and 70B."""
    shape = Shape(dim=32, hidden_dim=hidden_dim, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=40)
    weights = random_weights(shape, kind, 64)
    ids = prompt(7, 40)
    scalar = run(core_model(weights, isa="scalar"), ids)
    for isa in ISAS[1:]:
        for n_threads in (1, 3):
            model = core_model(weights, isa=isa, n_threads=n_threads)
            assert_same_bits(run(model, ids), scalar)
            assert_same_bits(run(model, ids, chunk=1), scalar)


# --- sampled text -----------------------------------------------------------------------------


def sampled(model: _core.Model, n: int, isa: str, seed: int = 11) -> list[int]:
    """Draw n tokens at temperature 0.8 after BOS."""
    tokens = [1]
    table = list(range(-(-(n + 1) // 64)))
    for position in range(n):
        logits = step(model, [(tokens[-1:], position, table)])[0]
        token = _core.sample(
            np.ascontiguousarray(logits),
            np.array([0.8], np.float32), np.array([0.9], np.float32), ints([0]),
            np.zeros(1, np.float32), np.array([seed], np.uint64), ints([0]), ints([position]), isa,
        )  # fmt: skip
        tokens.append(int(token[0]))
    return tokens[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_text(kind: str) -> None:
    base = sampled(core_model(weights_of(kind), isa="scalar", n_threads=1), 200, "scalar")
    assert len(set(base)) > 20
    for isa in ISAS:
        for n_threads in THREADS:
            model = core_model(weights_of(kind), isa=isa, n_threads=n_threads)
            assert sampled(model, 200, isa) == base
    assert sampled(core_model(weights_of(kind)), 200, ISAS[-1], seed=12) != base
