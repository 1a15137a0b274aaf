"""Contexts beyond the training: frequencies and whole steps against the float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from builders import TINY, core_model, random_weights, run
from contract import ContractOps
from llama2q import ModelConfig, _core
from llama2q.errors import InvalidArgumentError
from llama2q.format.rope import attention_factor, inv_freq
from llama2q.rope_scaling import RopeScaling, choose_rope
from reference import Forward, Rope, linear_rope, ntk_rope, yarn_rope
from reference_weights import load_meta
from strategies import assert_same_bits, assert_within
from tolerances import end_to_end

ORIGINAL = 4096
NONE = RopeScaling()
CONFIG = ModelConfig(
    dim=512, hidden_dim=512, n_layers=1, n_heads=4, n_kv_heads=4, vocab_size=32, norm_eps=1e-5
)


def scaling(kind: Any, factor: float, **more: Any) -> RopeScaling:
    return RopeScaling(scaling=kind, factor=factor, original_max_seq_len=ORIGINAL, **more)


def reference(kind: str, head_dim: int, theta: float, factor: float) -> Rope:
    if kind == "linear":
        return linear_rope(head_dim, theta, factor)
    if kind == "ntk":
        return ntk_rope(head_dim, theta, factor)
    return yarn_rope(head_dim, theta, factor, ORIGINAL)


# --- frequencies ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0, 16.0, 1000.0])
@pytest.mark.parametrize(("head_dim", "theta"), [(128, 1e4), (64, 1e6), (8, 1e4)])
def test_frequencies(kind: str, factor: float, head_dim: int, theta: float) -> None:
    """float64's pow is off by an ulp of an exponent of at most 20: 20 * 2^-52, a few times."""
    ours = scaling(kind, factor)
    exact = reference(kind, head_dim, theta, factor)
    np.testing.assert_allclose(inv_freq(theta, head_dim, ours), exact.inv_freq, rtol=2e-14, atol=0)
    assert attention_factor(ours) == pytest.approx(exact.factor, rel=1e-15)


def test_yarn_of_llama_2_by_hand() -> None:
    """head_dim 128, theta 10000, 4096 tokens, factor 16: the ramp goes from pair 20 to pair 46."""
    plain = inv_freq(1e4, 128)
    yarn = inv_freq(1e4, 128, scaling("yarn", 16.0))
    np.testing.assert_array_equal(yarn[:21], plain[:21])
    np.testing.assert_array_equal(yarn[46:], plain[46:] / 16)
    np.testing.assert_allclose(yarn[33], plain[33] * (0.5 + 0.5 / 16), rtol=1e-15)
    turns = ORIGINAL * plain / (2 * np.pi)
    assert turns[20] > 32 > turns[21]
    assert turns[45] > 1 > turns[46]


def test_the_slowest_pair_of_ntk_is_interpolated() -> None:
    """The base is chosen so that the last pair turns factor times slower, the first as before."""
    ntk, plain = inv_freq(1e4, 128, scaling("ntk", 8.0)), inv_freq(1e4, 128)
    assert ntk[0] == plain[0] == 1.0
    assert ntk[-1] == pytest.approx(plain[-1] / 8, rel=1e-15)


def test_yarn_parameters() -> None:
    own = scaling("yarn", 16.0, attention_factor=0.75, beta_fast=16.0, beta_slow=2.0)
    exact = yarn_rope(128, 1e4, 16.0, ORIGINAL, 16, 2)
    np.testing.assert_allclose(inv_freq(1e4, 128, own), exact.inv_freq, rtol=2e-14, atol=0)
    assert attention_factor(own) == 0.75
    smooth = inv_freq(1e4, 128, scaling("yarn", 16.0, truncate=False))
    assert (np.diff(smooth) < 0).all()
    assert not np.array_equal(smooth, inv_freq(1e4, 128, scaling("yarn", 16.0)))


@pytest.mark.parametrize("original", [1, 2, 7, 40])
def test_yarn_of_a_tiny_context(original: int) -> None:
    own = RopeScaling(scaling="yarn", factor=4.0, original_max_seq_len=original)
    exact = yarn_rope(8, 1e4, 4.0, original)
    ours = inv_freq(1e4, 8, own)
    assert ((ours > 0) & (ours <= 1)).all()
    if original > 6:  # below 2 pi the ramp ends before the first pair
        np.testing.assert_allclose(ours, exact.inv_freq, rtol=2e-14, atol=0)


def test_dynamic_is_ntk_of_the_context() -> None:
    """Hugging Face's formula: alpha = factor * n / original - (factor - 1), from n > original."""
    own = scaling("dynamic", 2.0)
    assert own.fixed(ORIGINAL) == NONE
    assert own.fixed(3 * ORIGINAL) == scaling("ntk", 5.0)
    np.testing.assert_array_equal(inv_freq(1e4, 128, own), inv_freq(1e4, 128))


