"""Whole models on the CUDA library under the emulation: float64 reference, the CPU, bits.

Logic only: layers, cache, recordings and hops between devices, on shapes that are quickly
emulated and on the demo model.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2q
from builders import KV_DTYPES, TINY, core_model, ints, random_weights, run, step
from llama2q import _core, devices
from llama2q.errors import CancelledError, InsufficientMemoryError, NonFiniteError
from llama2q.plan import KvChoice
from reference_weights import Shape, Weights
from strategies import assert_same_bits, assert_within
from tolerances import end_to_end

LIBRARY = Path(llama2q.__file__).parent / "libllama2q_cuda_emulated.so"
PROMPT = "The house stood at the end of a long road, and nobody had lived in it for years."
HEADS = Shape(dim=256, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=101)
"""head_dim 64, which has kernels of its own."""
RECIPES = (
    ("int4", 32), ("int4", 64), ("int4", 128), ("int4-uniform", 32), ("int4-uniform", 128),
    ("int8", 32), ("int8", 64), ("int8", 128), ("f32", 0), ("bf16", 0), ("f16", 0),
)  # fmt: skip
QUICK = {
    ("int4", 32, "f16"), ("int4", 64, "f32"), ("int4", 128, "int8"), ("int4-uniform", 32, "int8"),
    ("int8", 64, "f16"), ("f32", 0, "f32"), ("bf16", 0, "f16"), ("f16", 0, "int8"),
}  # fmt: skip
MEAN_KL, MOST_KL = 1e-3, 4e-3
"""Of logits whose attention multiplied f16 numbers, or whose activations fell on the other side of
a rounding boundary. Over all recipes 3.7e-4 and 8.7e-4 were measured on random weights, 1.0e-3 and
4.2e-3 on the demo model, whose bounds are three times as wide."""

pytestmark = pytest.mark.skipif(
    not LIBRARY.is_file(), reason="needs a build with -DLLAMA2Q_TEST_LIBRARIES=ON"
)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the library; all of its device's memory is free again after the test."""
    monkeypatch.setenv(devices.LIBRARY_VARIABLE, str(LIBRARY))
    yield
    gc.collect()
    for device in devices.find():
        assert device.free_bytes == device.total_bytes


@cache
def weights_of(kind: str, group_size: int, shape: Shape = TINY) -> Weights:
    return random_weights(shape, kind, group_size or 32)


@cache
def prompt(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, TINY.vocab_size, n).tolist()


def on_device(
    weights: Weights, kv_dtype: str = "f32", n_blocks: int = 8, layers: tuple[int, ...] = (2,)
) -> _core.Model:
    """Place the last layers on the device; on itself again where there are several shares."""
    shares = [(devices.library(), 0, n) for n in layers]
    return core_model(weights, kv_dtype, n_blocks=n_blocks, devices=shares)


def divergence(
    expected: NDArray[np.float32], found: NDArray[np.float32]
) -> tuple[np.float64, np.float64]:
    """Return mean and maximum over the rows of KL(expected || found), in nats."""
    p, q = (
        rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        for rows in (
            logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
            for logits in (expected, found)
        )
    )
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    return kl.mean(), kl.max()


def assert_close(
    expected: NDArray[np.float32], found: NDArray[np.float32], factor: float = 1
) -> None:
    mean, most = divergence(expected, found)
    assert np.isfinite(found).all()
    assert mean <= factor * MEAN_KL, f"mean KL divergence {mean}"
    assert most <= factor * MOST_KL, f"KL divergence of a row {most}"


COMBINATIONS = [
    pytest.param(
        kind, group_size, kv_dtype,
        marks=[] if (kind, group_size, kv_dtype) in QUICK else [pytest.mark.slow],
    )
    for kind, group_size in RECIPES
    for kv_dtype in KV_DTYPES
]  # fmt: skip


# --- few tokens -------------------------------------------------------------------------------

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
    weights, ids = weights_of("int4", 64, HEADS), prompt(sum(WIDTHS))[: sum(WIDTHS[:6])]
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
    fed, found = list(before), [[], [], []]  # type: ignore[var-annotated]
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


