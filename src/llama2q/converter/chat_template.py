"""Which chat template a model was trained with: by its template text, else by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama2q.converter.json_file import read_json_object, shown
from llama2q.errors import ChatTemplateError, InvalidArgumentError, TokenizerError

CHAT_TEMPLATES = {
    "llama-2": "llama2-chat",
    "vicuna": "vicuna",
    "zephyr": "zephyr",
    "chatml": "chatml",
    "none": "base",
}
"""Name that a user gives -> name in the file."""

MAX_TEMPLATE_BYTES = 1 << 18
_MAX_CONFIG_BYTES = 1 << 24

_MARKS = {
    "llama2-chat": ("[INST]", "<<SYS>>"),
    "vicuna": ("USER:", "ASSISTANT:"),
    "zephyr": ("<|user|>", "<|assistant|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
_LLAMA_2 = re.compile(r"llama-?2|codellama|code-llama")
_SAYS_CHAT = re.compile(r"chat|instruct")
_SAY = "say which with --chat-template (chat_template=): " + ", ".join(CHAT_TEMPLATES)


def stored_name(chat_template: str) -> str:
    """Return the file's name of a template, given the user's.

    Raises
    ------
    InvalidArgumentError
        There is no such template.
    """
    if chat_template not in CHAT_TEMPLATES:
        raise InvalidArgumentError(
            f"chat_template is {chat_template!r}; expected one of {', '.join(CHAT_TEMPLATES)}"
        )
    return CHAT_TEMPLATES[chat_template]


def read_template_text(beside: Mapping[str, Path]) -> str | None:
    """Return the template's text: chat_template.jinja, else that of tokenizer_config.json.

    Raises
    ------
    ChatTemplateError
        It is too large, or of another form than a text or a list of named texts.
    TokenizerError
        tokenizer_config.json is malformed.
    """
    if "chat_template.jinja" in beside:
        with beside["chat_template.jinja"].open("rb") as file:
            data = file.read(MAX_TEMPLATE_BYTES + 1)
        return checked_template(data.decode("utf-8", "replace"), "chat_template.jinja")
    if "tokenizer_config.json" not in beside:
        return None
    path = beside["tokenizer_config.json"]
    found: Any = read_json_object(path, TokenizerError, _MAX_CONFIG_BYTES, hub=True).get(
        "chat_template"
    )
    if isinstance(found, list):
        found = _default_of(found)
    if found is not None and not isinstance(found, str):
        raise ChatTemplateError(
            f"tokenizer_config.json: chat_template is no text ({shown(found)}); {_SAY}"
        )
    return None if found is None else checked_template(found, "tokenizer_config.json")


def checked_template(text: str, where: str) -> str:
    """Return a template's text, found in the file `where`.

    Raises
    ------
    ChatTemplateError
        It is too large.
    """
    if len(text) > MAX_TEMPLATE_BYTES:
        raise ChatTemplateError(
            f"{where}: the chat template has over {MAX_TEMPLATE_BYTES} bytes; {_SAY}"
        )
    return text


def detect_template(name: str, text: str | None) -> str:
    """Return the file's name of the template of a model.

    Parameters
    ----------
    name : str
        The model's name.
    text : str or None
        Its template's text.

    Raises
    ------
    ChatTemplateError
        The text is of none of the known templates, or there is none though the name says that the
        model is made for chat.
    """
    if text is not None:
        found = [kind for kind, marks in _MARKS.items() if all(mark in text for mark in marks)]
        if len(found) == 1:
            return found[0]
        kinds = "several" if found else "none"
        raise ChatTemplateError(
            f"{shown(name)} has a chat template that looks like {kinds} of the known ones; {_SAY}"
        )
    lower = re.sub(r"[_. ]", "-", name.lower())
    for kind in ("vicuna", "zephyr", "chatml"):
        if kind in lower:
            return kind
    if not _SAYS_CHAT.search(lower):
        return "base"
    if _LLAMA_2.search(lower) and "tinyllama" not in lower:
        return "llama2-chat"
    raise ChatTemplateError(
        f"{shown(name)} is by its name made for chat, but it has no chat template text; {_SAY}"
    )


def _default_of(entries: list[Any]) -> Any:
    """Return the text named "default", else the first; the list itself where it holds none."""
    texts = [
        entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("template"), str)
    ]
    chosen = [entry for entry in texts if entry.get("name") == "default"] or texts
    return chosen[0]["template"] if chosen else entries
