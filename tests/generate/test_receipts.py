"""Receipts: what they hold, that they prove the same tokens, and that they prove no others."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2q
from llama2q import Completion, Llama, Receipt
from llama2q.errors import Llama2qError, ReceiptError
from llama2q.generate.receipt import CONTRACT_VERSION

SETTINGS: dict[str, Any] = {
    "temperature": 0.9,
    "top_p": 0.95,
    "top_k": 200,
    "min_p": 0.001,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.25,
    "frequency_penalty": -0.5,
    "logit_bias": {300: 1.5, 301: -math.inf},
    "min_tokens": 3,
    "ignore_eos": True,
    "max_tokens": 24,
    "seed": 2**64 - 1,
}


def receipt_of(completion: Completion) -> Receipt:
    """Return the receipt as another machine would read it."""
    assert completion.receipt is not None
    receipt = Receipt.from_json(completion.receipt.to_json())
    assert receipt == completion.receipt
    return receipt


@pytest.fixture(scope="module")
def made(mini: Llama) -> Completion:
    return mini.generate("The king", **SETTINGS)


def test_what_it_holds(mini: Llama, made: Completion) -> None:
    receipt = receipt_of(made)
    data = b"".join(token.to_bytes(4, "little") for token in made.token_ids)
    assert receipt.output_sha256 == hashlib.sha256(data).hexdigest()
    assert receipt.model_id == mini.engine.file.model_id
    assert receipt.contract == CONTRACT_VERSION
    assert receipt.kv_dtype == mini.engine.kv_dtype
    assert receipt.prompt_ids == tuple(mini.tokenizer.encode("The king"))
    assert (receipt.seed, receipt.index, receipt.n_tokens) == (2**64 - 1, 0, len(made.token_ids))
    for name, value in SETTINGS.items():
        if name != "seed":
            assert getattr(receipt.sampling, name) == value


def test_the_prompt_is_not_in_the_repr(made: Completion) -> None:
    assert "prompt_ids" not in repr(made)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_replay_proves(made: Completion, mini_file: Path, n_threads: int) -> None:
    result = llama2q.replay(receipt_of(made), mini_file, n_threads=n_threads)
    assert result.proven
    assert result.token_ids == made.token_ids
    assert result.text == made.text


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0, "max_tokens": 12},
        {"seed": 4, "stop": ["e"], "max_tokens": 60},
        {"seed": 4, "stop": ["th", "\n"], "min_tokens": 9, "max_tokens": 60},
        {"seed": 11, "max_tokens": 400},
        {"seed": 5, "stop_token_ids": [13], "max_tokens": 100},
        {"seed": 6, "echo": True, "logprobs": 2, "prompt_logprobs": 1, "max_tokens": 7},
    ],
)
def test_every_end(mini: Llama, mini_file: Path, settings: dict[str, Any]) -> None:
    completion = mini.generate("Once upon a time", **settings)
    assert llama2q.replay(receipt_of(completion), mini_file).differences == ()


def test_samples_of_one_prompt(mini: Llama, mini_file: Path) -> None:
    samples = mini.generate("The king", n=3, seed=8, max_tokens=15).samples
    assert len({sample.token_ids for sample in samples}) == 3
    for sample in samples:
        receipt = receipt_of(sample)
        assert receipt.index == sample.index
        assert llama2q.replay(receipt, mini_file).token_ids == sample.token_ids


def test_the_end_of_the_context(mini_file: Path) -> None:
    """The limit that held is in the receipt, so the other side needs no equal n_ctx."""
    with llama2q.load(mini_file, n_ctx=20) as llm:
        completion = llm.generate("The king", seed=3, min_tokens=1000)
    receipt = receipt_of(completion)
    assert completion.finish_reason == "length"
    assert receipt.sampling.max_tokens == receipt.n_tokens == 20 - len(receipt.prompt_ids)
    assert llama2q.replay(receipt, mini_file).proven


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
def test_kv_dtype_is_that_of_the_run(mini_file: Path, kv_dtype: Any) -> None:
    with llama2q.load(mini_file, kv_dtype=kv_dtype) as llm:
        completion = llm.generate("Once upon a time", seed=3, max_tokens=20)
    receipt = receipt_of(completion)
    assert receipt.kv_dtype == kv_dtype
    assert llama2q.replay(receipt, mini_file).proven


@pytest.mark.parametrize("n_chunks", [0, 3])
def test_a_closed_stream(mini: Llama, mini_file: Path, n_chunks: int) -> None:
    with mini.stream("Once upon a time", seed=2, max_tokens=50) as stream:
        for _ in range(n_chunks):
            next(stream)
    completion = stream.completion
    receipt = receipt_of(completion)
    assert receipt.finish_reason == "abort"
    result = llama2q.replay(receipt, mini_file)
    assert result.proven
    assert result.token_ids == completion.token_ids


def test_logits_processors_leave_none(mini: Llama) -> None:
    completion = mini.generate("The king", max_tokens=2, logits_processors=[lambda ids, x: x])
    assert completion.receipt is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 5}, "tokens"),
        ({"index": 1}, "tokens"),
        ({"prompt_ids": (1, 450, 450)}, "tokens"),
        ({"output_sha256": "0" * 64}, "tokens"),
        ({"n_tokens": 23}, "tokens"),
        ({"finish_reason": "stop"}, "end"),
    ],
)
def test_what_differs_is_said(
    made: Completion, mini_file: Path, change: dict[str, Any], word: str
) -> None:
    result = llama2q.replay(replace(receipt_of(made), **change), mini_file)
    assert not result.proven
    assert any(difference.startswith(word) for difference in result.differences)


def test_a_cut_output_is_found(made: Completion, mini_file: Path) -> None:
    """A receipt of the first tokens alone, with their right hash, hides that more follow."""
    data = np.array(made.token_ids[:10], "<i4").tobytes()
    cut = replace(
        receipt_of(made),
        n_tokens=10,
        finish_reason="stop",
        output_sha256=hashlib.sha256(data).hexdigest(),
    )
    assert [d[:6] for d in llama2q.replay(cut, mini_file).differences] == ["length"]


def test_another_model(made: Completion, convert_mini: Callable[..., Path]) -> None:
    with pytest.raises(ReceiptError, match="is of the model"):
        llama2q.replay(receipt_of(made), convert_mini(quant="int8"))


def test_another_contract(made: Completion, mini_file: Path) -> None:
    with pytest.raises(ReceiptError, match="version 99 of the numeric contract"):
        llama2q.replay(replace(receipt_of(made), contract=99), mini_file)


def test_a_gpu_took_part(made: Completion, mini_file: Path) -> None:
    with pytest.raises(ReceiptError, match="GPU"):
        llama2q.replay(replace(receipt_of(made), contract=None), mini_file)


def test_settings_outside_the_vocabulary(made: Completion, mini_file: Path) -> None:
    receipt = replace(receipt_of(made), prompt_ids=(1, 2**31 - 1))
    with pytest.raises(Llama2qError, match="outside the vocabulary"):
        llama2q.replay(receipt, mini_file)


BROKEN: list[tuple[str, Any, str]] = [
    ("format", "other", "not a receipt"),
    ("version", 2, "version 2"),
    ("model_id", "A" * 64, "64 hex digits"),
    ("contract", True, "contract"),
    ("contract", 0, "contract"),
    ("kv_dtype", "f64", "kv_dtype"),
    ("kv_dtype", ["f32"], "kv_dtype"),
    ("rope", [], "rope"),
    ("rope", {"scaling": "linear"}, "rope"),
    ("rope", {"scaling": ["none"]}, "rope"),
    ("prompt_ids", [], "prompt_ids"),
    ("prompt_ids", [1.0], "prompt_ids"),
    ("prompt_ids", [-1], "prompt_ids"),
    ("sampling", {}, "sampling"),
    ("seed", -1, "seed"),
    ("seed", 2**64, "seed"),
    ("index", None, "index"),
    ("n_tokens", 25, "n_tokens"),
    ("finish_reason", "end", "finish_reason"),
    ("output_sha256", 5, "64 hex digits"),
]
BROKEN_SAMPLING: list[tuple[str, Any, str]] = [
    ("temperature", -1.0, "temperature"),
    ("temperature", "1", "temperature"),
    ("max_tokens", None, "max_tokens"),
    ("logit_bias", {"300": 1.5}, "logit_bias"),
    ("logit_bias", [[300, "inf"]], "logit_bias"),
    ("logit_bias", [[300, 1.0], [300, 2.0]], "twice"),
    ("logit_bias", [[[300], 1.0]], "logit_bias"),
    ("stop", "e", "stop"),
    ("stop", [""], "stop"),
    ("stop_token_ids", [True], "stop_token_ids"),
]


@pytest.mark.parametrize(("name", "value", "word"), BROKEN)
def test_broken_values(made: Completion, name: str, value: Any, word: str) -> None:
    values = {**receipt_of(made).to_dict(), name: value}
    with pytest.raises(ReceiptError, match=word):
        Receipt.from_json(json.dumps(values))


@pytest.mark.parametrize(("name", "value", "word"), BROKEN_SAMPLING)
def test_broken_sampling(made: Completion, name: str, value: Any, word: str) -> None:
    values = receipt_of(made).to_dict()
    values["sampling"][name] = value
    with pytest.raises(ReceiptError, match=word):
        Receipt.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "{}", "{", '{"format": 1, "format": 1}', "[" * 100000, '{"a": NaN}']
)
def test_what_is_no_receipt(text: str) -> None:
    with pytest.raises(ReceiptError):
        Receipt.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(data=st.data())
def test_hostile_values(made: Completion, data: st.DataObject) -> None:
    """Whatever stands in one place: it is read, or refused by name."""
    values = receipt_of(made).to_dict()
    place = data.draw(st.sampled_from([values, values["sampling"], values["rope"]]))
    key = data.draw(st.sampled_from([*place, "other"]))
    place[key] = data.draw(JSON)
    try:
        receipt = Receipt.from_json(json.dumps(values))
    except ReceiptError:
        return
    assert Receipt.from_json(receipt.to_json()) == receipt