# --- many tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "group_size", "kv_dtype"), COMBINATIONS)
def test_prefill(kind: str, group_size: int, kv_dtype: str) -> None:
    """As close to the CPU as rounding leaves it; the next tokens read what it appended."""
    weights, ids = weights_of(kind, group_size), prompt(145)
    model, cpu = on_device(weights, kv_dtype), core_model(weights, kv_dtype)
    assert_close(run(cpu, ids[:140]), run(model, ids[:140]))
    assert_close(run(cpu, ids[140:], start=140), run(model, ids[140:], start=140))


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
@pytest.mark.parametrize("n", [17, 300])
def test_prefill_on_tensor_cores(kv_dtype: str, n: int) -> None:
    """head_dim 64; in parts as well."""
    weights, ids = weights_of("int4", 64, HEADS), prompt(n)
    expected = run(core_model(weights, kv_dtype), ids)
    assert_close(expected, run(on_device(weights, kv_dtype), ids))
    if n > 100:
        assert_close(expected, run(on_device(weights, kv_dtype), ids, chunk=77))


def test_prefill_of_several_sequences() -> None:
    weights = weights_of("int4", 64, HEADS)
    model, cpu = on_device(weights, "f16"), core_model(weights, "f16")
    parts = [(prompt(50, seed=1), 0, [3]), (prompt(70, seed=2), 0, [6, 1]), ([5], 0, [4])]
    for expected, found in zip(step(cpu, parts), step(model, parts), strict=True):
        assert_close(expected, found)


# --- where and when ---------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(1,), (1, 1)])
def test_layers_in_several_places(layers: tuple[int, ...]) -> None:
    """The CPU's layers first, or a device after a device: hops change nothing."""
    weights, ids = weights_of("int4", 64), prompt(40)
    found = run(on_device(weights, "f16", layers=layers), ids, chunk=8)
    if sum(layers) == 2:
        assert_same_bits(found, run(on_device(weights, "f16"), ids, chunk=8))
    exact, tolerance = end_to_end(weights, np.array(ids), "f16")
    assert_within(found, exact, np.array(tolerance))
    many = run(on_device(weights, "f16", layers=layers), ids)
    assert_close(run(core_model(weights, "f16"), ids), many)


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
from cuda.test_emulated_model import HEADS, on_device, prompt, weights_of
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


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "f32"])
@pytest.mark.parametrize("n", [1, 3, 30])
@pytest.mark.parametrize(
    "place", ["layers.1.attention_norm", "layers.0.ffn_norm", "layers.1.ffn_norm", "norm"]
)
def test_values_that_are_not_finite(kind: str, n: int, place: str) -> None:
    """The error is the CPU's, layer and op; again and again."""
    weights = random_weights(TINY, kind)
    weights.norms[f"{place}.weight"][5] = np.inf
    with pytest.raises(NonFiniteError) as expected:
        run(core_model(weights), prompt(n))
    model = on_device(weights)
    for _ in range(2):
        with pytest.raises(NonFiniteError) as found:
            run(model, prompt(n))
        assert str(found.value) == str(expected.value)


def test_too_large_for_the_cache() -> None:
    weights = random_weights(TINY, "f32", seed=3)
    weights.matrices["layers.0.attention.wv.weight"].values[2] *= 1e7
    expected = run(on_device(weights, "f32"), prompt(3))
    assert np.isfinite(expected).all()
    for n in (1, 3, 30):
        with pytest.raises(NonFiniteError, match="layer 0, qkv"):
            run(on_device(weights, "f16"), prompt(n))


def test_cancelled() -> None:
    """What was recorded until then is thrown away."""
    weights, ids = weights_of("int4", 64), prompt(5)
    model, flag = on_device(weights), _core.CancelFlag()
    flag.set()
    arguments = (ints(ids), ints(range(5)), ints([0] * 5), np.zeros((1, 1), np.int32), ints([4]))
    with pytest.raises(CancelledError):
        model.step(*arguments, cancel=flag)
    expected = run(on_device(weights), ids)[4:]
    for _ in range(2):
        assert_same_bits(model.step(*arguments), expected)


def test_out_of_device_memory() -> None:
    """An error before any work; what was taken until then is given back (see the fixture)."""
    with pytest.raises(InsufficientMemoryError, match="GPU"):
        on_device(weights_of("int4", 64), n_blocks=200_000)


# --- the demo model ---------------------------------------------------------------------------

MINI = (
    ("int4", 64, "nonuniform", "f16"),
    ("int4", 32, "uniform", "int8"),
    ("int4", 128, "nonuniform", "f32"),
    ("int8", 64, "nonuniform", "int8"),
    ("none", 64, "nonuniform", "f32"),
)
MARGIN = 0.6
"""Logits that are further apart than this keep their order: twice the largest difference measured
over all recipes, 0.29."""


