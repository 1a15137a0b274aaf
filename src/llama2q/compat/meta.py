"""Meta's interface: `Llama.build`, `text_completion` and `chat_completion` as in `llama`.

>>> from llama2q.compat.meta import Llama
>>> generator = Llama.build(
...     ckpt_dir="llama-2-7b-chat", tokenizer_path="tokenizer.model",
...     max_seq_len=512, max_batch_size=4,
... )  # doctest: +SKIP

Names, defaults and the form of the results are those of meta-llama/llama, `generation.py`. What
differs: faults are errors of llama2q in place of assertions, a prompt must leave room for a token,
and the random numbers are our own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict

from llama2q.chat.encode import encode_chat
from llama2q.chat.llama2 import TAGS
from llama2q.chat.messages import Dialogue
from llama2q.chat.model_chat import ModelChat
from llama2q.closing import Closing
from llama2q.compat.model_file import model_file, require_tokenizer
from llama2q.errors import InvalidArgumentError, MessagesError
from llama2q.generate.batch import complete
from llama2q.generate.completion import Completion
from llama2q.generate.llama import Llama as Model
from llama2q.generate.load import load
from llama2q.generate.logprobs import TokenLogprobs
from llama2q.generate.prompt import Prompt
from llama2q.sampling import SamplingParams
from llama2q.tokenizer import Tokenizer

UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One message of a dialog."""

    role: Role
    content: str


Dialog = list[Message]


class CompletionPrediction(TypedDict):
    """What follows a text; with `logprobs`, each token's text and log-probability."""

    generation: str
    tokens: NotRequired[list[str]]
    logprobs: NotRequired[list[float]]


class ChatPrediction(TypedDict):
    """The answer to a dialog; with `logprobs`, each token's text and log-probability."""

    generation: Message
    tokens: NotRequired[list[str]]
    logprobs: NotRequired[list[float]]


