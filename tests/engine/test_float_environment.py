"""The caller's floating-point state and process tricks change no bit of the results."""

from __future__ import annotations

import ctypes
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from builders import TINY, core_matrix, core_model, random_weights, run
from llama2q import _core, kernels
from reference_weights import Dense, Weights
from strategies import assert_same_bits, floats

DEFAULT = 0x1F80
STATES = {
    "denormals are zero, flush to zero": DEFAULT | 0x8040,
    "round up": DEFAULT | 0x4000,
    "round down": DEFAULT | 0x2000,
    "truncate, no denormals": DEFAULT | 0x6000 | 0x8040,
}
FLAGS = 0x3F
"""Sticky exception flags, which a computation may set."""

SOURCE = """
#include <xmmintrin.h>
unsigned get_csr(void) { return _mm_getcsr(); }
void set_csr(unsigned value) { _mm_setcsr(value); }
"""


class Csr:
    """The calling thread's MXCSR register."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        self._get, self._set = loaded.get_csr, loaded.set_csr
        self._get.restype, self._set.argtypes = ctypes.c_uint, [ctypes.c_uint]

    @contextmanager
    def changed(self, value: int) -> Iterator[None]:
        """Run the body under `value`; fail if the body leaves another one behind."""
        before = self._get()
        self._set(value)
        try:
            yield
            after = self._get() & ~FLAGS
        finally:
            self._set(before)
        assert after == value, f"MXCSR was {value:#x} before the call and {after:#x} after"


@pytest.fixture(scope="module")
def csr(tmp_path_factory: pytest.TempPathFactory) -> Csr:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"MXCSR is x86's; this machine is {platform.machine()}")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang) to build the helper that sets MXCSR")
    folder = tmp_path_factory.mktemp("csr")
    source, library = folder / "csr.c", folder / "csr.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return Csr(library)


def with_denormals() -> Weights:
    """A model in which denormals matter: some weights and norms are ones."""
    weights = random_weights(TINY, "f32")
    for matrix in weights.matrices.values():
        matrix.values[::3] *= np.float32(2.0**-130)
    return weights


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
def test_step(csr: Csr, state: str, kv_dtype: str) -> None:
    weights, ids = with_denormals(), list(range(40))
    expected = run(core_model(weights, kv_dtype), ids)
    early = core_model(weights, kv_dtype, n_threads=3)
    run(early, ids[:5])
    with csr.changed(STATES[state]):
        late = core_model(weights, kv_dtype, n_threads=3)
        found = run(early, ids), run(late, ids)
    assert_same_bits(found[0], expected)
    assert_same_bits(found[1], expected)


def changed(function: Callable[..., object], array: np.ndarray, *more: object) -> np.ndarray:
    """Return a copy of the array that the function has written to."""
    result = array.copy()
    function(result, *more)
    return result


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("isa", _core.isas())
def test_kernels(csr: Csr, state: str, isa: str) -> None:
    """Every kernel on plain arrays; the dense product's results are denormal."""
    x, weight = floats(1, (5, 64), 30), floats(2, (64,))
    small = Dense(floats(3, (17, 64), 0, 2.0**-135))
    matrix, ones = core_matrix(small), np.ones((1, 64), np.float32)
    q, k = floats(4, (3, 2, 8)), floats(5, (70, 1, 8))
    positions = np.array([3, 66, 69], np.int32)
    angles = np.array([1.0, 0.1, 0.01, 0.001])
    row, zero = np.ones(5, np.float32), np.zeros(5, np.int32)
    calls: dict[str, Callable[[], np.ndarray]] = {
        "matmul": lambda: _core.matmul(ones, matrix, isa),
        "codes": lambda: _core.quantize_activations(x, 32, isa)[0],
        "scales": lambda: _core.quantize_activations(x, 32, isa)[1],
        "rms_norm": lambda: _core.rms_norm(x, weight, 1e-5, isa),
        "rope": lambda: _core.rope(q, positions, angles, isa),
        "swiglu": lambda: _core.swiglu(x, x, isa),
        "exp": lambda: _core.exp(-np.abs(x), isa),
        "attention": lambda: _core.attention(q, k, k, positions, "int8", isa),
        "sample": lambda: _core.sample(
            np.minimum(x, 50), row, row, zero, row * 0, zero.astype(np.uint64), zero, zero, isa
        ),
    }
    denormal = floats(6, (64,), 0, 2.0**-125)
    calls["edit_logits"] = lambda: kernels.edit_logits(
        denormal, output_ids=range(60), repetition=3.0, presence=2.0**-130
    )
    calls["logprobs"] = lambda: _core.logprobs(np.minimum(x, 50), zero, 0, isa)[2]
    factor = np.float32(2.0**-66) * floats(7, (5, 64))
    positive = 64 * np.eye(64, dtype=np.float32) + floats(8, (64, 64))
    positive[1:, 0] *= np.float32(2.0**-130)
    zeros = np.zeros((64, 64), np.float32)
    calls["add_product"] = lambda: changed(_core.add_product, zeros, factor, factor, False, isa)
    calls["add_gram"] = lambda: changed(_core.add_gram, zeros, factor, isa)
    calls["ldl"] = lambda: changed(_core.ldl, positive, isa)
    tiny = calls["matmul"]()
    assert ((tiny != 0) & (np.abs(tiny) < 2.0**-126)).any()
    for name, call in calls.items():
        expected = call()
        with csr.changed(STATES[state]):
            found = call()
        assert found.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("state", STATES)
