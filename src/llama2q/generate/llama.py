"""`Llama`: a loaded model, as users hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.devices import DeviceRequest
from llama2q.engine import Engine, Span
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.generate.batch import Batch
from llama2q.generate.completion import Completion
from llama2q.generate.prompt import Prompt as ReadPrompt
from llama2q.generate.request import Request
from llama2q.generate.score import Score, score
from llama2q.generate.stream import Stream
from llama2q.kv_sequence import Sequence as CachedSequence
from llama2q.plan import KvChoice
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
        samples = [self._samples(p, settings) for p in prompts]
        requests = [request for group in samples for request in group]
        batch = Batch(self._engine, requests, _core.CancelFlag(), finishes=True)
        try:
            while not batch.is_done:
                batch.step()
        finally:
            batch.release()
        completions = []
        for group in samples:
            first, *others = [request.completion() for request in group]
            completions.append(replace(first, others=tuple(others)))
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
        if settings.n > 1:
            raise InvalidArgumentError(
                f"n is {settings.n}; a stream is of one sample: use generate(), or n=1"
            )
        (request,) = self._samples(prompt, settings)
        return Stream(self._engine, request)

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
        return Session(self._engine, when_full=when_full, keep=keep)

    def _samples(self, prompt: Prompt, params: SamplingParams) -> list[Request]:
        read = ReadPrompt(self._engine, self._ids_of(prompt), params)
        return [Request(self._engine, read, index) for index in range(params.n)]

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


def load(
    path: str | Path,
    *,
    n_ctx: int | None = None,
    kv_dtype: KvChoice = "auto",
    n_threads: int | None = None,
    device: str = "auto",
    gpu_layers: int | str = "auto",
    gpu_memory: int | str | None = None,
    stream_prefill: int | str | None = "auto",
    prefix_memory: int | str | None = None,
) -> Llama:
    """Load a model file; the weights are mapped, not read.

    Parameters
    ----------
    path : str or Path
        A `.l2q` file, as `llama2q.convert` writes it.
    n_ctx : int or None
        Most tokens of prompt and completion together; None takes the model's own.
    kv_dtype : {"auto", "f32", "f16", "int8"}
        Type of the KV cache. "auto": f32 for an unquantized model; else f16 where weights and
        cache fit the available memory, else int8. The choice is logged.
    n_threads : int or None
        Computing threads, at most as many as there are CPUs for them; None takes the physical cores
        that this process may use.
    device : str
        "auto": GPUs where there are any; "cpu"; "cuda": all GPUs, or an error that says why not;
        "cuda:N": that one. The choice is logged.
    gpu_layers : int or "auto"
        Layers on GPUs, the last ones of the model; "auto": as many as fit.
    gpu_memory : int, str or None
        How much of each GPU's memory may be taken: bytes, or text like "7GB". None: what is free
        but for 512 MiB or 5 %.
    stream_prefill : int, "auto" or None
        Where the CPU has layers beside a GPU: a prompt's passes of at least so many tokens send
        their weights through the GPU, which computes them faster; that takes the GPU's memory of
        one layer. "auto": where the way takes less time than the CPU; None: never.
    prefix_memory : int, str or None
        Most memory of the KV cache that holds texts which nobody uses any more, in case that they
        come again: bytes, or text like "2GB"; 0 keeps none. None: all of the cache that is not
        needed otherwise.

    Returns
    -------
    Llama
        A context manager.

    Raises
    ------
    FormatError
        If the file is not a sound `.l2q` file.
    InvalidArgumentError
        If an argument is outside its range.
    InsufficientMemoryError
        If KV cache and work space do not fit the free memory; the message says what would.
    DeviceError
        If a GPU was asked for by name and cannot be used; the message names what is missing.

    Notes
    -----
    `llama2q.plan` says beforehand what loading needs. Weights that do not fit the memory beside the
    rest are read from the disk again and again: that works, slowly, and is logged as a warning.
    """
    request = DeviceRequest.of(device, gpu_layers, gpu_memory, stream_prefill)
    return Llama(
        Engine(
            path,
            n_ctx=n_ctx,
            kv_dtype=kv_dtype,
            n_threads=n_threads,
            request=request,
            prefix_memory=prefix_memory,
        )
    )
