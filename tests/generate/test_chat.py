"""Chat: the prompts that the model gets, where answers begin and end, base models."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from fake_model import FakeLlama, scripted
from llama2q import Completion, Llama, SamplingParams
from llama2q.chat import TEMPLATES, encode_chat
from llama2q.errors import ClosedError, ContextLengthError, InvalidArgumentError, MessagesError

VOCAB = 4096
EOS = 2
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello? "},
    {"role": "assistant", "content": "Hi. "},
    {"role": "user", "content": "Who are you?"},
]


def answering(
    fake_llama: FakeLlama, answer: str, template: str = "llama2-chat", *, end: bool = True
) -> tuple[Llama, list[int]]:
    """Make a model whose greedy answer to TALK is this text, after a piece that is one space."""
    tokenizer = fake_llama()[0].tokenizer
    space = tokenizer.id_of("▁")
    assert space is not None
    script = [space, *tokenizer.encode(answer, bos=False)]
    n_prompt = len(encode_chat(tokenizer, TALK, template=template))
    llm, _ = fake_llama(scripted([*script, *([EOS] if end else [])], n_prompt, VOCAB))
    return llm, script


def chat(llm: Llama, template: str = "llama2-chat", **sampling: Any) -> Completion:
    """Chat, and check that a stream gives the same."""
    settings = {"temperature": 0, **sampling}
    result = llm.chat(TALK, template=template, **settings)
    stream = llm.stream_chat(TALK, template=template, **settings)
    chunks = list(stream)
    streamed = stream.completion
    drawn = {"timings": result.timings, "seed": result.seed, "receipt": result.receipt}
    assert replace(streamed, **drawn) == result
    if not sampling.get("echo"):
        assert "".join(chunk.text for chunk in chunks) == result.text
        assert sum((chunk.token_ids for chunk in chunks), ()) == result.token_ids
        assert all(chunk.text for chunk in chunks[:-1])
    return result


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_model_gets_the_ids_of_encode_chat(fake_llama: FakeLlama, template: str) -> None:
    seen: list[tuple[int, ...]] = []

    def record(history: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        seen.append(history)
        return np.eye(VOCAB, dtype=np.float32)[EOS]

    llm, _ = fake_llama(record)
    result = llm.chat(TALK, template=template, temperature=0)
    expected = encode_chat(llm.tokenizer, TALK, template=template)
    assert seen == [tuple(expected)]
    assert result.usage.prompt_tokens == len(expected)


def test_the_answer_begins_behind_white_space(fake_llama: FakeLlama) -> None:
    llm, script = answering(fake_llama, "\n \u00a0 I am a model. \n")
    result = chat(llm)
    assert result.text == "I am a model. \n"
    assert result.token_ids == tuple(script)
    assert (result.finish_reason, result.stop_reason) == ("stop", None)


def test_white_space_is_no_answer(fake_llama: FakeLlama) -> None:
    llm, script = answering(fake_llama, " \n\n ")
    result = chat(llm)
    assert (result.text, result.token_ids) == ("", tuple(script))
    assert chat(llm, max_tokens=2).text == ""


def test_a_completion_of_ids_keeps_its_white_space(fake_llama: FakeLlama) -> None:
    llm, _ = answering(fake_llama, "I am")
    ids = encode_chat(llm.tokenizer, TALK)
    assert llm.generate(ids, temperature=0).text == "  I am"


def test_stop_strings_are_looked_for_in_the_answer(fake_llama: FakeLlama) -> None:
    llm, _ = answering(fake_llama, "\n\nI am.\n\nYou are.")
    result = chat(llm, stop=["\n\n"])
    assert (result.text, result.stop_reason) == ("I am.", "\n\n")


def test_echo_keeps_what_follows_the_prompt(fake_llama: FakeLlama) -> None:
    llm, _ = answering(fake_llama, "I am")
    result = chat(llm, echo=True)
    assert result.prompt is not None
    assert result.prompt.endswith("Who are you? [/INST]")
    assert result.text == "  I am"


def test_marks_that_end_answers(fake_llama: FakeLlama) -> None:
    llm, _ = answering(fake_llama, "I am.<|im_end|>\n<|im_start|>user", "chatml")
    result = chat(llm, "chatml")
    assert (result.text, result.finish_reason, result.stop_reason) == (
        "I am.",
        "stop",
        "<|im_end|>",
    )
    assert chat(llm, "chatml", stop="am").text == "I "
    assert chat(llm, "chatml", ignore_eos=True, max_tokens=30).text.startswith("I am.<|im_end|>")


def test_samples_and_settings(fake_llama: FakeLlama) -> None:
    llm, _ = fake_llama()
    params = SamplingParams(seed=3, max_tokens=5, temperature=1.0)
    first = llm.chat(TALK, params, template="zephyr", n=2)
    assert [sample.index for sample in first.samples] == [0, 1]
    assert llm.chat(TALK, params, template="zephyr").token_ids == first.token_ids
    with pytest.raises(InvalidArgumentError, match="n is 2; a stream is of one sample"):
        llm.stream_chat(TALK, params, n=2)
    with pytest.raises(InvalidArgumentError, match="unknown sampling parameter 'tempature'"):
        llm.chat(TALK, tempature=1)


def test_faults_come_at_the_call(fake_llama: FakeLlama) -> None:
    llm, model = fake_llama(n_ctx=64)
    with pytest.raises(MessagesError, match=r"message 0 \(user\) holds '\[INST\]'"):
        llm.stream_chat([{"role": "user", "content": "[INST]"}])
    llm.stream_chat([{"role": "user", "content": "[INST]"}], strict=False).close()
    with pytest.raises(InvalidArgumentError, match="template 'alpaca': it is not known"):
        llm.stream_chat(TALK, template="alpaca")
    with pytest.raises(ContextLengthError, match="the context holds 64"):
        llm.stream_chat([{"role": "user", "content": "word " * 100}])
    assert model.n_steps == 0
    llm.close()
    with pytest.raises(ClosedError):
        llm.chat(TALK)


def test_a_base_model_warns_once(fake_llama: FakeLlama, caplog: pytest.LogCaptureFixture) -> None:
    llm, _ = fake_llama()
    assert llm.engine.file.template == "base"
    with caplog.at_level(logging.WARNING):
        llm.chat(TALK, template="vicuna", max_tokens=1)
        assert not caplog.records
        llm.chat(TALK, max_tokens=1)
        llm.chat(TALK, max_tokens=1)
        list(llm.stream_chat(TALK, max_tokens=1))
    (record,) = caplog.records
    assert record.name == "llama2q.chat.model_chat"
    assert "is a base model" in record.message
    assert "brief" not in caplog.text


@pytest.mark.parametrize(("given", "stored"), [("llama-2", "llama2-chat"), ("zephyr", "zephyr")])
def test_template_of_the_file(
    mini_checkpoint: Path,
    tmp_path: Path,
    given: str,
    stored: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "chat.l2q"
    llama2q.convert(mini_checkpoint, path, chat_template=given, method="rtn")
    settings: dict[str, Any] = {"seed": 5, "max_tokens": 12}
    with llama2q.load(path) as llm, caplog.at_level(logging.WARNING, "llama2q.chat"):
        result = llm.chat(TALK, **settings)
        ids = encode_chat(llm.tokenizer, TALK, template=stored)
        expected = llm.generate(ids, **settings)
    assert result.token_ids == expected.token_ids
    assert result.text == expected.text.lstrip()
    assert not caplog.records
