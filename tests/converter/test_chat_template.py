"""Which chat template: by the template's text, by the model's name, by what the user says."""

from __future__ import annotations

from pathlib import Path

import pytest

import llama2q
from converter.hf_files import hf_folder, write_json
from converter.pth_files import Make
from llama2q.converter.chat_template import (
    CHAT_TEMPLATES,
    detect_template,
    read_template_text,
)
from llama2q.converter.hf_checkpoint import HfCheckpoint
from llama2q.errors import ChatTemplateError, InvalidArgumentError
from llama2q.format import L2qFile
from llama2q.format.metadata import TEMPLATES

# Excerpts of the templates that these models come with.
LLAMA_2 = (
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + content %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
)
ZEPHYR = (
    "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + eos_token }}"
    "{% endif %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CHATML = "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
VICUNA = "{{ 'USER: ' + message['content'] }}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
MISTRAL = "{{ '[INST] ' + message['content'] + ' [/INST]' }}"


def test_every_name_is_one_of_the_files() -> None:
    assert set(CHAT_TEMPLATES.values()) == set(TEMPLATES)


@pytest.mark.parametrize(
    ("text", "stored"),
    [(LLAMA_2, "llama2-chat"), (ZEPHYR, "zephyr"), (CHATML, "chatml"), (VICUNA, "vicuna")],
)
def test_by_text(text: str, stored: str) -> None:
    assert detect_template("anything-chat", text) == stored


@pytest.mark.parametrize(
    ("text", "kinds"), [(MISTRAL, "none"), ("", "none"), (CHATML + ZEPHYR, "several")]
)
def test_texts_of_no_known_kind(text: str, kinds: str) -> None:
    with pytest.raises(ChatTemplateError, match=rf"looks like {kinds} of the known .*llama-2, vic"):
        detect_template("model", text)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("Llama-2-7b-hf", "base"),
        ("Llama-2-7b-chat-hf", "llama2-chat"),
        ("llama2_13B_Chat", "llama2-chat"),
        ("CodeLlama-34b-Instruct-hf", "llama2-chat"),
        ("CodeLlama-7b-hf", "base"),
        ("vicuna-7b-v1.5", "vicuna"),
        ("TinyLlama-1.1B-intermediate-step-1431k-3T", "base"),
        ("my-zephyr", "zephyr"),
        ("x-ChatML", "chatml"),
        ("", "base"),
    ],
)
def test_by_name(name: str, stored: str) -> None:
    assert detect_template(name, None) == stored


@pytest.mark.parametrize("name", ["TinyLlama-1.1B-Chat-v0.1", "some-instruct", "llama-7b-chat"])
def test_names_that_say_chat_but_not_which(name: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"made for chat.*--chat-template"):
        detect_template(name, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("x", "x"),
        ([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], "t"),
    ],
)
def test_forms_of_the_setting(tmp_path: Path, value: object, text: str | None) -> None:
    path = tmp_path / "tokenizer_config.json"
    write_json(path, {"chat_template": value})
    assert read_template_text({path.name: path}) == text


@pytest.mark.parametrize("value", [7, [], [1], {"a": "b"}, [{"name": "default"}, 3], [{"a": 1}]])
def test_settings_of_another_form(tmp_path: Path, value: object) -> None:
    path = tmp_path / "tokenizer_config.json"
    write_json(path, {"chat_template": value})
    with pytest.raises(ChatTemplateError, match="chat_template is no text"):
        read_template_text({path.name: path})


def test_a_huge_template(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_text("x" * 300_000)
    with pytest.raises(
        ChatTemplateError, match=r"chat_template\.jinja: the chat template has over"
    ):
        read_template_text({path.name: path})


@pytest.fixture
def small(make: Make) -> Path:
    """Write the small model in Meta's form."""
    return make()


def test_chat_templates_of_whole_folders(small: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "TinyLlama-1.1B-Chat", small)
    with pytest.raises(ChatTemplateError, match=r"no chat template text; say which with --chat-t"):
        llama2q.convert(folder, tmp_path / "x.l2q", n_threads=1, method="rtn")
    for given_, stored in (("zephyr", "zephyr"), ("none", "base"), ("llama-2", "llama2-chat")):
        report = llama2q.convert(
            folder,
            tmp_path / "x.l2q",
            chat_template=given_,
            method="rtn",
            overwrite=True,
            n_threads=1,
        )
        with L2qFile(report.path) as file:
            assert file.template == report.template == stored
    with pytest.raises(InvalidArgumentError, match=r"chat_template is 'alpaca'; expected one of"):
        llama2q.convert(folder, tmp_path / "x.l2q", chat_template="alpaca")
    text = "{% for m in messages %}{{ '<|user|>\n' }}{{ '<|assistant|>' }}{% endfor %}"
    write_json(folder / "tokenizer_config.json", {"chat_template": text})
    with HfCheckpoint.open(folder) as checkpoint:
        assert checkpoint.template == "zephyr"
        assert checkpoint.sources[-1].name == "tokenizer_config.json"
    (folder / "chat_template.jinja").write_text("<|im_start|>user<|im_end|>")
    with HfCheckpoint.open(folder) as checkpoint:
        assert checkpoint.template == "chatml"
    report = llama2q.convert(
        small, tmp_path / "y.l2q", chat_template="vicuna", n_threads=1, method="rtn"
    )
    assert report.template == "vicuna"
