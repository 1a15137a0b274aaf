"""Steps from several Python threads, on one model and on several: the same bits as one by one.

The thread sanitizer runs this file too (`tools/test.py --all`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from builders import KV_DTYPES, TINY, core_model, ints, random_weights
from llama2q import _core, kernels
from llama2q.errors import CancelledError
from strategies import assert_same_bits

N_CALLERS = 4
N_THREADS = 4
N_TOKENS = 70


def step_sequence(model: _core.Model, sequence: int, rounds: int = 3) -> list[np.ndarray]:
    """Run a prompt and decode steps in blocks of the sequence's own."""
    table = np.array([[2 * sequence, 2 * sequence + 1]], np.int32)
    results = []
    position = 0
    for n in (N_TOKENS, *[1] * rounds):
        ids = (np.arange(n, dtype=np.int32) * 7 + sequence + position) % TINY.vocab_size
        positions = np.arange(position, position + n, dtype=np.int32)
        owner = np.zeros(n, np.int32)
        results.append(model.step(ids.astype(np.int32), positions, owner, table, ints([n - 1])))
        position += n
    return results


def at_once(work: Callable[[int], list[np.ndarray]]) -> list[list[np.ndarray]]:
    with ThreadPoolExecutor(N_CALLERS) as callers:
        return list(callers.map(work, range(N_CALLERS)))


def check(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> None:
    for mine, alone in zip(found, expected, strict=True):
        for a, b in zip(mine, alone, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_one_model(kv_dtype: str) -> None:
    weights = random_weights(TINY, "int8")
    alone = core_model(weights, n_blocks=8, kv_dtype=kv_dtype, n_threads=1)
    expected = [step_sequence(alone, i) for i in range(N_CALLERS)]
    shared = core_model(weights, n_blocks=8, kv_dtype=kv_dtype, n_threads=N_THREADS)
    check(at_once(lambda i: step_sequence(shared, i)), expected)


def test_a_model_for_each_caller() -> None:
    weights = random_weights(TINY, "int4")
    models = [core_model(weights, n_blocks=8, n_threads=3) for _ in range(N_CALLERS)]
    expected = [step_sequence(models[0], i) for i in range(N_CALLERS)]
    check(at_once(lambda i: step_sequence(models[i], i)), expected)


def test_models_come_and_go() -> None:
    weights = random_weights(TINY, "f32")
    expected = step_sequence(core_model(weights, n_blocks=8, n_threads=1), 0, rounds=1)

    def work(_: int) -> list[np.ndarray]:
        for _ in range(3):
            model = core_model(weights, n_blocks=8, n_threads=3)
            results = step_sequence(model, 0, rounds=1)
        return results

    check(at_once(work), [expected] * N_CALLERS)


def test_ops_copies_and_kernels_at_once() -> None:
    model = core_model(random_weights(TINY, "int8"), n_blocks=8, n_threads=N_THREADS)
    x = np.linspace(-1, 1, 33 * TINY.dim, dtype=np.float32).reshape(33, TINY.dim)
    hidden = model.gate_up(0, x)
    softened = kernels.exp(x)

    def work(caller: int) -> list[np.ndarray]:
        model.copy_blocks(ints([2 * caller]), ints([2 * caller + 1]))
        return [model.gate_up(0, x), kernels.exp(x)]

    check(at_once(work), [[hidden, softened]] * N_CALLERS)


def test_cancelled_from_another_thread() -> None:
    model = core_model(random_weights(TINY, "int8"), n_blocks=8, n_threads=3)
    cancel = _core.CancelFlag()

    def decode(_: int) -> None:
        ids, owner, table = ints([1]), ints([0]), np.array([[0, 1]], np.int32)
        for position in range(10**6):
            model.step(ids, ints([position % 100]), owner, table, ints([0]), cancel=cancel)

    with ThreadPoolExecutor(1) as callers:
        running = callers.submit(decode, 0)
        step_sequence(model, 1)
        cancel.set()
        with pytest.raises(CancelledError):
            running.result(timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_pool_has_its_threads() -> None:
    def threads() -> set[str]:
        return {task.name for task in Path("/proc/self/task").iterdir()}

    before = threads()
    model = core_model(random_weights(TINY, "int8"), n_blocks=8, n_threads=N_THREADS)
    assert len(threads() - before) == model.n_threads - 1
