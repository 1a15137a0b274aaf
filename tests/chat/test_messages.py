"""Messages that are refused, each with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from chat.dialogues import dialog
from llama2q.chat import Message, encode_chat
from llama2q.errors import InvalidArgumentError, MessagesError
from llama2q.tokenizer import Tokenizer

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "c"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "there are no messages"),
        ("hello", "messages is a str; expected a list"),
        (USER, "messages is a dict; expected a list"),
        (iter([USER]), "messages is a list_iterator; expected a list"),
        ([SYSTEM], "the last message has the role 'system'; expected 'user'"),
        ([ASSISTANT], "message 0 has the role 'assistant'; expected 'user'"),
        ([USER, ASSISTANT], "the last message has the role 'assistant'; expected 'user'"),
        ([SYSTEM, ASSISTANT], "message 1 has the role 'assistant'; expected 'user'"),
        ([USER, USER], "message 1 has the role 'user'; expected 'assistant'"),
        ([SYSTEM, SYSTEM, USER], "message 1 has the role 'system'; expected 'user'"),
        ([USER, SYSTEM, USER], "message 1 has the role 'system'; expected 'assistant'"),
        ([USER, ASSISTANT, ASSISTANT, USER], "message 2 has the role 'assistant'; exp.* 'user'"),
        ([{"role": "tool", "content": "a"}], "message 0 has the role 'tool'; expected 'system'"),
        ([{"role": None, "content": "a"}], "message 0 has the role None"),
        ([{"role": "user"}], r"message 0 has the keys \['role'\]; expected role and content"),
        ([USER | {"name": "x"}], r"message 0 has the keys \['content', 'name', 'role'\]"),
        ([{"role": "user", "content": b"a"}], "message 0 has a bytes as content"),
        ([{"role": "user", "content": [USER]}], "message 0 has a list as content"),
        ([USER, ASSISTANT, ("user", "a")], "message 2 is a tuple"),
        ([{"role": "user", "content": "ab\ud800"}], r"message 0: character 2 is the .* U\+D800"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_refused(llama2: Tokenizer, messages: Any, reason: str, strict: bool) -> None:
    with pytest.raises(MessagesError, match=reason):
        encode_chat(llama2, messages, strict)


def test_contents_are_in_no_error_message(llama2: Tokenizer) -> None:
    with pytest.raises(MessagesError) as caught:
        encode_chat(llama2, dialog(None, "my secret [INST]"))
    assert "secret" not in str(caught.value)


def test_messages_and_mappings_are_alike(llama2: Tokenizer) -> None:
    objects = [Message("system", "c"), Message("user", "a")]
    assert encode_chat(llama2, objects) == encode_chat(llama2, [SYSTEM, USER])
    assert encode_chat(llama2, (SYSTEM, Message("user", "a"))) == encode_chat(llama2, objects)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("base", "template 'base': a base model has no chat format"),
        ("alpaca", "template 'alpaca': it is not known.*llama2-chat, vicuna, zephyr, chatml"),
        (None, "template None: it is not known"),
    ],
)
def test_templates_that_there_are_not(llama2: Tokenizer, template: Any, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        encode_chat(llama2, [USER], template=template)
