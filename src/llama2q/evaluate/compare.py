"""How far a model is from another one on a text: KL divergence and what goes with it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.engine import Engine
from llama2q.errors import ContextLengthError, InsufficientMemoryError, VocabularyMismatchError
from llama2q.evaluate.comparison import ComparedModel, Comparison
from llama2q.evaluate.divergence import TokenScores, score_rows
from llama2q.evaluate.stored_logits import StoredLogits, temp_folder
from llama2q.evaluate.windows import Protocol, Window, cut, scored_logits, window_of
from llama2q.format.layout import TOKENIZER
from llama2q.format.reader import L2qFile
from llama2q.plan import KvChoice, check_count, plan_for
from llama2q.tokenizer import Tokenizer

Progress: TypeAlias = Callable[[int, int], None]

ScoreWindow: TypeAlias = Callable[
    [Sequence[int], int], Iterable[tuple[NDArray[np.float32], Sequence[int]]]
]
"""Takes the tokens of a window and the first row to be scored; gives, a slice of rows at a time,
logits (n, vocab_size) and the tokens that follow: rows first_row to len(tokens) - 2 in all."""

TEMP_BYTES = 2 * 2**30
"""Most bytes of the temporary file, unless one window needs more."""


def compare(
    a: str | Path,
    b: str | Path,
    text: str,
    *,
    protocol: Protocol = "llama.cpp",
    n_ctx: int | None = None,
    n_tokens: int | None = None,
    kv_dtype: KvChoice = "auto",
    kv_dtype_b: KvChoice | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure how far a model's predictions are from those of a reference.

    Parameters
    ----------
    a, b : str or Path
        `.l2q` files: the reference and the candidate, with the same vocabulary.
    text : str
        Taken as it is, in A's tokens.
    protocol : {"llama.cpp", "gptq"}
        Windows and scored tokens are those of `llama2q.evaluate.perplexity.perplexity`.
    n_ctx : int or None
        Tokens of a window; None takes the protocol's 512 or 2048.
    n_tokens : int or None
        Score at least so many tokens, in whole windows from the start; None scores the whole text,
        and so does a number above what it has.
    kv_dtype : {"auto", "f32", "f16", "int8"}
        KV cache of both; "auto" takes for both what suits A: f32 if it is not quantized.
    kv_dtype_b : {"auto", "f32", "f16", "int8"} or None
        KV cache of B; None takes A's.
    n_threads : int or None
        Computing threads; None takes the physical cores.
    progress : callable or None
        Called with the windows done and those in all; each counts once for either model.

    Returns
    -------
    Comparison

    Raises
    ------
    VocabularyMismatchError
        If the files do not have the same tokens.
    InvalidArgumentError
        If an argument is outside its range or the text does not fill a window.
    ContextLengthError
        If a window is longer than the context of a model.
    InsufficientMemoryError
        If a model's KV cache and work space do not fit the free memory.
    DiskSpaceError
        If the temporary file does not fit.
    NonFiniteError
        If a model computes NaN or infinity.

    Notes
    -----
    One model is open at a time. A's logits are kept in a temporary file, as the float32 that they
    are, and removed; all is computed from them in float64. Where they would take more than 2 GiB,
    or half of the free disk, the models take turns, as many windows at a time as that holds.
    """
    with Reference(
        a,
        text,
        protocol=protocol,
        n_ctx=n_ctx,
        n_tokens=n_tokens,
        kv_dtype=kv_dtype,
        n_threads=n_threads,
    ) as reference:
        return reference.compare(b, kv_dtype=kv_dtype_b, progress=progress)


