"""One sample of a prompt on its way to a completion."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llama2q.engine import Engine
from llama2q.errors import InvalidArgumentError
from llama2q.generate.completion import Chunk, Completion, FinishReason, Timings, Usage
from llama2q.generate.kept_text import KeptText
from llama2q.generate.logit_edits import LogitEdits
from llama2q.generate.logprobs import TokenLogprobs, token_logprobs
from llama2q.generate.prompt import Prompt
from llama2q.generate.receipt import Receipt, receipt_of
from llama2q.generate.stopping import StopMatcher
from llama2q.kv_sequence import Sequence as CachedSequence
from llama2q.ragged import Span
from llama2q.tokenizer import StreamDecoder

PROMPT_ROWS_PER_STEP = 128
"""Most tokens of one prompt fed in a step where the logits of each are asked for."""


def n_after_slide(keep: int, n_ctx: int) -> int:
    """Return how many tokens a full context goes on with: half of it, `keep` and one at least."""
    return max(n_ctx // 2, keep + 1)


class Request:
    """State of one generation: tokens still to be fed, text so far, and why it ended."""

    def __init__(
        self,
        engine: Engine,
        prompt: Prompt,
        sequence_index: int = 0,
        *,
        kept: KeptText | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare the state of one sample; nothing is computed and no block taken.

        Parameters
        ----------
        engine : Engine
        prompt : Prompt
        sequence_index : int
            Which sample of the prompt this is.
        kept : KeptText or None
            Where the prompt may be found in the cache, and where it and the output remain.
        on_end : callable
            Called once, when the blocks are given back.
        """
        params = prompt.params
        self.prompt = prompt
        self.params = params
        self.seed = prompt.seed
        self.sequence_index = sequence_index
        self._engine = engine
        self._limit = prompt.limit
        ending_ids = params.stop_token_ids
        if not params.ignore_eos:
            ending_ids = (engine.tokenizer.eos_id, *ending_ids)
        self._ending_ids = frozenset(ending_ids)
        self._edits = LogitEdits(params, prompt.ids, ending_ids)
        self._sequence: CachedSequence | None = None
        self._kept = kept
        self._on_end = on_end
        self._is_released = False
        self._is_rereading = False
        self._n_slid = 0
        self._n_computed = 0
        self._pending = list(prompt.ids)
        self._decoder = StreamDecoder(engine.tokenizer)
        self._prompt_text = "".join([self._decoder.push(token) for token in self._pending])
        self._stops = StopMatcher(params.stop)
        self._strips_start = prompt.is_chat and not params.echo
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._texts: list[str] = []
        self._n_chunks = 0
        self._n_chunked = 0
        self._n_sampled = 0
        self._started = self._first = self._last = 0.0
        self.finish_reason: FinishReason | None = None
        self._stop_reason: str | int | None = None

    @property
    def is_decoding(self) -> bool:
        """Whether all has been read but for the token sampled last."""
        return self._n_sampled > 0 and not self._is_rereading

    @property
    def n_largest(self) -> int | None:
        """How many of the largest logits decide the next token; None where all do."""
        params = self.params
        if self._edits.is_active or params.logprobs is not None:
            return None
        return 1 if params.temperature == 0 else params.top_k or None

    @property
    def n_pending(self) -> int:
        """Tokens to feed before the next one can be sampled."""
        return len(self._pending)

    @property
    def position(self) -> int:
        """Position that the next sampled token will occupy, had nothing been left behind."""
        return self._sequence.n_tokens + self._n_slid if self._sequence else 0

    @property
    def history(self) -> list[int]:
        """Ids of prompt and output, less those that the context had to leave behind."""
        ids = [*self.prompt.ids, *self._token_ids]
        keep = self.prompt.slide_keep
        return ids[:keep] + ids[keep + self._n_slid :] if keep is not None else ids

    @property
    def waits_for_prompt(self) -> bool:
        """Whether another sample is reading the prompt just now."""
        return self.prompt.reader is not None and self.prompt.row is None

    def admit(
        self, *, wait: bool, finishes: bool, cancelled: Callable[[], bool] | None = None
    ) -> None:
        """Reserve the blocks of the worst case; see `BlockPool.reserve`.

        What the cache holds of the prompt is taken from there, but for its last token, whose logits
        are needed. A sample whose prompt has been read begins with a fork of the reader's sequence.
        """
        prompt = self.prompt
        self._started = time.perf_counter()
        if self._kept is not None:
            self._sequence, prompt.row = self._kept.hold(
                prompt.ids, prompt.capacity, wait=wait, finishes=finishes, cancelled=cancelled
            )
            self._pending = prompt.ids[self._sequence.n_tokens :]
            prompt.reader = self
            return
        if prompt.reader is None or prompt.reader._sequence is None:
            self._sequence = CachedSequence(
                self._engine.pool,
                prompt.capacity,
                begins=prompt.reusable_ids,
                # Other samples begin again where the prompt ends: none may share that block.
                most_public=None if self.params.n == 1 else len(prompt.ids),
                wait=wait,
                finishes=finishes,
                cancelled=cancelled,
            )
            self._pending = prompt.ids[self._sequence.n_tokens :]
            prompt.reader = self
            return
        self._sequence = prompt.reader._sequence.fork(
            len(prompt.ids),
            prompt.capacity,
            self._engine.copy_block,
            wait=wait,
            finishes=finishes,
            cancelled=cancelled,
        )
        self._pending.clear()

    def take_over(self, ended: Request) -> None:
        """Begin with the sequence of another sample of the same prompt, which has ended."""
        if ended._sequence is None or ended.prompt is not self.prompt:
            raise InvalidArgumentError("only a sample of the same prompt can be followed")
        self._started = time.perf_counter()
        self._sequence = ended._sequence
        self._sequence.rewind(len(self.prompt.ids))
        self._pending.clear()
        self.prompt.reader = self
        ended._sequence = None

    def span(self, most: int) -> Span:
        """Return the next tokens to feed, with rows of logits as needed."""
        if self._sequence is None:
            raise InvalidArgumentError("this request has not been admitted")
        if not self.is_decoding and self.prompt.reusable_ids:
            # Another request may have computed what comes next since this one was admitted.
            del self._pending[: self._sequence.adopt(self._pending[:-1])]
        if self.params.prompt_logprobs is not None and not self.is_decoding:
            tokens = self._pending[: min(most, PROMPT_ROWS_PER_STEP)]
            return Span(self._sequence, tokens, len(tokens))
        tokens = self._pending[:most]
        return Span(self._sequence, tokens, int(len(tokens) == len(self._pending)))

    def fed(self, span: Span, rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Note that a step took the span; return the next token's logits if it can be sampled.

        Parameters
        ----------
        span : Span
        rows : float32, (span.n_rows, vocab_size)

        Returns
        -------
        float32, (vocab_size,), or None
        """
        del self._pending[: len(span.token_ids)]
        if not self._n_sampled:
            self._n_computed += len(span.token_ids)
            self.prompt.add_logprobs(self._engine, rows)
        if self._pending:
            return None
        self._is_rereading = False
        last: NDArray[np.float32] = rows[-1]
        if not self._n_sampled and self.params.n > 1:
            self.prompt.row = last.copy()
        return last

    def edit(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Edit the next token's logits, float32 (vocab_size,), in place; return the model's own."""
        if not self._edits.is_active:
            return logits
        raw = logits if self.params.logprobs is None else logits.copy()
        self._edits.apply(logits)
        return raw

    def accept(self, token: int, logits: NDArray[np.float32]) -> Chunk | None:
        """Take the sampled token; return new text, or the last chunk.

        Parameters
        ----------
        token : int
        logits : float32, (vocab_size,)
            The model's own, as `edit` returned them.
        """
        self._last = time.perf_counter()
        if not self._n_sampled:
            self._first = self._last
        self._n_sampled += 1
        if token in self._ending_ids:
            return self._end("stop", token if token in self.params.stop_token_ids else None)
        self._token_ids.append(token)
        self._pending.append(token)
        self._edits.add(token)
        if self.params.logprobs is not None:
            self._logprobs += token_logprobs(
                logits[None],
                np.array([token], np.int32),
                self.params.logprobs,
                self._engine.tokenizer,
                self._engine.isa,
            )
        text, stop = self._match(self._decoder.push(token))
        if stop is not None:
            return self._chunk(text, "stop", stop)
        if len(self._token_ids) == self._limit:
            return self._end("length", None, text)
        self._slide_if_full()
        return self._chunk(text) if text else None

    def _slide_if_full(self) -> None:
        """Where the sampled token finds no room, make some: leave tokens in the middle behind."""
        keep = self.prompt.slide_keep
        if keep is None or self._sequence is None or self._sequence.n_tokens < self.prompt.n_ctx:
            return
        ids = self.history
        self._n_slid += len(ids) - n_after_slide(keep, self.prompt.n_ctx)
        ids = self.history
        self._sequence.rewind_near(keep)
        self._pending = ids[self._sequence.n_tokens :]
        self._is_rereading = True

    def _match(self, text: str) -> tuple[str, str | None]:
        """Look for stop strings, but not in the text of the first `min_tokens` tokens.

        White space before an answer in chat is taken away first.
        """
        if self._strips_start:
            text = text.lstrip()
            self._strips_start = not text
        if len(self._token_ids) <= self.params.min_tokens:
            return text, None
        return self._stops.feed(text)

    def _end(self, reason: FinishReason, stop_reason: int | None, text: str = "") -> Chunk:
        """End the text: what was held back belongs to it, unless it completes a stop string."""
        tail, stop = self._match(self._decoder.flush())
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
        self._n_chunks += 1
        if self.params.echo and self._n_chunks == 1:
            return Chunk(self._prompt_text + text, (*self.prompt.ids, *new), reason)
        return Chunk(text, new, reason)

    def release(self) -> None:
        """Give the blocks back, or leave them to the kept text; a second call does nothing."""
        if self._is_released:
            return
        self._is_released = True
        if self._kept is not None:
            if self._sequence is not None:
                self._kept.settle(self.history)
        elif self._sequence is not None:
            self._sequence.release()
        self._on_end()

    def completion(self) -> Completion:
        """Return the result; "abort" if it has not ended by itself."""
        prompt_seconds = self._first - self._started if self._n_sampled else 0.0
        decode_seconds = self._last - self._first
        n_decoded = self._n_sampled - 1
        params = self.params
        reason: FinishReason = self.finish_reason or "abort"
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=reason,
            stop_reason=self._stop_reason,
            usage=Usage(
                len(self.prompt.ids),
                len(self._token_ids),
                len(self.prompt.ids) - self._n_computed if self._n_sampled else 0,
            ),
            timings=Timings(
                prompt_seconds,
                decode_seconds,
                self._n_computed / prompt_seconds if prompt_seconds > 0 else 0.0,
                n_decoded / decode_seconds if decode_seconds > 0 else 0.0,
            ),
            seed=self.seed,
            index=self.sequence_index,
            prompt=self._prompt_text if params.echo else None,
            prompt_token_ids=tuple(self.prompt.ids) if params.echo else None,
            logprobs=None if params.logprobs is None else tuple(self._logprobs),
            prompt_logprobs=(
                None if params.prompt_logprobs is None else tuple(self.prompt.logprobs)
            ),
            receipt=self._receipt(reason),
        )

    def _receipt(self, reason: FinishReason) -> Receipt | None:
        """Return what proves the output; None where a slide left tokens behind."""
        if self._n_slid:
            return None
        return receipt_of(
            self._engine,
            self.params,
            prompt_ids=self.prompt.ids,
            limit=self._limit,
            seed=self.seed,
            index=self.sequence_index,
            token_ids=self._token_ids,
            finish_reason=reason,
        )
