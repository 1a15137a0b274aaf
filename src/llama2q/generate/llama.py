"""`Llama`: a loaded model, as users hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from llama2q.chat.messages import MessageLike
from llama2q.chat.model_chat import ModelChat
from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.engine import Engine
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.generate.batch import complete
from llama2q.generate.completion import Completion
from llama2q.generate.embed import Pooling, check_pooling, embed
from llama2q.generate.prompt import Prompt as ReadPrompt
from llama2q.generate.request import Request
from llama2q.generate.score import Score, score
from llama2q.generate.stream import Stream
from llama2q.kv_sequence import Sequence as CachedSequence
from llama2q.ragged import Span
from llama2q.sampling import SamplingParams
from llama2q.sessions.session import Session
from llama2q.sessions.window import WhenFull
from llama2q.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int]
"""Text, which gets a BOS in front, or token ids, which are taken as they are."""

ROWS_PER_SLICE = 256
"""Rows of logits computed at a time, so that they need little memory beside the result."""


class Llama(Closing):
    """A loaded model. Calls are safe from any thread; a context manager closes it."""

    def __init__(self, engine: Engine) -> None:
        """Use `llama2q.load`, which makes the engine."""
        self._engine = engine
        file = engine.file
        self._chat = ModelChat(engine.tokenizer, file.template, file.path.name)

    def __repr__(self) -> str:
        """Name the file and the context."""
        return f"<Llama {self._engine.file.path}, n_ctx {self.n_ctx}, KV {self._engine.kv_dtype}>"

    def close(self) -> None:
        """Free the KV cache and the map of the file; running calls end with ClosedError."""
        self._engine.close()

    @property
    def engine(self) -> Engine:
        """The engine below: sequences and the forward call."""
        return self._engine

    @property
    def config(self) -> ModelConfig:
        """The model's hyperparameters."""
        return self._engine.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the file."""
        return self._engine.tokenizer

    @property
    def n_ctx(self) -> int:
        """Most tokens of prompt and completion together."""
        return self._engine.n_ctx

    @overload
    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Any
    ) -> Completion: ...
    @overload
    def generate(
        self, prompt: Sequence[Prompt], params: SamplingParams | None = None, **sampling: Any
    ) -> list[Completion]: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> Completion | list[Completion]:
        """Continue a prompt, or each prompt of a list.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of those
            A string gets a BOS in front; ids are taken as they are. The prompts of a list run
            together, which changes no result: each gives what it gives alone with the same seed.
        params : SamplingParams or None
            None takes the defaults.
        **sampling
            Fields of SamplingParams, which replace those of `params`.

        Returns
        -------
        Completion or list of Completion
            A list for a list. With `n` above 1, each is sample 0 of its prompt, and its `samples`
            are all of them.

        Raises
        ------
        InvalidArgumentError
            If a prompt is empty, an id outside the vocabulary, a setting outside its range.
        ContextLengthError
            If a prompt leaves no room for a token in the context. What `max_tokens` asks for
            beyond the room is not generated: finish_reason is then "length".
        KvCacheFullError
            If open streams hold the KV cache.
        NonFiniteError
            If the settings leave no token (all are banned) or a logits processor returns NaN or
            +inf. What a processor raises itself comes out as it is.
        """
        settings = SamplingParams.of(params, sampling)
        single = _is_prompt(prompt)
        prompts = cast(Sequence[Prompt], [prompt] if single else prompt)
        read = [ReadPrompt(self._engine, self._ids_of(p), settings) for p in prompts]
        completions = complete(self._engine, read)
        return completions[0] if single else completions

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Any
    ) -> Stream:
        """Continue one prompt, text chunk by text chunk; see `generate` for the parameters.

        `n` is 1 here.
        """
        settings = SamplingParams.of(params, sampling)
        if not _is_prompt(prompt):
            raise InvalidArgumentError("stream takes one prompt; pass a list to generate()")
        return self._stream(ReadPrompt(self._engine, self._ids_of(prompt), settings))

    def chat(
        self,
        messages: Sequence[MessageLike],
        params: SamplingParams | None = None,
        *,
        strict: bool = True,
        template: str | None = None,
        **sampling: Any,
    ) -> Completion:
        """Answer the last message of a dialogue.

        Parameters
        ----------
        messages : sequence of Message or mapping
            Each with `role` and `content`: a system message or none, then user and assistant in
            turns, the user last.
        params : SamplingParams or None
            None takes the defaults.
        strict : bool
            Refuse messages with tags of the chat format in them; see `llama2q.chat.encode_chat`.
        template : str or None
            A chat format instead of the file's: "llama2-chat", "vicuna", "zephyr" or "chatml".
        **sampling
            Fields of SamplingParams, which replace those of `params`.

        Returns
        -------
        Completion
            Its text is the answer, which begins behind any white space (with `echo`, all that
            follows the prompt's text).

        Raises
        ------
        MessagesError
            If a message is malformed, not its role's turn, or holds a tag.
        InvalidArgumentError, ContextLengthError, KvCacheFullError, NonFiniteError
            See `generate`.

        Notes
        -----
        A base model is asked in Llama 2's format; that is logged as a warning.
        """
        settings = SamplingParams.of(params, sampling)
        (completion,) = complete(
            self._engine, [self._chat_prompt(messages, settings, strict, template)]
        )
        return completion

    def stream_chat(
        self,
        messages: Sequence[MessageLike],
        params: SamplingParams | None = None,
        *,
        strict: bool = True,
        template: str | None = None,
        **sampling: Any,
    ) -> Stream:
        """Answer the last message of a dialogue, text chunk by text chunk; see `chat`.

        `n` is 1 here.
        """
        settings = SamplingParams.of(params, sampling)
        return self._stream(self._chat_prompt(messages, settings, strict, template))

    def score(self, text: Prompt) -> Score:
        """Return how likely each token of a text is, given those before it.

        Parameters
        ----------
        text : str or sequence of int
            A string gets a BOS in front; ids are taken as they are.

        Returns
        -------
        Score
            Token ids, log-probabilities, their sum, perplexity.

        Raises
        ------
        InvalidArgumentError
            If there are fewer than two tokens, or an id is outside the vocabulary.
        ContextLengthError
            If there are more tokens than the context holds, and one.
        """
        if not _is_prompt(text):
            raise InvalidArgumentError("score takes one text; call it for each of a list")
        return score(self._engine, self._ids_of(text))

    def embed(
        self,
        texts: Prompt | Sequence[Prompt],
        pooling: Pooling = "mean",
        *,
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """Return vectors that stand for texts: of hidden states after the final norm.

        Parameters
        ----------
        texts : str, sequence of int, or sequence of those
            A string gets a BOS in front; ids are taken as they are.
        pooling : {"mean", "last"}
            The mean over a text's tokens, BOS included, or the last token's state.
        normalize : bool
            Divide each vector by its length, so that a dot product is the cosine.

        Returns
        -------
        float32, (n, dim)
            A row per text; (dim,) for one text that is not in a list.

        Raises
        ------
        InvalidArgumentError
            If a text is empty, or an id outside the vocabulary.
        ContextLengthError
            If a text has more tokens than the context holds.

        Notes
        -----
        Each text is computed by itself: its vector depends on no other.
        """
        check_pooling(pooling)
        if _is_prompt(texts) and (isinstance(texts, str) or len(texts)):
            ids = self._ids_of(cast(Prompt, texts))
            return embed(self._engine, ids, pooling, normalize=normalize)
        rows = np.empty((len(texts), self.config.dim), np.float32)
        for row, text in zip(rows, cast(Sequence[Prompt], texts), strict=True):
            row[:] = embed(self._engine, self._ids_of(text), pooling, normalize=normalize)
        return rows

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return what the model expects after each token.

        Parameters
        ----------
        token_ids : sequence of int
            One text from its start; no BOS is added.

        Returns
        -------
        float32, (n_tokens, vocab_size)

        Raises
        ------
        InvalidArgumentError
            If there is no token or an id is outside the vocabulary.
        ContextLengthError
            If there are more tokens than the context holds.
        """
        engine = self._engine
        engine.check_open()
        engine.check_ids(token_ids)
        n_tokens = len(token_ids)
        if n_tokens > engine.n_ctx:
            raise ContextLengthError(f"{n_tokens} tokens; the context holds {engine.n_ctx}")
        rows = np.empty((n_tokens, engine.config.vocab_size), np.float32)
        sequence = CachedSequence(engine.pool, n_tokens, wait=True, finishes=True)
        try:
            for start in range(0, n_tokens, ROWS_PER_SLICE):
                part = token_ids[start : start + ROWS_PER_SLICE]
                rows[start : start + len(part)] = engine.forward([Span(sequence, part, len(part))])
        finally:
            sequence.release()
        return rows

    def session(self, *, when_full: WhenFull = "stop", keep: int = 1) -> Session:
        """Begin a text that grows call by call, and keeps what was computed for it.

        Parameters
        ----------
        when_full : {"stop", "slide"}
            What happens where the context is full. "stop": an output ends there (finish_reason
            "length"), and what has no room is refused. "slide": tokens in the middle are left
            behind, so that `keep` of the beginning and the last ones, half a context in all,
            remain; these are read anew.
        keep : int
            Tokens of the beginning that are never left behind: BOS, a system prompt.

        Returns
        -------
        Session
            A context manager.
        """
        return Session(self._engine, when_full=when_full, keep=keep, prepare=self._chat.prepare)

    def _stream(self, prompt: ReadPrompt) -> Stream:
        if prompt.params.n > 1:
            raise InvalidArgumentError(
                f"n is {prompt.params.n}; a stream is of one sample: use generate() or chat(), or "
                "n=1"
            )
        return Stream(self._engine, Request(self._engine, prompt))

    def _chat_prompt(
        self,
        messages: Sequence[MessageLike],
        params: SamplingParams,
        strict: bool,
        template: str | None,
    ) -> ReadPrompt:
        self._engine.check_open()
        ids, params = self._chat.prepare(messages, params, strict=strict, template=template)
        return ReadPrompt(self._engine, ids, params, is_chat=True)

    def _ids_of(self, prompt: Prompt) -> Sequence[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt


def _is_prompt(prompt: Any) -> bool:
    """Tell one prompt from a list of prompts; an empty list is an empty prompt.

    Raises
    ------
    InvalidArgumentError
        If it is neither.
    """
    if isinstance(prompt, str):
        return True
    if not _is_list(prompt):
        raise InvalidArgumentError(
            f"the prompt is a {type(prompt).__name__}; expected a string, a list of token ids, or "
            "a list of those"
        )
    are_prompts = [isinstance(item, str) or _is_list(item) for item in prompt]
    if any(are_prompts) and not all(are_prompts):
        item = prompt[are_prompts.index(False)]
        raise InvalidArgumentError(
            f"a prompt of the list is {item!r:.80}; expected a string or a list of token ids"
        )
    return not any(are_prompts)


def _is_list(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(
        value, (str, bytes, bytearray, memoryview)
    )
