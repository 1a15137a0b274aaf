"""Chat templates as texts in Jinja, which other programs build prompts from.

Sources of the forms: Meta's llama, `generation.py` (llama2-chat); lm-sys/FastChat,
`conversation.py`, vicuna_v1.1; the model card of HuggingFaceH4/zephyr-7b-beta; OpenAI's ChatML. The
words `bos_token + '[INST]`, `<<SYS>>` and `content.strip()` are how llama.cpp recognises the first.
"""

from __future__ import annotations

from collections.abc import Mapping

_LLAMA_2 = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- elif message.role == 'user' -%}
{%- if loop.index0 == 1 and messages[0].role == 'system' -%}
{%- set content = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' + message.content -%}
{%- else -%}
{%- set content = message.content -%}
{%- endif -%}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{%- else -%}
{{- ' ' + message.content.strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

_VICUNA = """\
{%- if messages[0].role != 'system' -%}
{{- "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
helpful, detailed, and polite answers to the user's questions. " -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- message.content + ' ' -}}
{%- elif message.role == 'user' -%}
{{- 'USER: ' + message.content + ' ' -}}
{%- else -%}
{{- 'ASSISTANT: ' + message.content + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'ASSISTANT:' -}}
{%- endif -%}
"""

_ZEPHYR = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

CHAT_TEMPLATES: Mapping[str, str] = {
    "llama2-chat": _LLAMA_2,
    "vicuna": _VICUNA,
    "zephyr": _ZEPHYR,
    "chatml": _CHATML,
}
"""Texts by the name that a `.l2q` file has; "base" has none."""
