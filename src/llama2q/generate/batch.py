"""Runs requests together: one ragged step and one call of the sampler per turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.engine import MOST_LARGEST, Engine
from llama2q.errors import KvCacheFullError
from llama2q.generate.completion import Chunk, Completion
from llama2q.generate.prompt import Prompt
from llama2q.generate.request import Request
from llama2q.ragged import Span

PROMPT_TOKENS_PER_STEP = 512
"""Most prompt tokens fed in one step, over all requests."""


class Batch:
    """Requests that share steps. What a request gives does not depend on its neighbours."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        cancel: _core.CancelFlag,
        *,
        finishes: bool,
    ) -> None:
        """Queue the requests.

        Parameters
        ----------
        engine : Engine
        requests : sequence of Request
            Started in this order, as blocks are free.
        cancel : CancelFlag
            Stops a step between two layers.
        finishes : bool
            The caller runs the batch to its end without pause, so others may wait for its blocks.
        """
        self._engine = engine
        self._cancel = cancel
        self._finishes = finishes
        self._waiting = list(requests)
        self._running: list[Request] = []

    @property
    def is_done(self) -> bool:
        """Whether every request has ended."""
        return not self._waiting and not self._running

    def step(self) -> list[tuple[Request, Chunk]]:
        """Take one turn; return the new text of the requests that have some.

        Raises
        ------
        KvCacheFullError
            If no request is running and the next one's blocks are held by idle owners.
        CancelledError
            If the cancel flag was set.
        """
        self._admit()
        requests: list[Request] = []
        spans: list[Span] = []
        ready: list[tuple[Request, NDArray[np.float32]]] = []
        budget = PROMPT_TOKENS_PER_STEP
        for request in self._running:
            if request.prompt.row is not None and not request.n_pending:
                ready.append((request, request.prompt.row))
                continue
            if request.is_decoding:
                span = request.span(1)
            elif budget:
                span = request.span(budget)
                budget -= len(span.token_ids)
            else:
                continue
            requests.append(request)
            spans.append(span)
        n_largest = self._n_largest(requests) if not ready else None
        if n_largest is not None:
            tokens, largest = self._forward_largest(requests, spans, n_largest)
            return self._accept(requests, tokens, list(largest))
        if spans:
            ready += self._forward(requests, spans)
        if not ready:
            return []
        chosen = [request for request, _ in ready]
        logits = stacked([row for _, row in ready])
        raw = [request.edit(row) for request, row in zip(chosen, logits, strict=True)]
        return self._accept(chosen, sample(logits, chosen, self._engine.isa), raw)

    def _accept(
        self,
        chosen: Sequence[Request],
        tokens: NDArray[np.int32],
        raw: Sequence[NDArray[np.float32]],
    ) -> list[tuple[Request, Chunk]]:
        """Hand each request its token; return the new text of those that have some."""
        chunks = []
        for request, token, row in zip(chosen, tokens.tolist(), raw, strict=True):
            chunk = request.accept(token, row)
            if chunk is not None:
                chunks.append((request, chunk))
                if chunk.finish_reason is not None:
                    self._end(request)
        return chunks

    def _n_largest(self, requests: Sequence[Request]) -> int | None:
        """Return how many of a row's largest logits decide the next tokens, if few do.

        None where they come from the host anyway, a prompt is read, or whole rows are needed.
        """
        if not requests or not self._engine.ends_on_device:
            return None
        needed = [request.n_largest for request in requests if request.is_decoding]
        counts = [n for n in needed if n is not None]
        most = min(MOST_LARGEST, self._engine.config.vocab_size)
        if len(counts) < len(requests) or max(counts) > most:
            return None
        return max(counts)

    def _forward_largest(
        self, requests: Sequence[Request], spans: Sequence[Span], n_largest: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Run a step of decoding requests; return their next tokens, and the logits behind these.

        Returns
        -------
        int32, (n_requests,)
        float32, (n_requests, n_largest)
        """
        largest, ids = self._engine.forward_largest(spans, n_largest, self._cancel)
        for request, span, row in zip(requests, spans, largest, strict=True):
            request.fed(span, row[None])
        # Descending, lower ids first: an index into them is drawn as the id would be.
        indices = sample(largest, requests, self._engine.isa)
        return ids[np.arange(len(ids)), indices], largest

    def _forward(
        self, requests: Sequence[Request], spans: Sequence[Span]
    ) -> list[tuple[Request, NDArray[np.float32]]]:
        """Run a step; return the requests that can sample now, each with its row of logits."""
        logits = self._engine.forward(spans, self._cancel)
        ready = []
        end = 0
        for request, span in zip(requests, spans, strict=True):
            start, end = end, end + span.n_rows
            row = request.fed(span, logits[start:end])
            if row is not None:
                ready.append((request, row))
        return ready

    def _end(self, ended: Request) -> None:
        """Hand the blocks of a request that has ended to a sample that waits, or back."""
        heir = next((other for other in self._waiting if other.prompt is ended.prompt), None)
        if heir is None:
            ended.release()
            self._running.remove(ended)
            return
        heir.take_over(ended)
        self._running[self._running.index(ended)] = heir
        self._waiting.remove(heir)

    def release(self) -> None:
        """Give back the blocks of whatever has not ended; nothing can be run after."""
        # An interrupt may have come between a request's admission and its move to `_running`.
        for request in (*self._running, *self._waiting):
            request.release()
        self._running.clear()
        self._waiting.clear()

    def _admit(self) -> None:
        for request in tuple(self._waiting):
            if request.waits_for_prompt:
                continue
            try:
                # Waiting is only safe while this batch holds nothing that others wait for.
                request.admit(
                    wait=not self._running,
                    finishes=self._finishes,
                    cancelled=self._cancel.is_set,
                )
            except KvCacheFullError:
                if not self._running:
                    raise
                return
            self._running.append(request)
            self._waiting.remove(request)


def samples_of(engine: Engine, prompt: Prompt) -> list[Request]:
    """Return a request for each sample that a prompt's settings ask for."""
    return [Request(engine, prompt, index) for index in range(prompt.params.n)]


def complete(engine: Engine, prompts: Sequence[Prompt]) -> list[Completion]:
    """Run prompts together to their ends; return sample 0 of each, which holds its others."""
    samples = [samples_of(engine, prompt) for prompt in prompts]
    requests = [request for group in samples for request in group]
    batch = Batch(engine, requests, _core.CancelFlag(), finishes=True)
    try:
        while not batch.is_done:
            batch.step()
    finally:
        batch.release()
    completions = []
    for group in samples:
        first, *others = [request.completion() for request in group]
        completions.append(replace(first, others=tuple(others)))
    return completions


def stacked(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return rows, float32 (vocab_size,) each, as one array (n, vocab_size), to be written to.

    Nothing is copied where they are all rows of one array already, as they come from a step.
    """
    base = rows[0].base
    if (
        isinstance(base, np.ndarray)
        and base.shape == (len(rows), *rows[0].shape)
        and all(row.base is base for row in rows)
    ):
        return base
    return np.stack(rows)


def sample(logits: NDArray[np.float32], requests: Sequence[Request], isa: str) -> NDArray[np.int32]:
    """Draw the next token of each request.

    Parameters
    ----------
    logits : float32, (n_requests, vocab_size)
    requests : sequence of Request
    isa : str
        Instruction set; all give the same tokens.

    Returns
    -------
    int32, (n_requests,)
    """
    params = [request.params for request in requests]
    return _core.sample(
        logits,
        np.array([p.temperature for p in params], np.float32),
        np.array([p.top_p for p in params], np.float32),
        np.array([p.top_k for p in params], np.int32),
        np.array([p.min_p for p in params], np.float32),
        np.array([request.seed for request in requests], np.uint64),
        np.array([request.sequence_index for request in requests], np.int32),
        np.array([request.position for request in requests], np.int32),
        isa,
    )