class Reference(Closing):
    """A reference model and a text, to compare any number of candidates with. A context manager.

    The logits are computed for the first candidate and kept for the others, if the temporary file
    holds them all; else they are computed anew for each.
    """

    def __init__(
        self,
        path: str | Path,
        text: str,
        *,
        protocol: Protocol = "llama.cpp",
        n_ctx: int | None = None,
        n_tokens: int | None = None,
        kv_dtype: KvChoice = "auto",
        n_threads: int | None = None,
        temp_bytes: int = TEMP_BYTES,
    ) -> None:
        """Cut the text; nothing is computed yet. See `compare` for parameters and errors.

        Parameters
        ----------
        temp_bytes : int
            Most bytes of the temporary file, unless one window needs more.
        """
        check_count("n_threads", n_threads)
        check_count("n_tokens", n_tokens)
        self._path = Path(path)
        self._protocol = protocol
        self._window = window_of(protocol, n_ctx)
        self._n_threads = n_threads
        with L2qFile(path) as file:
            _check_context(file, self._window)
            self._vocabulary = file.array(TOKENIZER).tobytes()
            self.model = self._describe(file, kv_dtype)
            row_bytes = 4 * file.config.vocab_size
        tokenizer = Tokenizer.from_bytes(self._vocabulary)
        windows = cut(tokenizer, text, protocol, self._window)
        wanted = len(windows) if n_tokens is None else -(-n_tokens // self._window.n_scored)
        self._windows = windows[:wanted]
        self._window_bytes = row_bytes * self._window.n_scored
        room = min(temp_bytes, shutil.disk_usage(temp_folder()).free // 2)
        self._per_round = max(1, room // self._window_bytes)
        self._kept: StoredLogits | None = None

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return self._window.size

    @property
    def temp_bytes(self) -> int:
        """Size of the temporary file."""
        return min(self._per_round, len(self._windows)) * self._window_bytes

    def close(self) -> None:
        """Remove the temporary file."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def compare(
        self,
        path: str | Path,
        *,
        kv_dtype: KvChoice | None = None,
        progress: Progress | None = None,
    ) -> Comparison:
        """Compare a candidate; see `llama2q.compare`.

        Parameters
        ----------
        path : str or Path
            A `.l2q` file.
        kv_dtype : {"auto", "f32", "f16", "int8"} or None
            Its KV cache; None takes the reference's.
        progress : callable or None
            Called with the windows done and those in all.
        """
        with L2qFile(path) as file:
            self._check_vocabulary(file)
            _check_context(file, self._window)
            candidate = self._describe(file, kv_dtype or self.model.kv_dtype)
        return self.compare_with(
            candidate, lambda: self._open(path, candidate.kv_dtype), progress=progress
        )

    def compare_with(
        self,
        candidate: ComparedModel,
        open_candidate: Callable[[], AbstractContextManager[ScoreWindow]],
        *,
        progress: Progress | None = None,
    ) -> Comparison:
        """Compare a candidate that may be of another program.

        Parameters
        ----------
        candidate : ComparedModel
            What it is; it must have the reference's tokens.
        open_candidate : callable
            Opens it; called again for each round where the temporary file does not hold all.
        progress : callable or None
            Called with the windows done and those in all.
        """
        started = time.perf_counter()
        count = _Count(progress, len(self._windows) * (1 if self._kept else 2))
        parts: list[TokenScores] = []
        for begin in range(0, len(self._windows), self._per_round):
            windows = self._windows[begin : begin + self._per_round]
            with ExitStack() as stack:
                stored = self._stored(windows, count, stack)
                score = stack.enter_context(open_candidate())
                for logits, targets in self._run(score, windows, count):
                    parts.append(score_rows(stored.read(len(logits)), logits, targets))
        return Comparison.of(
            TokenScores.concatenate(parts),
            len(self._windows),
            a=self.model,
            b=candidate,
            protocol=self._protocol,
            window=self._window.size,
            seconds=time.perf_counter() - started,
        )

    def _stored(
        self, windows: Sequence[list[int]], count: _Count, stack: ExitStack
    ) -> StoredLogits:
        """Return A's logits of some windows, ready to be read from the first one on."""
        if self._kept is not None:
            self._kept.rewind()
            return self._kept
        with ExitStack() as on_error:
            stored = on_error.enter_context(StoredLogits(len(windows) * self._window_bytes))
            with self._open(self._path, self.model.kv_dtype) as score:
                for logits, _ in self._run(score, windows, count):
                    stored.append(logits)
            on_error.pop_all()
        if len(windows) == len(self._windows):
            self._kept = stored
        else:
            stack.enter_context(stored)
        stored.rewind()
        return stored

    def _describe(self, file: L2qFile, kv_dtype: KvChoice) -> ComparedModel:
        """Choose the type of the KV cache, once for all rounds, and see that the model can load."""
        plan = plan_for(
            file,
            n_ctx=self._window.size,
            kv_choice=kv_dtype,
            n_sequences=1,
            n_threads=self._n_threads,
        )
        if not plan.can_load:
            raise InsufficientMemoryError(plan.message)
        return ComparedModel.of(file, plan.kv_dtype)

    @contextmanager
    def _open(self, path: str | Path, kv_dtype: KvChoice) -> Iterator[ScoreWindow]:
        with Engine(
            path,
            n_ctx=self._window.size,
            kv_dtype=kv_dtype,
            n_threads=self._n_threads,
            max_sequences=1,
        ) as engine:
            yield partial(scored_logits, engine)

    def _run(
        self, score: ScoreWindow, windows: Sequence[list[int]], count: _Count
    ) -> Iterator[tuple[NDArray[np.float32], Sequence[int]]]:
        for tokens in windows:
            yield from score(tokens, self._window.first_row)
            count.one()

    def _check_vocabulary(self, file: L2qFile) -> None:
        other = file.array(TOKENIZER).tobytes()
        if other == self._vocabulary:
            return
        ours, theirs = (Tokenizer.from_bytes(data) for data in (self._vocabulary, other))
        names = f"{self._path.name} and {file.path.name}"
        if ours.vocab_size != theirs.vocab_size:
            raise VocabularyMismatchError(
                f"{names} have {ours.vocab_size} and {theirs.vocab_size} tokens; only models of "
                "one vocabulary can be compared"
            )
        for token in range(ours.vocab_size):
            if ours.text_of(token) != theirs.text_of(token):
                raise VocabularyMismatchError(
                    f"token {token} is {ours.text_of(token)!r} in {self._path.name} and "
                    f"{theirs.text_of(token)!r} in {file.path.name}; only models of one "
                    "vocabulary can be compared"
                )


class _Count:
    """Counts windows for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._done = 0
        self._total = total

    def one(self) -> None:
        """Count one more."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _check_context(file: L2qFile, window: Window) -> None:
    if window.size > file.config.max_seq_len:
        raise ContextLengthError(
            f"windows of {window.size} tokens; the context of {file.path.name} holds "
            f"{file.config.max_seq_len}"
        )