@pytest.mark.parametrize(
    ("quant", "group_size", "grid", "kv_dtype"),
    [MINI[0], *(pytest.param(*recipe, marks=pytest.mark.slow) for recipe in MINI[1:])],
)
def test_demo_model(
    convert_mini: Callable[..., Path], quant: str, group_size: int, grid: str, kv_dtype: KvChoice
) -> None:
    """Along 40 greedy tokens of the CPU the device would choose the same, but for near ties."""
    path = convert_mini(quant=quant, group_size=group_size, grid=grid)
    with llama2q.load(path, n_ctx=128, kv_dtype=kv_dtype, device="cpu") as cpu:
        ids = cpu.tokenizer.encode(PROMPT)
        n = len(ids)
        assert n > 16
        text = [*ids, *cpu.generate(ids, max_tokens=40, temperature=0).token_ids]
        expected = cpu.logits(text)
    with llama2q.load(path, n_ctx=128, kv_dtype=kv_dtype, device="cuda") as gpu:
        (share,) = gpu.engine.plan.devices
        assert (share.first_layer, share.n_layers) == (0, gpu.config.n_layers)
        (device,) = devices.find()
        used = device.total_bytes - device.free_bytes
        assert 0.95 * share.total_bytes <= used <= share.total_bytes
        model = gpu.engine._open_model()
        prefill = run(model, text[:n], table=[0, 1])
        steps = run(model, text[n:], start=n, table=[0, 1], chunk=16)
        (device,) = devices.find()
        assert device.total_bytes - device.free_bytes == used
    found = np.concatenate([prefill, steps])
    assert_close(expected, found, 3)
    chosen = found.argmax(axis=1)
    rows = np.arange(len(text))
    lost = expected.max(axis=1) - expected[rows, chosen]
    assert lost.max() <= MARGIN, f"a token was chosen {lost.max()} below the CPU's"
    assert (chosen == expected.argmax(axis=1)).mean() >= 0.9


@pytest.mark.parametrize("gpu_layers", [6, 3])
def test_text_of_the_demo_model(convert_mini: Callable[..., Path], gpu_layers: int) -> None:
    """Batches, streams, samples and repetition change nothing, over CPU and device neither."""
    path, settings = convert_mini(group_size=128), {"max_tokens": 4, "seed": 1}
    with llama2q.load(path, n_ctx=128, kv_dtype="f32", device="cpu") as cpu:
        expected = cpu.score("The river is deep").logprobs
    options = {"device": "cuda", "gpu_layers": gpu_layers}
    with llama2q.load(path, n_ctx=128, kv_dtype="f32", **options) as llm:
        assert llm.engine.plan.devices[0].n_layers == gpu_layers
        alone = [llm.generate(text, **settings).token_ids for text in ("The river", "A")]
        batch = llm.generate(["The river", "A"], **settings)
        assert [completion.token_ids for completion in batch] == alone
        stream = llm.stream("The river", **settings)
        assert "".join(chunk.text for chunk in stream) == batch[0].text
        samples = llm.generate("The river", n=2, **settings).samples
        assert samples[0].token_ids == alone[0] != samples[1].token_ids
        again = llm.generate("The river", n=2, **settings).samples
        assert [sample.token_ids for sample in again] == [sample.token_ids for sample in samples]
        scored = llm.score("The river is deep").logprobs
    assert len(scored) == len(expected) > 3
    for one, other in zip(scored[1:], expected[1:], strict=True):
        assert one == pytest.approx(other, abs=MARGIN)


def test_a_device_as_large_as_the_plan(convert_mini: Callable[..., Path]) -> None:
    """The plan is enough to the byte for load, prefill and decode."""
    path = convert_mini()
    (share,) = llama2q.plan(path, n_ctx=128, device="cuda").devices
    code = (
        "import sys, llama2q\n"
        f"with llama2q.load({str(path)!r}, n_ctx=128, device='cuda', gpu_layers=6,\n"
        "                  gpu_memory=int(sys.argv[1])) as llm:\n"
        "    llm.generate(list(range(3, 40)), max_tokens=2)\n"
        "    print(llm.engine.plan.devices[0].total_bytes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(share.total_bytes)],
        env={**os.environ, "CUDA_EMULATION_MEMORY": str(share.total_bytes),
             "PYTHONPATH": str(Path(llama2q.__file__).parents[1])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == share.total_bytes
