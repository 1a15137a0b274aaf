"""The chat formats by the names that `.l2q` files have for them.

Sources: `llama2.py`; lm-sys/FastChat, `conversation.py`, vicuna_v1.1; the model card of
HuggingFaceH4/zephyr-7b-beta; OpenAI's ChatML. Those other than Llama 2's begin with one BOS, and
texts behind a token are encoded by themselves, as the tokenizers did that these models learnt with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from llama2q.chat import llama2
from llama2q.chat.messages import Dialogue
from llama2q.chat.parts import BOS, EOS, Mark, Part
from llama2q.errors import InvalidArgumentError

BASE = "base"
LLAMA_2 = "llama2-chat"

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_IM_START, _IM_END = Mark("<|im_start|>"), Mark("<|im_end|>")


@dataclass(frozen=True, slots=True)
class Template:
    """A chat format.

    Parameters
    ----------
    parts : callable
        Yields the parts of a prompt.
    tags : tuple of str
        What a message could be taken for another by.
    ends : tuple of Mark
        What ends an answer, beside EOS.
    """

    parts: Callable[[Dialogue], Iterator[Part]]
    tags: tuple[str, ...]
    ends: tuple[Mark, ...] = ()


def _vicuna(dialogue: Dialogue) -> Iterator[Part]:
    yield BOS
    yield (_VICUNA_SYSTEM if dialogue.system is None else dialogue.system) + " "
    for question, answer in dialogue.pairs:
        yield f"USER: {question} ASSISTANT: {answer}"
        yield EOS
    yield f"USER: {dialogue.question} ASSISTANT:"


def _messages(dialogue: Dialogue) -> Iterator[tuple[str, str]]:
    """Yield role and content of each message."""
    if dialogue.system is not None:
        yield "system", dialogue.system
    for question, answer in dialogue.pairs:
        yield "user", question
        yield "assistant", answer
    yield "user", dialogue.question


def _zephyr(dialogue: Dialogue) -> Iterator[Part]:
    yield BOS
    for role, content in _messages(dialogue):
        yield Mark(f"<|{role}|>")
        yield f"\n{content}"
        yield EOS
        yield "\n"
    yield Mark("<|assistant|>")
    yield "\n"


def _chatml(dialogue: Dialogue) -> Iterator[Part]:
    yield BOS
    for role, content in _messages(dialogue):
        yield _IM_START
        yield f"{role}\n{content}"
        yield _IM_END
        yield "\n"
    yield _IM_START
    yield "assistant\n"


TEMPLATES: Mapping[str, Template] = {
    LLAMA_2: Template(llama2.llama2_parts, llama2.TAGS),
    "vicuna": Template(_vicuna, ("USER:", "ASSISTANT:")),
    "zephyr": Template(_zephyr, ("<|system|>", "<|user|>", "<|assistant|>")),
    "chatml": Template(_chatml, (_IM_START.text, _IM_END.text), (_IM_END,)),
}
"""All but "base", which has none."""


def find_template(name: str) -> Template:
    """Return the format of a name.

    Raises
    ------
    InvalidArgumentError
        If there is none.
    """
    template = TEMPLATES.get(name) if isinstance(name, str) else None
    if template is None:
        reason = "a base model has no chat format" if name == BASE else "it is not known"
        raise InvalidArgumentError(
            f"no chat prompt can be built with the template {name!r}: {reason}; "
            f"take the one that the model was trained with, of {', '.join(TEMPLATES)}"
        )
    return template
