"""Chat templates rendered as transformers renders them, against prompts written out."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama2q.export.chat_templates import CHAT_TEMPLATES
from llama2q.format.metadata import TEMPLATES

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": " Hello? "},
    {"role": "assistant", "content": "Hi. "},
    {"role": "user", "content": "Bye."},
]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)

EXPECTED = {
    "llama2-chat": (
        "<s>[INST] Hello? [/INST] Hi. </s><s>[INST] Bye. [/INST]",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hello? [/INST] Hi. </s><s>[INST] Bye. [/INST]",
    ),
    "vicuna": (
        VICUNA + "USER:  Hello?  ASSISTANT: Hi. </s>USER: Bye. ASSISTANT:",
        "Be brief. USER:  Hello?  ASSISTANT: Hi. </s>USER: Bye. ASSISTANT:",
    ),
    "zephyr": tuple(
        f"{system}<|user|>\n Hello? </s>\n<|assistant|>\nHi. </s>\n<|user|>\nBye.</s>\n"
        "<|assistant|>\n"
        for system in ("", "<|system|>\nBe brief.</s>\n")
    ),
    "chatml": tuple(
        f"{system}<|im_start|>user\n Hello? <|im_end|>\n<|im_start|>assistant\nHi. <|im_end|>\n"
        "<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n"
        for system in ("", "<|im_start|>system\nBe brief.<|im_end|>\n")
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_prompts(name: str) -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(CHAT_TEMPLATES[name])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    assert (
        template.render(messages=TALK, **marks),
        template.render(messages=[SYSTEM, *TALK], **marks),
    ) == EXPECTED[name]


def test_every_template_of_a_file_has_a_text() -> None:
    assert set(CHAT_TEMPLATES) == set(TEMPLATES) - {"base"}
