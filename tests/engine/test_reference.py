"""The engine against the float64 reference: greedy text and logits on trained models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llama2q
from builders import core_model, ints, run, step
from contract import ContractOps
from llama2q import _core
from philox import uniform
from reference import Forward
from reference_weights import load_l2q, load_meta
from strategies import assert_same_bits, assert_within
from tolerances import end_to_end

BOS, EOS = 1, 2
MODELS = ("mini", "stories260K")


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """Folder of a trained model in Meta's form."""
    if request.param == "mini":
        return request.getfixturevalue("mini_checkpoint")
    return request.getfixturevalue("shared_dir") / "checkpoints" / request.param


@pytest.fixture(scope="module")
def greedy_200(checkpoint: Path) -> list[int]:
    """The reference's 200 most likely tokens after BOS."""
    return Forward(load_meta(checkpoint)).greedy([BOS], 200)


@pytest.fixture(scope="module")
def exact_f32(checkpoint: Path, greedy_200: list[int]) -> tuple[np.ndarray, float]:
    """The reference's logits of that text, and their tolerance, with an f32 cache."""
    return end_to_end(load_meta(checkpoint), np.array([BOS, *greedy_200]))


def core_greedy(model: _core.Model, prompt: list[int], n: int) -> list[int]:
    """Greedy continuation by single steps and the core's sampler."""
    table = list(range(-(-(len(prompt) + n) // _core.BLOCK_SIZE)))
    new: list[int] = []
    logits = step(model, [(prompt, 0, table)])[0][-1:]
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    for _ in range(n):
        token = _core.sample(
            logits.copy(), zero, one, ints([0]), zero, np.zeros(1, np.uint64), ints([0]), ints([0])
        )
        new.append(int(token[0]))
        logits = step(model, [(new[-1:], len(prompt) + len(new) - 1, table)])[0]
    return new


def test_greedy_text(checkpoint: Path, greedy_200: list[int]) -> None:
    assert core_greedy(core_model(load_meta(checkpoint)), [BOS], 200) == greedy_200


def test_logits(
    checkpoint: Path, greedy_200: list[int], exact_f32: tuple[np.ndarray, float]
) -> None:
    exact, tolerance = exact_f32
    logits = run(core_model(load_meta(checkpoint)), [BOS, *greedy_200])
    assert_within(logits, exact, np.array(tolerance))


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
def test_logits_with_a_rounded_cache(
    checkpoint: Path, greedy_200: list[int], kv_dtype: str
) -> None:
    weights, ids = load_meta(checkpoint), [BOS, *greedy_200[:60]]
    exact, tolerance = end_to_end(weights, np.array(ids), kv_dtype)
    assert_within(run(core_model(weights, kv_dtype), ids), exact, np.array(tolerance))


def test_converted_unquantized(
    checkpoint: Path, greedy_200: list[int], exact_f32: tuple[np.ndarray, float], tmp_path: Path
) -> None:
    """The whole way: Meta's folder, the file, load, generate and logits."""
    path = tmp_path / "model.l2q"
    llama2q.convert(checkpoint, path, quant="none")
    expected = greedy_200[: greedy_200.index(EOS)] if EOS in greedy_200 else greedy_200
    exact, tolerance = exact_f32
    with llama2q.load(path, n_ctx=256, kv_dtype="f32") as llm:
        completion = llm.generate([BOS], temperature=0.0, max_tokens=200)
        assert list(completion.token_ids)[: len(expected)] == expected
        assert completion.text == llm.tokenizer.decode(expected)
        logits = llm.logits([BOS, *greedy_200])
    assert_within(logits, exact, np.array(tolerance))


def test_text_prompt_gets_bos(mini_checkpoint: Path, convert_mini: Callable[..., Path]) -> None:
    from sentencepiece import SentencePieceProcessor

    tokenizer = SentencePieceProcessor(model_file=str(mini_checkpoint / "tokenizer.model"))
    prompt = [BOS, *tokenizer.encode("The river")]
    expected = Forward(load_meta(mini_checkpoint)).greedy(prompt, 30)
    assert EOS not in expected
    with llama2q.load(convert_mini(quant="none"), n_ctx=128, kv_dtype="f32") as llm:
        completion = llm.generate("The river", temperature=0.0, max_tokens=30)
    assert list(completion.token_ids) == expected


def reference_sample(logits: np.ndarray, temperature: float, top_p: float, u: float) -> int:
    """Meta's top-p sampling in float64, from the most likely token down, ties by id."""
    mass = np.exp((logits - logits.max()) / temperature)
    order = np.lexsort((np.arange(len(mass)), -mass))
    total = np.cumsum(mass[order])
    kept = total - mass[order] <= top_p * total[-1]
    return int(order[np.searchsorted(total, u * total[kept][-1], side="right")])


def test_sampled_text(mini_checkpoint: Path, convert_mini: Callable[..., Path]) -> None:
    """The draw of each token is Philox at the position that it will have."""
    seed, n, prompt = 2**40 + 7, 60, [BOS, 300, 17]
    forward, expected = Forward(load_meta(mini_checkpoint)), []
    logits = forward.step(np.array(prompt))
    for position in range(len(prompt), len(prompt) + n):
        token = reference_sample(logits[-1], 0.8, 0.9, uniform(seed, 0, position))
        expected.append(token)
        logits = forward.step(np.array([token]))
    assert EOS not in expected
    with llama2q.load(convert_mini(quant="none"), n_ctx=128, kv_dtype="f32") as llm:
        found = llm.generate(prompt, temperature=0.8, top_p=0.9, seed=seed, max_tokens=n)
    assert list(found.token_ids) == expected


@pytest.mark.parametrize(
    ("quant", "group_size", "grid", "kv_dtype"),
    [
        ("int8", 64, "nonuniform", "f32"),
        ("int8", 32, "nonuniform", "int8"),
        ("int4", 64, "nonuniform", "f16"),
        ("int4", 32, "uniform", "f32"),
        ("int4", 128, "nonuniform", "int8"),
    ],
)
def test_quantized_logits(
    convert_mini: Callable[..., Path], quant: str, group_size: int, grid: str, kv_dtype: str
) -> None:
    """Against a reference that takes the file's codes and scales, and rounds activations."""
    path = convert_mini(quant=quant, group_size=group_size, grid=grid)
    weights = load_l2q(path)
    ids = [BOS, *np.random.default_rng(1).integers(3, weights.shape.vocab_size, 49).tolist()]
    exact, tolerance = end_to_end(weights, np.array(ids), kv_dtype)
    with llama2q.load(path, n_ctx=128, kv_dtype=kv_dtype) as llm:
        assert_within(llm.logits(ids), exact, np.array(tolerance))


@pytest.mark.parametrize(
    ("quant", "grid", "kv_dtype"),
    [("int4", "nonuniform", "f16"), ("int4", "uniform", "int8"), ("int8", "nonuniform", "f32")],
)
def test_quantized_logits_to_the_bit(
    convert_mini: Callable[..., Path], quant: str, grid: str, kv_dtype: str
) -> None:
    """The numeric contract over the file's own codes and scales, read without the package."""
    path = convert_mini(quant=quant, grid=grid)
    ids = [BOS, 300, 17, 4095, 17, 2000]
    expected = Forward(load_l2q(path), ContractOps(), kv_dtype).step(np.array(ids))
    with llama2q.load(path, n_ctx=64, kv_dtype=kv_dtype) as llm:
        assert_same_bits(llm.logits(ids), expected)


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_quantized_file_holds_what_the_checkpoint_rounds_to(
    mini_checkpoint: Path, convert_mini: Callable[..., Path], quant: str
) -> None:
    """Every weight lies within half a step of its grid: nothing is shifted or swapped."""
    original, stored = load_meta(mini_checkpoint), load_l2q(convert_mini(quant=quant))
    assert stored.matrices.keys() == original.matrices.keys()
    for name, matrix in stored.matrices.items():
        exact = original.matrices[name].float64
        scales = np.repeat(np.abs(matrix.scales.astype(np.float64)), matrix.group_size, axis=1)
        # int8: half a step; nonuniform int4: half the widest gap (24), or 14 past the end at 113.
        widest = 0.5 if matrix.grid is None else 14.0
        # The f16 scale is off by at most 2^-11 of itself, so an end by 127 * 2^-11 steps.
        slack = 127 * 2.0**-11
        limit = scales[:, : exact.shape[1]] * (widest + slack)
        assert_within(matrix.float64, exact, limit)
    for name, norm in stored.norms.items():
        assert (norm == original.norms[name]).all()
