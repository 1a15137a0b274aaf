"""One prompt on its way to a completion."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from llama2q.engine import Engine, Span
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.generate.completion import Chunk, Completion, FinishReason, Timings, Usage
from llama2q.generate.stopping import StopMatcher
from llama2q.kv_blocks import Sequence as CachedSequence
from llama2q.sampling import SamplingParams
from llama2q.tokenizer import StreamDecoder


class Request:
    """State of one generation: tokens still to be fed, text so far, and why it ended."""

    def __init__(self, engine: Engine, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Check the prompt and prepare its state; nothing is computed and no block taken.

        Raises
        ------
        InvalidArgumentError
            If the prompt is empty or an id is outside the vocabulary.
        ContextLengthError
            If the prompt leaves no room for a token.
        """
        engine.check_open()
        engine.check_ids(prompt_ids)
        self.params = params
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.n_prompt = len(prompt_ids)
        room = engine.n_ctx - self.n_prompt
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {self.n_prompt} tokens and the context holds {engine.n_ctx}, one "
                "of them new at least; shorten the prompt"
                + (
                    f" or load the model with a larger n_ctx (up to {engine.config.max_seq_len})"
                    if engine.n_ctx < engine.config.max_seq_len
                    else ""
                )
            )
        vocab_size = engine.config.vocab_size
        for token in params.stop_token_ids:
            if token >= vocab_size:
                raise InvalidArgumentError(
                    f"stop_token_ids holds {token}; the vocabulary ends at {vocab_size - 1}"
                )
        self._limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self._eos_id = engine.tokenizer.eos_id
        self._pool = engine.pool
        self._sequence: CachedSequence | None = None
        self._pending = [int(token) for token in prompt_ids]
        self._decoder = StreamDecoder(engine.tokenizer)
        for token in self._pending:
            self._decoder.push(token)
        self._stops = StopMatcher(params.stop)
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._n_chunked = 0
        self._n_sampled = 0
        self._started = self._first = self._last = 0.0
        self.finish_reason: FinishReason | None = None
        self._stop_reason: str | int | None = None

    @property
    def is_decoding(self) -> bool:
        """Whether the whole prompt has been read."""
        return self._n_sampled > 0

    @property
    def n_pending(self) -> int:
        """Tokens to feed before the next one can be sampled."""
        return len(self._pending)

    @property
    def position(self) -> int:
        """Position that the next sampled token will occupy."""
        return self._sequence.n_tokens if self._sequence else 0

    def admit(
        self, *, wait: bool, finishes: bool, cancelled: Callable[[], bool] | None = None
    ) -> None:
        """Reserve the blocks of the worst case; see `BlockPool.reserve`."""
        # The last token is returned, never fed.
        self._sequence = CachedSequence(
            self._pool,
            self.n_prompt + self._limit - 1,
            wait=wait,
            finishes=finishes,
            cancelled=cancelled,
        )
        self._started = time.perf_counter()

    def span(self, most: int) -> Span:
        """Return the next tokens to feed, with a row of logits if they are the last pending."""
        if self._sequence is None:
            raise InvalidArgumentError("this request has not been admitted")
        tokens = self._pending[:most]
        return Span(self._sequence, tokens, int(len(tokens) == len(self._pending)))

    def fed(self, span: Span) -> bool:
        """Note that a step took the span; True if the next token can be sampled."""
        del self._pending[: len(span.token_ids)]
        return not self._pending

    def accept(self, token: int) -> Chunk | None:
        """Take the sampled token; return new text, or the last chunk."""
        self._last = time.perf_counter()
        if not self._n_sampled:
            self._first = self._last
        self._n_sampled += 1
        if token == self._eos_id:
            return self._end("stop", None)
        if token in self.params.stop_token_ids:
            return self._end("stop", token)
        self._token_ids.append(token)
        self._pending.append(token)
        text, stop = self._stops.feed(self._decoder.push(token))
        if stop is not None:
            return self._chunk(text, "stop", stop)
        if len(self._token_ids) == self._limit:
            return self._end("length", None, text)
        return self._chunk(text) if text else None

    def _end(self, reason: FinishReason, stop_reason: int | None, text: str = "") -> Chunk:
        """End the text: what was held back belongs to it, unless it completes a stop string."""
        tail, stop = self._stops.feed(self._decoder.flush())
        if stop is not None:
            return self._chunk(text + tail, "stop", stop)
        return self._chunk(text + tail + self._stops.flush(), reason, stop_reason)

    def _chunk(
        self,
        text: str,
        reason: FinishReason | None = None,
        stop_reason: str | int | None = None,
    ) -> Chunk:
        self.finish_reason, self._stop_reason = reason, stop_reason
        self._texts.append(text)
        new = tuple(self._token_ids[self._n_chunked :])
        self._n_chunked = len(self._token_ids)
        return Chunk(text, new, reason)

    def release(self) -> None:
        """Give the blocks back; a second call does nothing."""
        if self._sequence is not None:
            self._sequence.release()

    def completion(self) -> Completion:
        """Return the result; "abort" if it has not ended by itself."""
        prompt_seconds = self._first - self._started if self._n_sampled else 0.0
        decode_seconds = self._last - self._first
        n_decoded = self._n_sampled - 1
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=self.finish_reason or "abort",
            stop_reason=self._stop_reason,
            usage=Usage(self.n_prompt, len(self._token_ids)),
            timings=Timings(
                prompt_seconds,
                decode_seconds,
                self.n_prompt / prompt_seconds if prompt_seconds > 0 else 0.0,
                n_decoded / decode_seconds if decode_seconds > 0 else 0.0,
            ),
            seed=self.seed,
        )
