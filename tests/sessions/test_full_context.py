"""A full context: an output stops there, or the session slides on."""

from __future__ import annotations

import numpy as np
import pytest

from fake_model import FakeLlama, by_hash
from llama2q.errors import ContextLengthError

VOCAB = 4096


def test_stop_when_full(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama(n_ctx=128)
    with llm.session() as session:
        result = session.generate([1] * 100, seed=1)
        assert (result.finish_reason, len(result.token_ids)) == ("length", 28)
        for call in (session.generate, session.append):
            with pytest.raises(ContextLengthError):
                call([5])
        assert len(session) == 128
        session.rewind(100)
        assert session.generate(seed=1).token_ids == result.token_ids
        assert result.receipt is not None


def test_slide_when_full(fake_llama: FakeLlama) -> None:
    """What follows a slide is what the model says to the tokens that remained."""
    llm, _ = fake_llama(n_ctx=128)
    with llm.session(when_full="slide", keep=3) as session:
        ids = [1, 2, 3, *range(10, 110)]
        result = session.generate(ids, temperature=0, max_tokens=200)
        assert (result.finish_reason, len(result.token_ids)) == ("length", 200)
        expected: list[int] = []
        window = ids
        logits_of = by_hash(VOCAB)
        for _ in range(200):
            if len(window) == 129:
                window = window[:3] + window[-61:]
            expected.append(int(np.argmax(logits_of(tuple(window)))))
            window = [*window, expected[-1]]
        assert list(result.token_ids) == expected
        assert result.receipt is None, "what was left behind cannot be computed again"
        assert session.token_ids == tuple(window)


def test_append_slides(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama(n_ctx=128)
    with llm.session(when_full="slide", keep=1) as session:
        session.append([1, *range(10, 110)])
        found = session.append(list(range(200, 240)))
        remaining = (1, *range(87, 110), *range(200, 240))
        assert session.token_ids == remaining
        assert np.array_equal(found, by_hash(VOCAB)(remaining))
        long = list(range(300, 400))
        session.append(long)
        assert session.token_ids == (1, *long)
        with pytest.raises(ContextLengthError, match="128 new tokens and the 1 that are kept"):
            session.append([5] * 128)
        assert session.token_ids == (1, *long)


def test_draws_differ_after_a_slide(fake_llama: FakeLlama) -> None:
    """A position stands for one draw, also where the context has slid."""

    def flat(history: tuple[int, ...]) -> np.ndarray:
        row = np.full(VOCAB, -np.inf, np.float32)
        row[100:4000] = 0.0
        return row

    llm, _ = fake_llama(flat, n_ctx=64)
    with llm.session(when_full="slide") as session:
        tokens = session.generate([1], temperature=1.0, top_p=1.0, seed=3, max_tokens=300).token_ids
    roomy, _ = fake_llama(flat, n_ctx=512)
    assert (
        tokens == roomy.generate([1], temperature=1.0, top_p=1.0, seed=3, max_tokens=300).token_ids
    )
