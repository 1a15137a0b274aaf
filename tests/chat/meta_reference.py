"""What Meta's `chat_completion` feeds to its model, written anew from a description of it.

Nothing of llama2q is in here: SentencePiece encodes, dicts are the messages.
"""

from __future__ import annotations

from typing import Any

from sentencepiece import SentencePieceProcessor

Dialog = list[dict[str, str]]


def meta_prompt(model: SentencePieceProcessor, dialog: Dialog) -> list[int]:
    """Token ids of a dialog whose roles are in order."""
    contents = [message["content"] for message in dialog]
    if dialog[0]["role"] == "system":
        system = contents.pop(0)
        contents[0] = "<<SYS>>\n" + system + "\n<</SYS>>\n\n" + contents[0]
    ids: list[Any] = []
    while contents:
        text = "[INST] " + contents.pop(0).strip() + " [/INST]"
        if not contents:
            return [*ids, model.bos_id(), *model.encode(text)]
        text = text + " " + contents.pop(0).strip() + " "
        ids += [model.bos_id(), *model.encode(text), model.eos_id()]
    raise AssertionError("the last message is the user's")
