"""Whole models on a GPU: exact integers, the CPU's text, bits that do not depend on the step.

Skipped where there is none, unless LLAMA2Q_REQUIRE_DEVICE is set. LLAMA2Q_CUDA_LIBRARY may name
the emulated library instead, as the dry run of tools/bench_cuda.py does: fewer tokens, and no word
about memory.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2q
from builders import core_model, random_weights
from llama2q import devices
from llama2q.engine import Engine
from llama2q.errors import DeviceError
from llama2q.kv_sequence import Sequence
from llama2q.plan import KvChoice
from llama2q.ragged import Span
from reference_weights import Quantized, Shape

PROMPT = "The house stood at the end of a long road, and nobody had lived in it for years."
WIDE = Shape(dim=256, hidden_dim=160, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=101)
MEAN_KL, MOST_KL = 3e-3, 1.2e-2
"""Nats. f16 numbers in the attention of a prompt, other orders of float sums: what the emulation
differs by on this model at most, times three."""
TIE = 0.05
"""Logits this near each other may change places for the same reason."""
SLACK_BYTES = 64 << 20
"""What the driver takes beside our allocations: code, recorded passes, whole pages."""


def found() -> list[devices.Device]:
    try:
        return devices.find()
    except DeviceError as error:
        if os.environ.get("LLAMA2Q_REQUIRE_DEVICE"):
            raise
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def device() -> devices.Device:
    return found()[0]


@pytest.fixture
def emulated(device: devices.Device) -> bool:
    return device.name.startswith("emulated")


@pytest.fixture(scope="module")
def model(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini()


def load(path: Path, device: str = "cuda", **options: Any) -> llama2q.Llama:
    return llama2q.load(path, device=device, **{"n_ctx": 512, **options})


def text_ids(llm: llama2q.Llama, n: int) -> list[int]:
    return (llm.tokenizer.encode(PROMPT) * 40)[:n]


@pytest.mark.parametrize("n_tokens", [1, 2, 7, 16, 40])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("kind", ["int4", "int4-uniform", "int8"])
def test_integer_dots_are_exact(kind: str, group_size: int, n_tokens: int) -> None:
    """Scales of 1 and activations that are their own codes: sums are integers below 2^24."""
    random = np.random.default_rng(5)
    weights = random_weights(WIDE, kind, group_size)
    name = "layers.0.attention.wo.weight"
    wo = weights.matrices[name]
    assert isinstance(wo, Quantized)
    exact = Quantized(wo.values, np.ones_like(wo.scales), group_size, wo.grid)
    weights.matrices[name] = exact
    model = core_model(weights, "f16", devices=[(devices.library(), 0, 1)])
    codes = random.integers(-127, 128, (n_tokens, WIDE.dim))
    codes[:, ::group_size] = 127
    residual = random.integers(-1000, 1000, (n_tokens, WIDE.dim)).astype(np.float32)
    got = model.project(0, codes.astype(np.float32), residual)
    expected = residual + codes @ exact.values.astype(np.int64).T
    np.testing.assert_array_equal(got, expected)


def divergences(expected: NDArray[np.float32], got: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(expected || got) of each row, in nats."""

    def logs(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = rows.astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))

    p, q = logs(expected), logs(got)
    result: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return result


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
def test_the_cpu_s_distribution(
    model: Path, kv_dtype: KvChoice, emulated: bool, record_property: Callable[..., None]
) -> None:
    n_tokens = 40 if emulated else 400
    logits = {}
    for where in ("cpu", "cuda"):
        with load(model, where, kv_dtype=kv_dtype) as llm:
            logits[where] = llm.logits(text_ids(llm, n_tokens))
    kl = divergences(logits["cpu"], logits["cuda"])
    record_property("mean KL, nats", f"{kl.mean():.2e}")
    record_property("largest KL, nats", f"{kl.max():.2e}")
    assert np.isfinite(logits["cuda"]).all()
    assert kl.mean() <= MEAN_KL
    assert kl.max() <= MOST_KL


def test_greedy_tokens(model: Path, emulated: bool, record_property: Callable[..., None]) -> None:
    """After each token of the CPU's text the device's likeliest is the CPU's, but for ties."""
    n_tokens = 6 if emulated else 100
    with load(model, "cpu") as llm:
        start = llm.tokenizer.encode(PROMPT)
        written = llm.generate(start, max_tokens=n_tokens, temperature=0, ignore_eos=True)
        ids = [*start, *written.token_ids]
        expected = llm.logits(ids)
    with load(model) as llm:
        got = llm.logits(ids)
        text = llm.generate(start, max_tokens=n_tokens, temperature=0, ignore_eos=True).token_ids
    first, second = np.sort(expected, axis=1)[:, ::-1][:, :2].T
    differs = expected.argmax(axis=1) != got.argmax(axis=1)
    record_property("ties that fell otherwise", int(differs.sum()))
    record_property("greedy text is the CPU's", text == written.token_ids)
    assert (first - second)[differs].max(initial=0) <= TIE
    if not differs.any():
        assert text == written.token_ids


