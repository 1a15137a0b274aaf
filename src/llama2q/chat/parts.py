"""What chat prompts are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from llama2q.tokenizer import Tokenizer

BOS = Tokenizer.bos_id
EOS = Tokenizer.eos_id


@dataclass(frozen=True, slots=True)
class Mark:
    """A sign of the format: one token where the tokenizer has it, else text."""

    text: str


Part: TypeAlias = str | int | Mark
"""Text, a token id, or a mark."""
