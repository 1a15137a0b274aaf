"""The CPU's layers visit a device, on the CUDA library under the emulation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llama2q
from builders import core_model, run, step
from emulated_models import HEADS, assert_close, on_device, prompt, weights_of
from llama2q import _core
from strategies import assert_same_bits

pytestmark = pytest.mark.usefixtures("emulated")


def visited(kind: str, group_size: int, kv_dtype: str, from_tokens: int = 1) -> _core.Model:
    """The first of two layers is the CPU's."""
    model = on_device(weights_of(kind, group_size, HEADS), kv_dtype, layers=(1,))
    model.set_layer_stream(from_tokens)
    return model


@pytest.mark.parametrize(
    ("kind", "group_size", "kv_dtype"),
    [
        ("int4", 64, "f16"),
        pytest.param("int8", 32, "int8", marks=pytest.mark.slow),
        pytest.param("bf16", 0, "f32", marks=pytest.mark.slow),
    ],
)
def test_the_device_s_bits(kind: str, group_size: int, kv_dtype: str) -> None:
    """A layer gives what it gives where it lives on the device, in parts of a prompt as well."""
    ids = prompt(150)
    whole = on_device(weights_of(kind, group_size, HEADS), kv_dtype, layers=(2,))
    model = visited(kind, group_size, kv_dtype)
    for start, end in ((0, 70), (70, 71), (71, 80), (80, 150)):
        expected = run(whole, ids[start:end], start=start)
        assert_same_bits(run(model, ids[start:end], start=start), expected)


def test_the_cache_comes_back() -> None:
    """What visited appended is read by the CPU, and what the CPU appended by the next visit."""
    weights, ids = weights_of("int4", 64, HEADS), prompt(140)
    cpu, model = core_model(weights, "f16"), visited("int4", 64, "f16", from_tokens=40)
    for start, end in ((0, 60), (60, 63), (63, 110), (110, 140)):
        expected = run(cpu, ids[start:end], start=start)
        assert_close(expected, run(model, ids[start:end], start=start))


def test_several_sequences() -> None:
    """Blocks in any order, some of them shared."""
    cpu, model = core_model(weights_of("int4", 64, HEADS), "int8"), visited("int4", 64, "int8")
    parts = [(prompt(64, seed=1), 0, [5]), (prompt(80, seed=2), 0, [7, 2])]
    more = [(prompt(9, seed=3), 64, [5, 1]), (prompt(5, seed=4), 80, [7, 2]), ([3], 64, [5, 4])]
    for batch in (parts, more):
        for expected, found in zip(step(cpu, batch), step(model, batch), strict=True):
            assert_close(expected, found)


@pytest.mark.parametrize(
    ("capability", "pinning"),
    [("9.0", "0"), pytest.param("8.6", "1", marks=pytest.mark.slow)],
)
def test_text(tmp_path: Path, capability: str, pinning: str) -> None:
    """Launches that overlap read nothing too early; refused pinning is said, and works."""
    code = """
import logging, sys
import numpy as np
sys.path[:0] = sys.argv[1:]
from builders import run
from emulated_models import HEADS, on_device, prompt, weights_of
model = on_device(weights_of("int4", 64, HEADS), "f16", layers=(1,))
model.set_layer_stream(20)
ids = prompt(60)
print(model.notes)
print(run(model, ids[:50]).tobytes().hex(), run(model, ids[50:], start=50).tobytes().hex())
"""
    folders = [str(Path(__file__).parents[1]), str(Path(llama2q.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", code, *folders],
        env={**os.environ, "CUDA_EMULATION_CAPABILITY": capability,
             "CUDA_EMULATION_PINNING": pinning},
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes, rows = done.stdout.splitlines()
    assert ("the system refuses to pin memory" in notes) == (pinning == "0")
    ids, model = prompt(60), visited("int4", 64, "f16", from_tokens=20)
    expected = [run(model, ids[:50]), run(model, ids[50:], start=50)]
    found = [np.frombuffer(bytes.fromhex(text), np.float32) for text in rows.split()]
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other.ravel())
