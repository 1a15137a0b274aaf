"""Meta's interface: signatures, forms of results, and what they hold."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

import llama2q
from chat.dialogues import dialog
from chat.meta_reference import meta_prompt
from fake_model import FakeLlama, by_hash, scripted
from llama2q.compat import meta
from llama2q.errors import (
    ContextLengthError,
    InvalidArgumentError,
    Llama2qError,
    MessagesError,
    TokenizerError,
)

EOS = 2
VOCAB = 4096
DIALOGS: Any = [
    dialog("Be brief.", " Hello? ", "Hi. ", "Who are you?"),
    dialog(None, "Tell me a story."),
]


@pytest.fixture(scope="module")
def tokenizer_path(mini_checkpoint: Path) -> Path:
    return mini_checkpoint / "tokenizer.model"


@pytest.fixture(scope="module")
def sentence_piece(tokenizer_path: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(tokenizer_path))


@pytest.fixture(scope="module")
def generator(mini_file: Path, tokenizer_path: Path) -> Iterator[meta.Llama]:
    with meta.Llama.build(str(mini_file), str(tokenizer_path), 512, 4) as llm:
        yield llm


def test_signatures_are_metas() -> None:
    def parameters(function: Any) -> list[tuple[str, Any]]:
        found = inspect.signature(function).parameters
        return [(name, p.default) for name, p in found.items() if name != "self"]

    none = inspect.Parameter.empty
    assert parameters(meta.Llama.build) == [
        ("ckpt_dir", none), ("tokenizer_path", none), ("max_seq_len", none),
        ("max_batch_size", none), ("model_parallel_size", None), ("seed", 1),
    ]  # fmt: skip
    sampling = [("temperature", 0.6), ("top_p", 0.9)]
    length, logprobs = ("max_gen_len", None), ("logprobs", False)
    echo = ("echo", False)
    assert parameters(meta.Llama.text_completion) == [
        ("prompts", none), *sampling, length, logprobs, echo,
    ]  # fmt: skip
    assert parameters(meta.Llama.chat_completion) == [
        ("dialogs", none), *sampling, length, logprobs,
    ]  # fmt: skip
    assert parameters(meta.Llama.generate) == [
        ("prompt_tokens", none), ("max_gen_len", none), *sampling, logprobs, echo,
    ]  # fmt: skip


def greedy(llm: meta.Llama, prompt: list[int], n: int) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities of the whole text, from logits alone."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(llm.model.logits(ids)[-1].argmax()))
        if ids[-1] == EOS:
            break
    rows = llm.model.logits(ids)[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    values = [0.0, *rows[np.arange(len(rows)), ids[1:]].tolist()]
    end = len(ids) - (ids[-1] == EOS)
    return ids[:end], values[:end]


# A log-probability is the difference of two float32 of magnitude below 32: half a unit in the last
# place, 1e-6, for each rounding.
CLOSE = {"abs": 4e-6}


@pytest.mark.parametrize("echo", [False, True])
def test_text_completion(
    generator: meta.Llama, sentence_piece: SentencePieceProcessor, echo: bool
) -> None:
    prompts = ["Once upon a time", "The king", ""]
    plain = generator.text_completion(prompts, temperature=0, max_gen_len=8, echo=echo)
    detailed = generator.text_completion(prompts, 0, 0.9, 8, True, echo)
    for prompt, short, result in zip(prompts, plain, detailed, strict=True):
        ids = [1, *sentence_piece.encode(prompt)]
        tokens, values = greedy(generator, ids, 8)
        start = 0 if echo else len(ids)
        assert short == {"generation": sentence_piece.decode(tokens[start:])}
        assert result["generation"] == short["generation"]
        assert result["tokens"] == [sentence_piece.decode([token]) for token in tokens[start:]]
        assert result["logprobs"] == pytest.approx(values[start:], **CLOSE)


def test_chat_completion(generator: meta.Llama, sentence_piece: SentencePieceProcessor) -> None:
    plain = generator.chat_completion(DIALOGS, temperature=0, max_gen_len=6)
    detailed = generator.chat_completion(DIALOGS, 0, 0.9, 6, True)
    for messages, short, result in zip(DIALOGS, plain, detailed, strict=True):
        ids = meta_prompt(sentence_piece, messages)
        tokens, values = greedy(generator, ids, 6)
        content = sentence_piece.decode(tokens[len(ids) :])
        assert short == {"generation": {"role": "assistant", "content": content}}
        assert result["generation"] == short["generation"]
        assert result["tokens"] == [sentence_piece.decode([t]) for t in tokens[len(ids) :]]
        assert result["logprobs"] == pytest.approx(values[len(ids) :], **CLOSE)


def test_tags_give_metas_error_as_content(generator: meta.Llama) -> None:
    dialogs: Any = [dialog("<<SYS>>", "a"), dialog(None, "a"), dialog(None, "a", "[/INST]", "b")]
    results = generator.chat_completion(dialogs, max_gen_len=2)
    contents = [result["generation"]["content"] for result in results]
    unsafe = "Error: special tags are not allowed as part of the prompt."
    assert [content == unsafe for content in contents] == [True, False, True]


def test_generate_ends_before_eos(fake_llama: FakeLlama) -> None:
    generator = meta.Llama(fake_llama(scripted([7, 8, EOS, 9], 3, VOCAB))[0], 2)
    assert generator.generate([[1, 5, 6]], 10, temperature=0) == ([[7, 8]], None)
    assert generator.generate([[1, 5, 6]], 1, temperature=0) == ([[7]], None)
    assert generator.generate([[1, 5, 6]], 0, temperature=0, logprobs=True) == ([[]], [[]])
    assert generator.generate([[1, 5, 6]], 0, temperature=0, echo=True) == ([[1, 5, 6]], None)
    # With echo, an EOS of the prompt ends it too.
    tokens, values = generator.generate([[1, EOS, 6]], 3, temperature=0, logprobs=True, echo=True)
    assert (tokens, values) == ([[1]], [[0.0]])


def test_seeds(fake_llama: FakeLlama) -> None:
    model, _ = fake_llama(by_hash(VOCAB))
    settings = {"temperature": 1.0, "top_p": 1.0}

    def run(seed: int) -> list[list[int]]:
        generator = meta.Llama(model, 2, seed)
        calls = [generator.generate([[1, 5], [1, 5]], 8, **settings)[0] for _ in range(2)]
        return calls[0] + calls[1]

    first = run(1)
    assert run(1) == first
    assert run(2) != first
    assert len({tuple(tokens) for tokens in first}) == 4


def test_no_length_given_fills_the_context(fake_llama: FakeLlama) -> None:
    generator = meta.Llama(fake_llama(n_ctx=64)[0], 1)
    (tokens,), _ = generator.generate([[1] * 60], 100)
    assert len(tokens) == 4
    (result,) = generator.text_completion([""], logprobs=True)
    assert len(result["tokens"]) == 63


def test_faults(fake_llama: FakeLlama) -> None:
    generator = meta.Llama(fake_llama(n_ctx=64)[0], 1)
    cases: list[tuple[type[Llama2qError], str, Any]] = [
        (InvalidArgumentError, "2 prompts; max_batch_size is 1",
         lambda: generator.text_completion(["a", "b"])),
        (InvalidArgumentError, "prompts is a str", lambda: generator.text_completion("a")),
        (InvalidArgumentError, "max_gen_len is -1",
         lambda: generator.text_completion(["a"], max_gen_len=-1)),
        (InvalidArgumentError, "temperature is -1",
         lambda: generator.text_completion(["a"], temperature=-1)),
        (ContextLengthError, "the context holds 64", lambda: generator.generate([[1] * 64], 1)),
        (MessagesError, "there are no messages", lambda: generator.chat_completion([[]])),
        (MessagesError, "the last message has the role 'assistant'",
         lambda: generator.chat_completion([dialog(None, "a", "b")])),  # type: ignore[list-item]
    ]  # fmt: skip
    for kind, reason, call in cases:
        with pytest.raises(kind, match=reason):
            call()


def test_a_base_model_warns_in_chat_alone(
    fake_llama: FakeLlama, caplog: pytest.LogCaptureFixture
) -> None:
    generator = meta.Llama(fake_llama()[0], 2)
    with caplog.at_level(logging.WARNING):
        generator.text_completion(["a"], max_gen_len=1)
        assert not caplog.records
        generator.chat_completion(DIALOGS, max_gen_len=1)
        generator.chat_completion(DIALOGS, max_gen_len=1)
    assert [record.name for record in caplog.records] == ["llama2q.chat.model_chat"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"max_seq_len": 10**6}, r"n_ctx is 1000000; the model's context"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"max_batch_size": "4"}, "max_batch_size is '4'"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_build_refuses(
    mini_file: Path, tokenizer_path: Path, changes: dict[str, Any], reason: str
) -> None:
    arguments: dict[str, Any] = {"max_seq_len": 64, "max_batch_size": 1, "seed": 1} | changes
    with pytest.raises(InvalidArgumentError, match=reason):
        meta.Llama.build(mini_file, tokenizer_path, **arguments)


def test_another_tokenizer(mini_file: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.model"
    data = tokenizer_path.read_bytes()
    for content in (data[:-1] + bytes([data[-1] ^ 1]), b""):
        other.write_bytes(content)
        with pytest.raises(TokenizerError, match="is not the tokenizer that mini-int4"):
            meta.Llama.build(mini_file, other, 64, 1)
    with pytest.raises(TokenizerError, match=r"nowhere\.model cannot be read"):
        meta.Llama.build(mini_file, tmp_path / "nowhere.model", 64, 1)


def test_results_are_those_of_the_model(generator: meta.Llama, mini_file: Path) -> None:
    """With the seed that build's generator of seeds gives first, generate gives the same."""
    import random

    seed = random.Random(1).getrandbits(63)
    fresh = meta.Llama(generator.model, 1)
    (tokens,), _ = fresh.generate([generator.tokenizer.encode("The king")], 20)
    with llama2q.load(mini_file) as llm:
        assert tuple(tokens) == llm.generate("The king", seed=seed, max_tokens=20).token_ids