# --- whole steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
@pytest.mark.parametrize("isa", _core.isas())
def test_step_is_the_contract(kind: str, isa: str) -> None:
    weights = random_weights(TINY, "int4")
    rope = reference(kind, TINY.head_dim, TINY.rope_theta, 4.0)
    ids = np.random.default_rng(3).integers(0, TINY.vocab_size, 70)
    expected = Forward(weights, ContractOps(), rope=rope).step(ids)
    model = core_model(weights, isa=isa, rope=rope)
    assert_same_bits(run(model, ids.tolist()), expected)
    assert not np.array_equal(run(core_model(weights, isa=isa), ids.tolist()), expected)


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_logits_of_the_demo_model(kind: str, mini_checkpoint: Path, tmp_path: Path) -> None:
    """The whole way: file, load with rope_scaling, logits, within the reference's tolerance."""
    path = tmp_path / "model.l2q"
    llama2q.convert(mini_checkpoint, path, quant="none")
    weights = load_meta(mini_checkpoint)
    shape = weights.shape
    rope = reference(kind, shape.head_dim, shape.rope_theta, 4.0)
    with llama2q.load(
        path, kv_dtype="f32", n_ctx=128, rope_scaling={"type": kind, "factor": 4}
    ) as llm:
        assert llm.config.max_seq_len == ORIGINAL
        ids = llm.tokenizer.encode("Once upon a time there was a king who had three sons.")
        logits = llm.logits(ids)
    exact, tolerance = end_to_end(weights, np.array(ids), rope=rope)
    assert_within(logits, exact, np.array(tolerance))
    assert np.abs(logits - Forward(weights).step(np.array(ids))).max() > 10 * tolerance


# --- load -------------------------------------------------------------------------------------


def test_contexts(mini_file: Path) -> None:
    def loaded(**options: Any) -> tuple[int, RopeScaling]:
        with llama2q.load(mini_file, kv_dtype="int8", **options) as llm:
            return llm.n_ctx, llm.engine.plan.rope

    assert loaded(rope_scaling={"type": "linear", "factor": 2}) == (8192, scaling("linear", 2.0))
    assert loaded(rope_scaling="ntk", n_ctx=12288) == (12288, scaling("ntk", 3.0))
    assert loaded(rope_scaling="yarn", n_ctx=100) == (100, scaling("yarn", 1.0))
    assert loaded(rope_scaling="none") == (4096, NONE)
    assert loaded() == (4096, NONE)
    asked = {"type": "yarn", "factor": 4.0, "beta_fast": 24, "attention_factor": 1.0}
    wanted = scaling("yarn", 4.0, beta_fast=24.0, attention_factor=1.0)
    assert loaded(rope_scaling=asked, n_ctx=5000) == (5000, wanted)
    plan = llama2q.plan(mini_file, n_ctx=8192, rope_scaling="linear")
    assert (plan.n_ctx, plan.rope) == (8192, scaling("linear", 2.0))
    assert plan.to_dict()["rope"] == scaling("linear", 2.0).to_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_ctx": 4097}, "rope_scaling="),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "n_ctx": 8193}, "8192 tokens"),
        ({"rope_scaling": "linear"}, "n_ctx"),
        ({"rope_scaling": "longrope", "n_ctx": 99}, "longrope"),
        ({"rope_scaling": {"factor": 2.0}}, "type"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 8}}, "YaRN"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_slow": 64}}, "beta_slow"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "alpha": 64}}, "alpha"),
        ({"rope_scaling": {"type": "none", "factor": 2.0}}, "none"),
        ({"rope_scaling": {"type": ["yarn"], "factor": 2.0}}, "type"),
        ({"rope_scaling": 2}, "rope_scaling"),
    ],
)
def test_refused(mini_file: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        llama2q.load(mini_file, **options)


def test_a_files_own_scaling() -> None:
    """It acts unless another is asked for, whose original context is then the file's original."""
    own = scaling("linear", 4.0)
    config = ModelConfig.from_dict({**CONFIG.to_dict(), "max_seq_len": 16384})
    assert choose_rope(None, own, config, None) == (own, 16384)
    assert choose_rope("none", own, config, None) == (NONE, ORIGINAL)
    assert choose_rope("yarn", own, config, 8192) == (scaling("yarn", 2.0), 8192)
    dynamic = scaling("dynamic", 2.0)
    assert choose_rope(None, dynamic, CONFIG, None) == (NONE, ORIGINAL)
    assert choose_rope(None, dynamic, CONFIG, 8192) == (scaling("ntk", 3.0), 8192)
    with pytest.raises(InvalidArgumentError, match="8192 tokens at most"):
        choose_rope(None, dynamic, CONFIG, 8193)


def test_receipts_hold_it(mini_file: Path) -> None:
    with llama2q.load(mini_file, n_ctx=8192, kv_dtype="int8", rope_scaling="ntk") as llm:
        completion = llm.generate("The king", seed=1, max_tokens=30)
    with llama2q.load(mini_file, kv_dtype="int8") as llm:
        assert llm.generate("The king", seed=1, max_tokens=30).token_ids != completion.token_ids
    assert completion.receipt is not None
    assert completion.receipt.rope == scaling("ntk", 2.0)
    assert llama2q.replay(completion.receipt, mini_file).proven
