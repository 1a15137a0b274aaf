"""Llama 2's chat prompts against Meta's algorithm and ids that others published."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

import llama2q
from chat.dialogues import TEXTS, dialog, dialogs
from chat.meta_reference import Dialog, meta_prompt
from llama2q.chat import encode_chat
from llama2q.chat.llama2 import TAGS
from llama2q.errors import MessagesError
from llama2q.tokenizer import Tokenizer

OPEN, CLOSE = [518, 25580, 29962], [518, 29914, 25580, 29962]
SYSTEM_OPEN, SYSTEM_CLOSE = [3532, 14816, 29903, 6778, 13], [13, 29966, 829, 14816, 29903, 6778]


def test_ids_of_one_question(llama2: Tokenizer) -> None:
    assert encode_chat(llama2, dialog(None, "hi")) == [1, *OPEN, 7251, *CLOSE]


def test_ids_of_two_turns_with_a_system_message(llama2: Tokenizer) -> None:
    """As tests of other programs have them of Llama-2-7b-chat-hf with its own template."""
    messages = dialog(
        "You are assistant.", "hello", "how can I help you?", "how much is 2+2?"
    )  # fmt: skip
    assert encode_chat(llama2, messages) == [
        1, *OPEN, *SYSTEM_OPEN, 3492, 526, 20255, 29889, *SYSTEM_CLOSE, 13, 13, 12199, *CLOSE,
        920, 508, 306, 1371, 366, 29973, 29871, 2,
        1, *OPEN, 920, 1568, 338, 29871, 29906, 29974, 29906, 29973, *CLOSE,
    ]  # fmt: skip


def test_empty_question_after_a_system_message_loses_its_line_ends(llama2: Tokenizer) -> None:
    ids = encode_chat(llama2, dialog("", ""))
    assert ids == [1, *OPEN, *SYSTEM_OPEN, *SYSTEM_CLOSE, *CLOSE]


@given(messages=dialogs())
@example(messages=dialog("  padded  ", "  padded  ", "  padded  ", ""))
@example(messages=dialog("", "", "", "", "", ""))
def test_ids_are_metas(
    tokenizer: Tokenizer, sentence_piece: SentencePieceProcessor, messages: Dialog
) -> None:
    assume(not any(tag in message["content"] for message in messages for tag in TAGS))
    assert encode_chat(tokenizer, messages) == meta_prompt(sentence_piece, messages)


@given(
    messages=dialogs(st.tuples(TEXTS, st.sampled_from(TAGS), TEXTS).map("".join)), data=st.data()
)
def test_tags_are_errors_or_metas(
    tokenizer: Tokenizer,
    sentence_piece: SentencePieceProcessor,
    messages: Dialog,
    data: st.DataObject,
) -> None:
    assert encode_chat(tokenizer, messages, strict=False) == meta_prompt(sentence_piece, messages)
    at = data.draw(st.integers(0, len(messages) - 1))
    for i, message in enumerate(messages):
        if i != at:
            message["content"] = "clean"
    with pytest.raises(MessagesError, match=rf"message {at} \({messages[at]['role']}\) holds '"):
        encode_chat(tokenizer, messages)


@given(messages=dialogs())
def test_bos_and_eos_are_the_formats_alone(tokenizer: Tokenizer, messages: Dialog) -> None:
    ids = encode_chat(tokenizer, messages, strict=False)
    n_pairs = sum(message["role"] == "assistant" for message in messages)
    assert (ids.count(1), ids.count(2)) == (n_pairs + 1, n_pairs)


def test_exported(tokenizer: Tokenizer) -> None:
    ids = llama2q.chat.encode_chat(tokenizer, [llama2q.chat.Message("user", "hi")])
    assert ids == encode_chat(tokenizer, dialog(None, "hi"))
