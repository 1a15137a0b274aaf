"""Both protocols against their definitions, written out, with a model whose logits are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fake_model import FakeLlama, by_hash
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.evaluate.perplexity import negative_log_likelihood, perplexity

VOCAB = 4096
TEXT = "It was the best of times, it was the worst of times. " * 500


def nll_of(history: list[int], target: int) -> float:
    """-log softmax of the known logits after a history."""
    logits = by_hash(VOCAB)(tuple(history)).astype(np.float64)
    return float(np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[target])


def test_llama_cpp_protocol(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    result = perplexity(llm, TEXT, protocol="llama.cpp", n_chunks=2)
    tokens = llm.tokenizer.encode(TEXT)
    expected = []
    for chunk in (tokens[:512], [1, *tokens[513:1024]]):
        expected += [nll_of(chunk[: p + 1], chunk[p + 1]) for p in range(256, 511)]
    assert (result.n_chunks, result.n_tokens) == (2, 510)
    assert result.nll == pytest.approx(np.mean(expected), rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(np.mean(expected)), rel=1e-12)
    error = np.std(expected, ddof=1) / math.sqrt(510)
    assert result.standard_error == pytest.approx(result.perplexity * error, rel=1e-9)


def test_gptq_protocol(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    seen = []
    result = perplexity(
        llm,
        TEXT,
        protocol="gptq",
        n_chunks=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    tokens = llm.tokenizer.encode(TEXT)
    expected = []
    for chunk in (tokens[:2048], tokens[2048:4096]):
        expected += [nll_of(chunk[: p + 1], chunk[p + 1]) for p in range(2047)]
    assert (result.n_chunks, result.n_tokens) == (2, 4094)
    assert result.nll == pytest.approx(np.mean(expected), rel=1e-12)
    assert seen == [(1, 2), (2, 2)]


def test_all_chunks_of_a_text(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    tokens = llm.tokenizer.encode(TEXT)
    result = perplexity(llm, TEXT[: len(TEXT) // 3])
    assert result.n_chunks == len(llm.tokenizer.encode(TEXT[: len(TEXT) // 3])) // 512
    assert 0 < result.n_chunks < len(tokens) // 512


def test_errors(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama(n_ctx=1024)
    with pytest.raises(InvalidArgumentError, match=r"has \d+ tokens; protocol llama.cpp needs 512"):
        perplexity(llm, "too short")
    with pytest.raises(InvalidArgumentError, match=r"protocol is 'hf'; expected one of llama\.cpp"):
        perplexity(llm, TEXT, protocol="hf")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="n_chunks is 0"):
        perplexity(llm, TEXT, n_chunks=0)
    with pytest.raises(ContextLengthError, match="context of 2048 tokens; this one holds 1024"):
        perplexity(llm, TEXT, protocol="gptq")
    assert model.n_steps == 0


def test_nll_of_extreme_logits() -> None:
    logits = np.array([[0, 0, 0, 0], [3e4, 0, -3e4, 0]], np.float32)
    np.testing.assert_allclose(negative_log_likelihood(logits, [1, 0]), [math.log(4), 0.0])
    np.testing.assert_allclose(negative_log_likelihood(logits, [1, 2])[1], 6e4)