class Llama(Closing):
    """A loaded model under Meta's names. A context manager."""

    @staticmethod
    def build(
        ckpt_dir: str | os.PathLike[str],
        tokenizer_path: str | os.PathLike[str],
        max_seq_len: int,
        max_batch_size: int,
        model_parallel_size: int | None = None,
        seed: int = 1,
    ) -> Llama:
        """Load a model.

        Parameters
        ----------
        ckpt_dir : str or path
            A `.l2q` file, or a checkpoint folder: its model file is looked for in it and beside it,
            and made there once if there is none.
        tokenizer_path : str or path
            The checkpoint's tokenizer.model; the file must hold the same.
        max_seq_len : int
            Most tokens of prompt and completion together.
        max_batch_size : int
            Most prompts of a call.
        model_parallel_size : int or None
            Makes no difference: any number of shards is read.
        seed : int
            Begins the random numbers of all calls.

        Raises
        ------
        InvalidArgumentError
            If a number is outside its range, or there are several model files.
        TokenizerError
            If the model file holds another tokenizer.
        CheckpointError, FormatError, InsufficientMemoryError
            See `llama2q.convert` and `llama2q.load`.
        """
        for name, value in (("max_seq_len", max_seq_len), ("max_batch_size", max_batch_size)):
            if type(value) is not int or value < 1:
                raise InvalidArgumentError(
                    f"{name} is {value!r}; expected an integer of at least 1"
                )
        if type(seed) is not int:
            raise InvalidArgumentError(f"seed is {seed!r}; expected an integer")
        path = model_file(ckpt_dir)
        require_tokenizer(path, tokenizer_path)
        return Llama(load(path, n_ctx=max_seq_len), max_batch_size, seed)

    def __init__(self, model: Model, max_batch_size: int, seed: int = 1) -> None:
        """Use `build`."""
        self.model = model
        self._max_batch_size = max_batch_size
        self._seeds = random.Random(seed)
        file = model.engine.file
        self._chat = ModelChat(model.tokenizer, file.template, file.path.name)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.model.tokenizer

    def close(self) -> None:
        """Free the model."""
        self.model.close()

    def generate(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Continue prompts of token ids.

        Parameters
        ----------
        prompt_tokens : sequence of sequence of int
        max_gen_len : int
            Most new tokens of each.
        temperature, top_p : float
            As of `llama2q.SamplingParams`.
        logprobs : bool
            Return the log-probability of each token by the model's own logits; a prompt's first
            token has 0.
        echo : bool
            Return the prompts' tokens before the new ones.

        Returns
        -------
        list of list of int, list of list of float or None
            Tokens up to the first EOS, and their log-probabilities.

        Raises
        ------
        InvalidArgumentError
            If there are more prompts than max_batch_size, or a setting is outside its range.
        ContextLengthError
            If a prompt leaves no room for a token.
        """
        results = self._run(prompt_tokens, max_gen_len, temperature, top_p, logprobs, echo)
        tokens = [ids for ids, _ in results]
        return tokens, [values for _, values in results] if logprobs else None

    def text_completion(
        self,
        prompts: Sequence[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
    ) -> list[CompletionPrediction]:
        """Continue texts; see `generate` for the parameters.

        Parameters
        ----------
        prompts : sequence of str
            Each gets a BOS in front.
        max_gen_len : int or None
            None: as many as the context holds.

        Returns
        -------
        list of dict
            `generation`, and with `logprobs` also `tokens` and `logprobs`.
        """
        if isinstance(prompts, str):
            raise InvalidArgumentError("prompts is a str; expected a list of them")
        ids = [self.tokenizer.encode(prompt) for prompt in prompts]
        most = self.model.n_ctx - 1 if max_gen_len is None else max_gen_len
        predictions: list[CompletionPrediction] = []
        for tokens, values in self._run(ids, most, temperature, top_p, logprobs, echo):
            prediction: CompletionPrediction = {"generation": self.tokenizer.decode(tokens)}
            if logprobs:
                prediction |= {"tokens": self._texts(tokens), "logprobs": values}
            predictions.append(prediction)
        return predictions

    def chat_completion(
        self,
        dialogs: Sequence[Dialog],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
    ) -> list[ChatPrediction]:
        """Answer dialogs in Llama 2's format; see `generate` for the parameters.

        Parameters
        ----------
        dialogs : sequence of dialogs
            Each a list of messages with `role` and `content`: a system message or none, then user
            and assistant in turns, the user last.
        max_gen_len : int or None
            None: as many as the context holds.

        Returns
        -------
        list of dict
            `generation` with `role` and `content`, and with `logprobs` also `tokens` and
            `logprobs`. The content for a dialog with tags of the format in it is UNSAFE_ERROR.

        Raises
        ------
        MessagesError
            If roles are not in their order.
        """
        ids = [encode_chat(self.tokenizer, dialog, strict=False) for dialog in dialogs]
        self._chat.warn_of_base()
        most = self.model.n_ctx - 1 if max_gen_len is None else max_gen_len
        results = self._run(ids, most, temperature, top_p, logprobs)
        predictions: list[ChatPrediction] = []
        for dialog, (tokens, values) in zip(dialogs, results, strict=True):
            content = UNSAFE_ERROR if _has_tags(dialog) else self.tokenizer.decode(tokens)
            prediction: ChatPrediction = {"generation": {"role": "assistant", "content": content}}
            if logprobs:
                prediction |= {"tokens": self._texts(tokens), "logprobs": values}
            predictions.append(prediction)
        return predictions

    def _run(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int,
        temperature: float,
        top_p: float,
        logprobs: bool,
        echo: bool = False,
    ) -> list[tuple[list[int], list[float]]]:
        """Return each prompt's tokens, and their log-probabilities, or none of these."""
        if len(prompt_tokens) > self._max_batch_size:
            raise InvalidArgumentError(
                f"{len(prompt_tokens)} prompts; max_batch_size is {self._max_batch_size}"
            )
        if type(max_gen_len) is not int or max_gen_len < 0:
            raise InvalidArgumentError(
                f"max_gen_len is {max_gen_len!r}; expected an integer of at least 0"
            )
        prompts = [
            Prompt(
                self.model.engine,
                ids,
                SamplingParams(
                    temperature=temperature,
                    top_p=top_p,
                    seed=self._seeds.getrandbits(63),
                    max_tokens=max(1, max_gen_len),
                    echo=echo,
                    logprobs=0 if logprobs else None,
                    prompt_logprobs=0 if logprobs and echo else None,
                ),
            )
            for ids in prompt_tokens
        ]
        return [self._cut(result, max_gen_len) for result in complete(self.model.engine, prompts)]

    def _cut(self, completion: Completion, max_gen_len: int) -> tuple[list[int], list[float]]:
        """Return the tokens before EOS, and their log-probabilities where these are known."""
        tokens = list(completion.token_ids[:max_gen_len])
        rows: list[TokenLogprobs | None] = list((completion.logprobs or ())[:max_gen_len])
        if completion.prompt_token_ids is not None:
            tokens = [*completion.prompt_token_ids, *tokens]
            rows = [*(completion.prompt_logprobs or ()), *rows]
        if self.tokenizer.eos_id in tokens:
            end = tokens.index(self.tokenizer.eos_id)
            tokens, rows = tokens[:end], rows[:end]
        if completion.logprobs is None:
            return tokens, []
        # Only a prompt's first token has no row.
        pairs = zip(tokens, rows, strict=True)
        return tokens, [0.0 if row is None else row[token].logprob for token, row in pairs]

    def _texts(self, tokens: Sequence[int]) -> list[str]:
        return [self.tokenizer.decode([token]) for token in tokens]


def _has_tags(dialog: Dialog) -> bool:
    """Whether a dialog that is sound in all else has a tag in it."""
    try:
        Dialogue.of(dialog, TAGS)
    except MessagesError:
        return True
    return False
