"""The format of Llama 2's chat models.

Source: meta-llama/llama, `generation.py`, `chat_completion`. Every pair of question and answer is a
text of its own between BOS and EOS, and so is the question to be answered, without EOS. The system
message stands in the first question, and only what they are together is stripped.
"""

from __future__ import annotations

from collections.abc import Iterator

from llama2q.chat.messages import Dialogue
from llama2q.chat.parts import BOS, EOS, Part

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
TAGS = (B_INST, E_INST, B_SYS.strip(), E_SYS.strip())


def llama2_parts(dialogue: Dialogue) -> Iterator[Part]:
    """Yield the parts of a prompt."""
    head = "" if dialogue.system is None else B_SYS + dialogue.system + E_SYS
    for question, answer in dialogue.pairs:
        yield BOS
        # The last space belongs to it, as a token before EOS.
        yield f"{B_INST} {(head + question).strip()} {E_INST} {answer.strip()} "
        yield EOS
        head = ""
    yield BOS
    yield f"{B_INST} {(head + dialogue.question).strip()} {E_INST}"
