"""Whole models on the CUDA library under the emulation: prompts, several places, faults.

Logic only, on shapes that are quickly emulated and on the demo model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llama2q
from builders import TINY, core_model, ints, random_weights, run, step
from emulated_models import (
    COMBINATIONS,
    HEADS,
    assert_close,
    on_device,
    prompt,
    weights_of,
)
from llama2q import _core, devices
from llama2q.errors import CancelledError, InsufficientMemoryError, NonFiniteError
from llama2q.plan import KvChoice
from strategies import assert_same_bits, assert_within
from tolerances import end_to_end

PROMPT = "The house stood at the end of a long road, and nobody had lived in it for years."

pytestmark = pytest.mark.usefixtures("emulated")

# --- many tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "group_size", "kv_dtype"), COMBINATIONS)
def test_prefill(kind: str, group_size: int, kv_dtype: str) -> None:
    """As close to the CPU as rounding leaves it; the next tokens read what it appended."""
    weights, ids = weights_of(kind, group_size), prompt(145)
    model, cpu = on_device(weights, kv_dtype), core_model(weights, kv_dtype)
    assert_close(run(cpu, ids[:140]), run(model, ids[:140]))
    assert_close(run(cpu, ids[140:], start=140), run(model, ids[140:], start=140))


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
@pytest.mark.parametrize("n", [33, 300])
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


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "f32"])
@pytest.mark.parametrize("n", [1, pytest.param(3, marks=pytest.mark.slow), 40])
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
    for n in (1, 3, 40):
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
        ids = cpu.tokenizer.encode(f"{PROMPT} {PROMPT}")
        n = len(ids)
        assert n > 32  # which is prefill
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
