"""How one model is asked in chat."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from llama2q.chat.encode import encode_chat, with_ends
from llama2q.chat.messages import MessageLike
from llama2q.chat.templates import BASE, LLAMA_2
from llama2q.sampling import SamplingParams
from llama2q.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class ModelChat:
    """Makes prompts and settings for a model, by the template of its file."""

    def __init__(self, tokenizer: Tokenizer, template: str, name: str) -> None:
        """Note what the file says.

        Parameters
        ----------
        tokenizer : Tokenizer
        template : str
            The template's name in the file.
        name : str
            What messages call the model.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._name = name
        self._has_warned = False

    def prepare(
        self,
        messages: Sequence[MessageLike],
        params: SamplingParams,
        *,
        strict: bool = True,
        template: str | None = None,
    ) -> tuple[list[int], SamplingParams]:
        """Return a dialogue's prompt, and the settings with what ends an answer.

        Parameters
        ----------
        messages, strict
            See `encode_chat`.
        params : SamplingParams
        template : str or None
            None takes the file's; for a base model, Llama 2's, and warns once.

        Returns
        -------
        list of int, SamplingParams
        """
        name = template
        if name is None:
            name = LLAMA_2 if self._template == BASE else self._template
        ids = encode_chat(self._tokenizer, messages, strict, name)
        if template is None:
            self.warn_of_base()
        return ids, with_ends(params, self._tokenizer, name)

    def warn_of_base(self) -> None:
        """Log once that a base model is asked in chat, if it is one."""
        if self._template != BASE or self._has_warned:
            return
        self._has_warned = True
        _log.warning(
            "%s is a base model: it continues texts, was not trained to answer, and may not stop; "
            "it is asked in Llama 2's chat format. Take a chat model; if it is one, convert it "
            "again with --chat-template",
            self._name,
        )