def test_quantizers(csr: Csr, state: str) -> None:
    weights = np.clip(floats(6, (40, 100), 10, 2.0**-10), -100, 100)
    weights[:, 32:64] *= np.float32(2.0**-120)
    grid = np.arange(-8, 8, dtype=np.int8)
    expected = (*_core.quantize_int4(weights, 32, grid), *_core.quantize_int8(weights, 64))
    with csr.changed(STATES[state]):
        found = (*_core.quantize_int4(weights, 32, grid), *_core.quantize_int8(weights, 64))
    for left, right in zip(found, expected, strict=True):
        assert_same_bits(left, right)


# --- processes --------------------------------------------------------------------------------


def _receive(read_end: int, child: int, seconds: float) -> bytes:
    """Read all that the child writes; kill it if it says nothing for that long."""
    parts = []
    while True:
        ready, _, _ = select.select([read_end], [], [], seconds)
        if not ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"the child gave no result within {seconds} s after fork()")
        part = os.read(read_end, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("n_threads", [1, 3])
def test_after_fork(n_threads: int) -> None:
    """A child computes with the parent's model: its threads are gone and are made anew."""
    model = core_model(random_weights(TINY, "int8"), n_threads=n_threads)
    ids = list(range(70))
    expected = run(model, ids)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_end)
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(run(model, ids).tobytes())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    received = _receive(read_end, child, 60.0)
    os.close(read_end)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert received == expected.tobytes()
    assert_same_bits(run(model, ids), expected)


SCRIPT = """
import sys
import llama2q
with llama2q.load(sys.argv[1], n_ctx=128, n_threads=int(sys.argv[2])) as llm:
    print(*llm.generate("The old man", temperature=0.8, seed=3, max_tokens=40).token_ids)
"""


def test_sampled_text_of_whole_processes(convert_mini: Callable[..., Path]) -> None:
    """LLAMA2Q_ISA and the thread count change nothing that a user reads."""
    path = convert_mini()
    texts = set()
    for isa in _core.isas():
        for n_threads in (1, 3) if isa == "scalar" else (1, 2, 3, 7):
            command = [sys.executable, "-c", SCRIPT, str(path), str(n_threads)]
            done = subprocess.run(
                command, env={**os.environ, "LLAMA2Q_ISA": isa}, capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            texts.add(done.stdout)
    assert len(texts) == 1
    assert len(texts.pop().split()) > 5