def test_runs_are_identical(model: Path, emulated: bool) -> None:
    n_tokens = 40 if emulated else 300

    def run() -> tuple[bytes, list[tuple[int, ...]]]:
        with load(model) as llm:
            logits = llm.logits(text_ids(llm, n_tokens)).tobytes()
            prompts = [PROMPT, "Once upon a time"]
            texts = llm.generate(prompts, max_tokens=4 if emulated else 60, seed=3)
        return logits, [completion.token_ids for completion in texts]

    assert run() == run()


def step(engine: Engine, sequence: Sequence, ids: list[int]) -> NDArray[np.float32]:
    return engine.forward([Span(sequence, ids, len(ids))])


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
def test_steps_of_any_length(model: Path, kv_dtype: KvChoice, emulated: bool) -> None:
    """Up to 16 tokens at once give the logits and the cache of one by one, to the bit."""
    before = 3 if emulated else 150
    lengths = (1, 5, 16) if emulated else range(1, 17)
    with load(model, kv_dtype=kv_dtype) as llm:
        engine, ids = llm.engine, text_ids(llm, before + 17)
        expected: bytes | None = None
        for length in lengths:
            sequence = Sequence(engine.pool, len(ids))
            step(engine, sequence, ids[:before])
            rows = [
                step(engine, sequence, ids[begin : min(begin + length, before + 16)])
                for begin in range(before, before + 16, length)
            ]
            rows.append(step(engine, sequence, ids[-1:]))
            sequence.release()
            got = np.concatenate(rows).tobytes()
            expected = got if expected is None else expected
            assert got == expected, f"steps of {length}"


def test_speculation(model: Path, emulated: bool) -> None:
    """Guesses that are thrown away leave no trace."""
    before = 4 if emulated else 90
    with load(model) as llm:
        engine, ids = llm.engine, text_ids(llm, before + 20)
        plain = Sequence(engine.pool, len(ids))
        step(engine, plain, ids[:before])
        expected = [step(engine, plain, [i])[0] for i in ids[before : before + 4]]
        guessed = Sequence(engine.pool, len(ids))
        step(engine, guessed, ids[:before])
        # Two right guesses and six wrong ones; then on from the right ones.
        first = step(engine, guessed, [*ids[before : before + 2], *[7] * 6])
        guessed.rewind(before + 2)
        then = step(engine, guessed, ids[before + 2 : before + 4])
        got = [*first[:2], *then]
        assert np.array(got).tobytes() == np.array(expected).tobytes()
        for sequence in (plain, guessed):
            sequence.release()


def test_neighbours_change_nothing(model: Path, emulated: bool) -> None:
    n_tokens = 3 if emulated else 40
    prompts = ["A", "Once upon a time", "The"] if emulated else [PROMPT, "Once upon a time", "A"]
    how: dict[str, Any] = {"max_tokens": n_tokens, "seed": 11}
    with load(model) as llm:
        together = [c.token_ids for c in llm.generate(prompts, **how)]
        alone = [llm.generate(prompt, **how).token_ids for prompt in prompts]
    # Prompts of up to 32 tokens run through the kernels for few tokens in either case.
    assert together[1:] == alone[1:]


def test_sanitized_small_run(model: Path) -> None:
    """A prompt, steps and decoding with both narrow caches: what compute-sanitizer looks at."""
    for kv_dtype in ("f16", "int8"):
        with load(model, kv_dtype=kv_dtype, n_ctx=128) as llm:
            ids = text_ids(llm, 40)
            assert np.isfinite(llm.logits(ids)).all()
            assert len(llm.generate(ids[:9], max_tokens=3, seed=1, ignore_eos=True).token_ids) == 3


def test_memory_is_as_planned(
    model: Path, emulated: bool, record_property: Callable[..., None]
) -> None:
    if emulated:
        pytest.skip("the emulation's memory is no device's")
    gc.collect()
    before = found()[0].free_bytes
    with load(model) as llm:
        planned = sum(share.total_bytes for share in llm.engine.plan.devices)
        llm.logits(text_ids(llm, 300))
        llm.generate(PROMPT, max_tokens=20, seed=1)
        taken = before - found()[0].free_bytes
    record_property("planned bytes", planned)
    record_property("taken bytes", taken)
    assert taken <= 1.05 * planned + SLACK_BYTES
