"""`Session`: one text, read and continued in several calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.closing import Closing
from llama2q.engine import Engine
from llama2q.errors import (
    CancelledError,
    ClosedError,
    InvalidArgumentError,
    SessionBusyError,
)
from llama2q.generate.batch import PROMPT_TOKENS_PER_STEP, Batch
from llama2q.generate.completion import Completion
from llama2q.generate.kept_text import KeptText, n_common
from llama2q.generate.prompt import Prompt
from llama2q.generate.request import Request
from llama2q.generate.stream import Stream
from llama2q.ragged import Span
from llama2q.sampling import SamplingParams
from llama2q.sessions.asked import Asked, checked
from llama2q.sessions.dialogue import DialogueWindow
from llama2q.sessions.store import load, save
from llama2q.sessions.window import WhenFull, Window

Prepare: TypeAlias = Callable[..., tuple[list[int], SamplingParams]]
"""Turns messages and settings into ids and settings: `chat.model_chat.ModelChat.prepare`."""


class Session(Closing):
    """A text that grows call by call; each computes only what is new.

    Results are those of one call with the whole text. Between two calls the blocks of the KV cache
    may go to others who need them; what was lost is computed again when it is needed.

    Calls are safe from any thread and run one after the other; while a stream of the session is
    open, they raise SessionBusyError.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        when_full: WhenFull = "stop",
        keep: int = 1,
        prepare: Prepare | None = None,
    ) -> None:
        """Use `Llama.session`, which documents the parameters."""
        engine.check_open()
        self._engine = engine
        self._window = Window(engine.n_ctx, when_full, keep)
        self._dialogue_window = DialogueWindow(self._window)
        self._prepare = prepare
        self._text = KeptText(engine)
        self._lock = threading.RLock()
        self._is_busy = False
        self._is_closed = False
        self._cancel: _core.CancelFlag | None = None
        self._stream: weakref.ref[Stream] | None = None

    def __len__(self) -> int:
        """Return the number of tokens of the text."""
        return len(self._text.ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The text so far."""
        return tuple(self._text.ids)

    def append(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Add tokens to the text; return what the model expects next.

        Parameters
        ----------
        token_ids : sequence of int
            Taken as they are: the first ones of a text begin with BOS, which is 1.

        Returns
        -------
        float32, (vocab_size,)
            Logits after the last token.

        Raises
        ------
        InvalidArgumentError
            If there is no token or an id is outside the vocabulary.
        ContextLengthError
            If the context has no room for them; with `when_full="slide"`, if it never could.
        """
        engine = self._engine
        with self._call() as cancel:
            engine.check_ids(token_ids)
            new = [int(token) for token in token_ids]
            ids = self._window.hold([*self._text.ids, *new], len(new), room=0)
            sequence, _ = self._text.hold(
                ids, len(ids), wait=True, finishes=True, cancelled=cancel.is_set
            )
            try:
                pending = ids[sequence.n_tokens :]
                while pending:
                    del pending[: sequence.adopt(pending[:-1])]
                    part = pending[:PROMPT_TOKENS_PER_STEP]
                    is_last = len(part) == len(pending)
                    rows = engine.forward([Span(sequence, part, int(is_last))], cancel)
                    del pending[: len(part)]
            except BaseException:
                self._text.settle(self._text.ids)
                raise
            last: NDArray[np.float32] = rows[-1].copy()
            self._text.settle(ids, last)
            return last.copy()

    def generate(
        self,
        prompt: str | Sequence[int] = (),
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> Completion:
        """Add a prompt to the text and continue it; the output is added, too.

        Parameters
        ----------
        prompt : str or sequence of int
            A string is encoded by itself; at the start of the text it gets a BOS in front. Ids are
            taken as they are. An empty one continues the text as it is.
        params : SamplingParams or None
            None takes the defaults. `n` is 1 here, and there is no `prompt_logprobs`.
        **sampling
            Fields of SamplingParams, which replace those of `params`.

        Returns
        -------
        Completion
            Its prompt is the whole text before the output; `usage.cached_tokens` says how much of
            it was not computed. The id that ended the text is not added.

        Raises
        ------
        ContextLengthError
            If the text leaves no room for a token.
        SessionBusyError
            If a stream of this session is open.

        Notes
        -----
        An error, an interrupt too, leaves the session as it was before the call.
        """
        settings = checked(SamplingParams.of(params, sampling))
        return self._generate(lambda: Asked(*self._text_with(prompt), settings))

    def _generate(self, ask: Callable[[], Asked]) -> Completion:
        with self._call() as cancel:
            before = self._text.ids
            request = self._request(ask())
            batch = Batch(self._engine, [request], cancel, finishes=True)
            try:
                while not batch.is_done:
                    batch.step()
            except BaseException:
                batch.release()
                self._text.ids = before
                raise
            return request.completion()

    def stream(
        self,
        prompt: str | Sequence[int] = (),
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> Stream:
        """Continue the text like `generate`, chunk by chunk.

        The session is busy until the stream's end. A stream that is closed before leaves the prompt
        and what was generated in the text; one that was never begun leaves nothing.
        """
        settings = checked(SamplingParams.of(params, sampling))
        return self._begin_stream(lambda: Asked(*self._text_with(prompt), settings))

    def _begin_stream(self, ask: Callable[[], Asked]) -> Stream:
        with self._lock:
            self._check_free()
            request = self._request(ask(), self._end_stream)
            stream = Stream(self._engine, request)
            self._stream = weakref.ref(stream)
            self._is_busy = True
            return stream

    def chat(
        self,
        messages: Sequence[Any],
        params: SamplingParams | None = None,
        *,
        strict: bool = True,
        template: str | None = None,
        **sampling: Any,
    ) -> Completion:
        """Answer the last message of a dialogue, as `Llama.chat` does.

        The text becomes that of the dialogue and the answer. What it has in common with the text
        before is not computed again: of the last answer, that is what is encoded to the same
        tokens as were generated. With `when_full="slide"`, a dialogue that outgrows the context
        leaves its oldest questions and their answers behind.

        Parameters
        ----------
        messages : sequence of Message or mapping
            The whole dialogue.
        params, **sampling
            See `generate`.
        strict, template
            See `Llama.chat`.
        """
        settings = checked(SamplingParams.of(params, sampling))
        return self._generate(lambda: self._dialogue(messages, settings, strict, template))

    def stream_chat(
        self,
        messages: Sequence[Any],
        params: SamplingParams | None = None,
        *,
        strict: bool = True,
        template: str | None = None,
        **sampling: Any,
    ) -> Stream:
        """Answer like `chat`, chunk by chunk; for the session, it is a stream like `stream`'s."""
        settings = checked(SamplingParams.of(params, sampling))
        return self._begin_stream(lambda: self._dialogue(messages, settings, strict, template))

    def _dialogue(
        self,
        messages: Sequence[Any],
        settings: SamplingParams,
        strict: bool,
        template: str | None,
    ) -> Asked:
        if self._prepare is None:
            raise InvalidArgumentError(
                "this session was made without a chat format: make it by `Llama.session`"
            )
        prepare = partial(self._prepare, params=settings, strict=strict, template=template)
        ids, settings = self._dialogue_window.fit(messages, prepare)
        n_new = len(ids) - n_common(ids, self._text.ids)
        return Asked(ids, n_new, settings, is_chat=True)

    def fork(self) -> Session:
        """Return another session with the same text; what is computed is shared, not copied.

        From then on, each goes its own way.
        """
        with self._call():
            other = Session(
                self._engine,
                when_full=self._window.when_full,
                keep=self._window.keep,
                prepare=self._prepare,
            )
            other._dialogue_window = self._dialogue_window.copy()
            other._text = self._text.copy()
            return other

    def rewind(self, n_tokens: int) -> None:
        """Forget all of the text but its first tokens.

        Raises
        ------
        InvalidArgumentError
            If there are fewer.
        """
        with self._call():
            if not isinstance(n_tokens, int) or not 0 <= n_tokens <= len(self):
                raise InvalidArgumentError(
                    f"cannot rewind to {n_tokens!r} tokens; the session has {len(self)}"
                )
            self._text.ids = self._text.ids[:n_tokens]

    def save(self, path: str | Path) -> None:
        """Write the text, and what is computed of it, to a file that only its owner can read.

        The file appears whole or not at all; what had its name is replaced. It takes 4 bytes a
        token, and the KV cache's bytes of whole blocks.
        """
        with self._call(), self._text.computed() as (sequence, n_cached):
            save(self._engine, Path(path), self._text.ids, sequence, n_cached)

    def load(self, path: str | Path) -> None:
        """Replace the text by that of a file which `save` wrote.

        Nothing is computed again, unless another version of llama2q or another device wrote it.
        What the file says was computed is believed, but only by this session and its forks: load
        files that you trust.

        Raises
        ------
        SessionFileError
            If the file is damaged, is of another model, KV cache type or RoPE, or its text is
            longer than the context. The session is as it was.
        KvCacheFullError
            If there is no room in the KV cache.
        """
        with self._call():
            stored = load(self._engine, Path(path))
            self._text.replace(stored.ids, stored.sequence)

    def close(self) -> None:
        """Give the blocks back; from any thread, at any time. A running call ends."""
        self._is_closed = True
        cancel, stream = self._cancel, self._stream() if self._stream else None
        if cancel is not None:
            cancel.set()
        if stream is not None:
            stream.close()
        with self._lock:
            # Within a call this is a signal handler on the calling thread: the call cleans up.
            if not self._is_busy:
                self._text.release()

    def __del__(self) -> None:
        """Give the blocks of a session that was dropped back."""
        if hasattr(self, "_stream"):
            self.close()

    @contextmanager
    def _call(self) -> Iterator[_core.CancelFlag]:
        """Run a call alone; give it the flag that `close` sets."""
        with self._lock:
            self._check_free()
            self._is_busy = True
            self._cancel = cancel = _core.CancelFlag()
            try:
                yield cancel
            except CancelledError:
                self._check_open()
                raise
            finally:
                self._cancel = None
                self._is_busy = False
                if self._is_closed:
                    self._text.release()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("this session has been closed")
        self._engine.check_open()

    def _check_free(self) -> None:
        self._check_open()
        if self._is_busy:
            raise SessionBusyError(
                "a stream of this session is open: iterate to its end or close() it first, or "
                "fork() the session before"
            )

    def _end_stream(self) -> None:
        self._is_busy = False
        if self._is_closed:
            self._text.release()

    def _text_with(self, prompt: str | Sequence[int]) -> tuple[list[int], int]:
        """Return the text with a prompt, and how many tokens that has."""
        ids = self._text.ids
        if isinstance(prompt, str):
            is_first = not ids
            new = self._engine.tokenizer.encode(prompt, bos=is_first) if prompt or is_first else []
        else:
            if len(prompt):
                self._engine.check_ids(prompt)
            new = [int(token) for token in prompt]
        return [*ids, *new], len(new)

    def _request(
        self,
        asked: Asked,
        on_end: Callable[[], None] = lambda: None,
    ) -> Request:
        prompt = Prompt(
            self._engine,
            self._window.hold(asked.ids, asked.n_new, room=1),
            asked.params,
            is_chat=asked.is_chat,
            slide_keep=self._window.slide_keep,
        )
        return Request(self._engine, prompt, kept=self._text, on_end=on_end)
