"""Steps of few tokens on the CUDA library under the emulation: one order of sums, recordings.

Logic only, on shapes that are quickly emulated.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2q
from builders import KV_DTYPES, TINY, core_model, ints, run, step
from emulated_models import (
    COMBINATIONS,
    HEADS,
    LIBRARY,
    on_device,
    prompt,
    weights_of,
)
from llama2q import _core
from reference_weights import Shape
from strategies import assert_same_bits, assert_within
from tolerances import end_to_end

pytestmark = pytest.mark.usefixtures("emulated")


WIDTHS = (5, 16, 1, 9, 12, 2, 14, 7, 3, 10, 15, 4, 8, 13, 6, 11)
"""Each width of a small step once; 136 tokens, over two splits of the cache."""


def in_widths(model: _core.Model, ids: list[int]) -> NDArray[np.float32]:
    parts, begin = [], 0
    for width in WIDTHS:
        parts.append(run(model, ids[begin : begin + width], start=begin))
        begin += width
    assert begin == len(ids)
    return np.concatenate(parts)


@pytest.mark.parametrize(("kind", "group_size", "kv_dtype"), COMBINATIONS)
def test_small_steps(kind: str, group_size: int, kv_dtype: str) -> None:
    """One order of sums for 1 to 16 tokens; within the tolerance that the CPU is held to."""
    weights, ids = weights_of(kind, group_size), prompt(sum(WIDTHS))
    single = run(on_device(weights, kv_dtype), ids, chunk=1)
    assert_same_bits(in_widths(on_device(weights, kv_dtype), ids), single)
    exact, tolerance = end_to_end(weights, np.array(ids), kv_dtype)
    assert_within(single, exact, np.array(tolerance))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_small_steps_of_larger_heads(kv_dtype: str) -> None:
    weights, ids = weights_of("int4", 64, HEADS), prompt(20)
    single = run(on_device(weights, kv_dtype), ids, chunk=1)
    for width in (3, 16):
        assert_same_bits(run(on_device(weights, kv_dtype), ids, chunk=width), single)
    exact, tolerance = end_to_end(weights, np.array(ids), kv_dtype)
    assert_within(single, exact, np.array(tolerance))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_sequences_beside_each_other(kv_dtype: str) -> None:
    """Single tokens and small steps of several sequences, in scattered blocks."""
    weights = weights_of("int4", 32)
    model = on_device(weights, kv_dtype, n_blocks=9)
    ids = [prompt(70, seed=1), prompt(66, seed=2), prompt(131, seed=3)]
    tables = [[8, 1], [3, 5], [0, 7, 4]]
    before = [60, 62, 126]
    for tokens, table, n in zip(ids, tables, before, strict=True):
        run(model, tokens[:n], table=table, chunk=16)
    fed = list(before)
    found: list[list[NDArray[np.float32]]] = [[], [], []]
    for counts in [(1, 1, 1), (5, 0, 2), (1, 2, 1), (3, 1, 1)]:
        who = [i for i in range(3) if counts[i]]
        parts = [(ids[i][fed[i] : fed[i] + counts[i]], fed[i], tables[i]) for i in who]
        for i, rows in zip(who, step(model, parts), strict=True):
            found[i].append(rows)
            fed[i] += counts[i]
    assert fed == [70, 66, 131]
    for i in range(3):
        alone = run(on_device(weights, kv_dtype), ids[i], chunk=13)
        assert_same_bits(np.concatenate(found[i]), alone[before[i] :])


@pytest.mark.parametrize("n", [2, 8, 9, 16])
def test_batched_decode(n: int) -> None:
    weights = weights_of("int8", 32)
    model = on_device(weights, "f16", n_blocks=16)
    sequences = [prompt(5 + i % 3, seed=i) for i in range(n)]
    for i, ids in enumerate(sequences):
        run(model, ids[:-1], table=[i])
    together = step(model, [(ids[-1:], len(ids) - 1, [i]) for i, ids in enumerate(sequences)])
    for ids, rows in zip(sequences, together, strict=True):
        assert_same_bits(rows, run(on_device(weights, "f16"), ids)[-1:])


def test_rows_and_hidden() -> None:
    """A recording serves its own kind of output alone."""
    weights, ids = weights_of("int4", 64), prompt(7)
    every = run(on_device(weights), ids)
    model, table = on_device(weights), np.zeros((1, 1), np.int32)
    positions, owner = ints(range(7)), ints([0] * 7)
    for _ in range(2):
        for rows in ([6], [0, 3], list(range(7)), []):
            found = model.step(ints(ids), positions, owner, table, ints(rows))
            assert_same_bits(found, every[rows])
        hidden = model.step(ints(ids), positions, owner, table, positions, "hidden")
        assert hidden.shape == (7, TINY.dim)
        cpu = core_model(weights).step(ints(ids), positions, owner, table, positions, "hidden")
        assert np.abs(hidden - cpu).max() < 0.1


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_copied_blocks(kv_dtype: str) -> None:
    """A full block read by two sequences, and a partial one copied."""
    weights = weights_of("int8", 32)
    model = on_device(weights, kv_dtype)
    stem, left, right = prompt(70, seed=1), prompt(4, seed=2), prompt(4, seed=3)
    run(model, stem, table=[5, 2], chunk=14)
    model.copy_blocks(ints([2]), ints([6]))
    rows = step(model, [(left, 70, [5, 2]), (right, 70, [5, 6])])
    alone = on_device(weights, kv_dtype)
    assert_same_bits(rows[0], run(alone, stem + left, chunk=15)[70:])
    assert_same_bits(rows[1], run(alone, stem + right, chunk=16)[70:])


# --- recordings and order ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [TINY, HEADS], ids=["tiny", "heads"])
def test_two_runs_are_identical(shape: Shape) -> None:
    weights, ids = weights_of("int4", 32, shape), prompt(60)

    def results() -> list[NDArray[np.float32]]:
        model = on_device(weights, "f16")
        return [run(model, ids), run(model, ids[:20], chunk=1), run(model, ids)]

    first, again = results(), results()
    for one, other in zip(first, again, strict=True):
        assert_same_bits(one, other)
    assert_same_bits(first[0], first[2])


ELSEWHERE = """
import hashlib
from emulated_models import HEADS, on_device, prompt, weights_of
from builders import run
from llama2q import devices
(device,) = devices.find()
for shape in (HEADS,):
    model = on_device(weights_of("int4", 64, shape), "int8")
    steps, prefill = run(model, prompt(24), chunk=6), run(model, prompt(40))
    print(device.compute_capability, *(hashlib.sha256(x).hexdigest() for x in (steps, prefill)))
