"""Faults in chat prompts and in Meta's interface."""

from __future__ import annotations

from teeth.mutant import fault

LLAMA_2 = "chat/test_llama2.py"
TEMPLATES = "chat/test_templates.py"
MESSAGES = "chat/test_messages.py"
CHAT = "generate/test_chat.py"
META = "compat/test_meta.py"

CHAT_FAULTS = (
    fault(
        "chat: no space before the end of an answer",
        "src/llama2q/chat/llama2.py",
        "{E_INST} {answer.strip()} ",
        "{E_INST} {answer.strip()}",
        f"{LLAMA_2}::test_ids_of_two_turns_with_a_system_message",
        f"{LLAMA_2}::test_ids_are_metas",
    ),
    fault(
        "chat: the system message is stripped by itself",
        "src/llama2q/chat/llama2.py",
        "B_SYS + dialogue.system + E_SYS",
        "B_SYS + dialogue.system.strip() + E_SYS",
        f"{LLAMA_2}::test_ids_are_metas",
    ),
    fault(
        "chat: the question is stripped before the system message is put in front",
        "src/llama2q/chat/llama2.py",
        "(head + dialogue.question).strip()",
        "head + dialogue.question.strip()",
        f"{LLAMA_2}::test_empty_question_after_a_system_message_loses_its_line_ends",
    ),
    fault(
        "chat: the system message stands in every question",
        "src/llama2q/chat/llama2.py",
        '        head = ""\n',
        "",
        f"{LLAMA_2}::test_ids_of_two_turns_with_a_system_message",
    ),
    fault(
        "chat: an answer without EOS",
        "src/llama2q/chat/llama2.py",
        "        yield EOS\n",
        "",
        f"{LLAMA_2}::test_bos_and_eos_are_the_formats_alone",
    ),
    fault(
        "chat: tags are not looked for",
        "src/llama2q/chat/encode.py",
        "form.tags if strict else ()",
        "()",
        f"{LLAMA_2}::test_tags_are_errors_or_metas",
        f"{TEMPLATES}::test_tags_are_refused",
    ),
    fault(
        "chat: a mark is text even where the tokenizer has it",
        "src/llama2q/chat/encode.py",
        "token = tokenizer.id_of(part.text) if isinstance(part, Mark) else part",
        "token = None if isinstance(part, Mark) else part",
        f"{TEMPLATES}::test_ids_of_chatml_with_its_tokens",
    ),
    fault(
        "chat: Vicuna without its own system message",
        "src/llama2q/chat/templates.py",
        '(_VICUNA_SYSTEM if dialogue.system is None else dialogue.system) + " "',
        '(dialogue.system or "") + " "',
        f"{TEMPLATES}::test_text_is_what_exports_say",
        f"{TEMPLATES}::test_ids_of_vicuna",
    ),
    fault(
        "chat: any role may begin",
        "src/llama2q/chat/messages.py",
        "        for i, message in enumerate(read[n_system:]):\n",
        "        for i, message in enumerate(read[n_system + 1 :], 1):\n",
        f"{MESSAGES}::test_refused",
    ),
    fault(
        "chat: answers keep the white space before them",
        "src/llama2q/generate/request.py",
        "self._strips_start = prompt.is_chat and not params.echo",
        "self._strips_start = False",
        f"{CHAT}::test_the_answer_begins_behind_white_space",
    ),
    fault(
        "chat: ChatML's end of an answer is no end",
        "src/llama2q/chat/model_chat.py",
        "return ids, with_ends(params, self._tokenizer, name)",
        "return ids, params",
        f"{CHAT}::test_marks_that_end_answers",
    ),
    fault(
        "chat: a base model does not warn",
        "src/llama2q/chat/model_chat.py",
        "if self._template != BASE or self._has_warned:",
        "if True:",
        f"{CHAT}::test_a_base_model_warns_once",
        f"{META}::test_a_base_model_warns_in_chat_alone",
    ),
    fault(
        "Meta's interface: one seed for all prompts",
        "src/llama2q/compat/meta.py",
        "seed=self._seeds.getrandbits(63),",
        "seed=1,",
        f"{META}::test_seeds",
    ),
    fault(
        "Meta's interface: log-probabilities of the prompt are shifted",
        "src/llama2q/compat/meta.py",
        "rows = [*(completion.prompt_logprobs or ()), *rows]",
        "rows = [*(completion.prompt_logprobs or ())[1:], *rows, None]",
        f"{META}::test_text_completion",
    ),
)
