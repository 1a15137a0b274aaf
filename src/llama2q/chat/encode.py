"""Messages to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from llama2q.chat.messages import Dialogue, MessageLike
from llama2q.chat.parts import Mark, Part
from llama2q.chat.templates import LLAMA_2, find_template
from llama2q.sampling import SamplingParams
from llama2q.tokenizer import Tokenizer


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[MessageLike],
    strict: bool = True,
    template: str = LLAMA_2,
) -> list[int]:
    """Build the prompt of a dialogue that the model goes on with its answer.

    BOS and EOS are put in as ids; no text of a message becomes one.

    Parameters
    ----------
    tokenizer : Tokenizer
    messages : sequence of Message or mapping
        Each with `role` and `content`: a system message or none, then user and assistant in turns,
        the user last.
    strict : bool
        Refuse a message with a tag of the format in it, which could pass for another message.
        False keeps the text: with "llama2-chat", these are the ids that Meta's code gives.
    template : {"llama2-chat", "vicuna", "zephyr", "chatml"}
        The format that the model was trained with.

    Returns
    -------
    list of int

    Raises
    ------
    MessagesError
        If a message is malformed, not its role's turn, or holds a tag.
    InvalidArgumentError
        If there is no such template.
    """
    form = find_template(template)
    dialogue = Dialogue.of(messages, form.tags if strict else ())
    return _encode(tokenizer, form.parts(dialogue))


def with_ends(params: SamplingParams, tokenizer: Tokenizer, template: str) -> SamplingParams:
    """Return settings that stop at the end of an answer, unless `ignore_eos` is set."""
    if params.ignore_eos:
        return params
    stop, stop_token_ids = list(params.stop), list(params.stop_token_ids)
    for mark in find_template(template).ends:
        token = tokenizer.id_of(mark.text)
        if token is None:
            stop.append(mark.text)
        else:
            stop_token_ids.append(token)
    return replace(params, stop=stop, stop_token_ids=stop_token_ids)


def _encode(tokenizer: Tokenizer, parts: Iterable[Part]) -> list[int]:
    """Encode each text between two tokens as a whole."""
    ids: list[int] = []
    text = ""
    for part in parts:
        token = tokenizer.id_of(part.text) if isinstance(part, Mark) else part
        if not isinstance(token, int):
            text += part.text if isinstance(part, Mark) else str(part)
            continue
        ids += [*tokenizer.encode(text, bos=False), token]
        text = ""
    return ids + tokenizer.encode(text, bos=False)