"""


def test_order_of_threads_and_overlapping_launches() -> None:
    """A launch may begin before the one ahead of it has ended on 9.0; no bit depends on order."""
    found = {}
    for capability, seed in (("8.6", "0"), ("9.0", "1"), ("9.0", "2"), ("7.5", "3")):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(llama2q.__file__).parents[1]), str(Path(__file__).parents[1])]
            ),
            "CUDA_EMULATION_CAPABILITY": capability,
            "CUDA_EMULATION_SEED": seed,
        }
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[capability, seed] = done.stdout.split(")")
    assert len({place[0] for place in found.values()}) == 3
    hashes = {key: place[1].split() for key, place in found.items()}
    assert len({steps for steps, _ in hashes.values()}) == 1
    assert len({prefill for _, prefill in hashes.values()}) == 1


def test_recordings_serve_other_positions() -> None:
    """Beyond the length for which a recording was made, and back below it."""
    weights, ids = weights_of("int4", 64), prompt(300)
    model, fresh = on_device(weights), on_device(weights)
    run(fresh, ids[:280])
    expected = run(fresh, ids[280:296], start=280)
    run(model, ids[:4], chunk=1)
    run(model, ids[:280])
    assert_same_bits(run(model, ids[280:296], start=280, chunk=1), expected)
    assert_same_bits(run(model, ids[:4], chunk=1), run(on_device(weights), ids[:4]))


COUNTING = """
#include <dlfcn.h>
#include <stdlib.h>
#include "cuda/table.h"

using namespace llama2q;
extern "C" int recorded, replayed;
extern "C" DeviceTable llama2q_device_table;
int recorded = 0, replayed = 0;
DeviceTable llama2q_device_table;
static const DeviceTable* real;

static int record(Device* device, DeviceFailure* failure) {
  ++recorded;
  return real->record(device, failure);
}

static int replay(Device* device, uint64_t key, int32_t* found, DeviceFailure* failure) {
  const int status = real->replay(device, key, found, failure);
  replayed += *found;
  return status;
}

__attribute__((constructor)) static void wrap() {
  void* library = dlopen(getenv("COUNTED_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) abort();
  real = static_cast<const DeviceTable*>(dlsym(library, kDeviceTableSymbol));
  llama2q_device_table = *real;
  llama2q_device_table.record = record;
  llama2q_device_table.replay = replay;
}
"""


def test_recordings_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by a library that hands everything on: one recording for each kind of small step."""
    compiler, headers = shutil.which("c++"), Path(__file__).resolve().parents[2] / "csrc"
    if compiler is None or not headers.is_dir():
        pytest.skip("needs a C++ compiler and the sources beside the tests")
    path = tmp_path / "counting.so"
    subprocess.run(
        [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{headers}", "-x", "c++", "-", "-o", path],
        input=COUNTING, text=True, check=True,
    )  # fmt: skip
    monkeypatch.setenv("COUNTED_LIBRARY", str(LIBRARY))
    library, counting = _core.DeviceLibrary(str(path)), ctypes.CDLL(str(path))

    def counts() -> tuple[int, int]:
        recorded, replayed = (
            ctypes.c_int.in_dll(counting, name).value for name in ("recorded", "replayed")
        )
        return recorded, replayed

    weights, ids = weights_of("int4", 64), prompt(60)
    model = core_model(weights, devices=[(library, 0, 2)])
    run(model, ids[:30])
    assert counts() == (0, 0)
    run(model, ids[30:40], start=30, chunk=1)
    assert counts() == (1, 9)
    run(model, ids[40:52], start=40, chunk=3)
    assert counts() == (2, 12)
    fresh = on_device(weights)
    run(fresh, ids[:30])
    assert_same_bits(run(model, ids[52:60], start=52, chunk=1), run(fresh, ids[30:], start=30)[22:])
    assert counts() == (2, 20)
