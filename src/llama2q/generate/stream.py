"""Text as it is generated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Self

from llama2q import _core
from llama2q.closing import Closing
from llama2q.engine import Engine
from llama2q.errors import CancelledError, InvalidArgumentError
from llama2q.generate.batch import Batch
from llama2q.generate.completion import Chunk, Completion
from llama2q.generate.request import Request


class Stream(Iterator[Chunk], Closing):
    """An iterator of chunks, and a context manager that closes it.

    Nothing is computed before the first chunk is asked for. Blocks of the KV cache are held from
    then to the end, or to `close`; a stream that is dropped closes itself.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._request = request
        self._cancel = _core.CancelFlag()
        self._batch = Batch(engine, [request], self._cancel, finishes=False)
        self._lock = threading.RLock()
        self._is_stepping = False
        self._is_closed = False

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> Chunk:
        """Return the next chunk.

        Raises
        ------
        StopIteration
            After the last chunk, and once closed.
        """
        with self._lock:
            if self._is_closed or self._batch.is_done:
                raise StopIteration
            try:
                return self._step()
            except CancelledError:
                if not self._cancel.is_set():
                    raise
                self._end()
                raise StopIteration from None
            except BaseException:
                self._end()
                raise

    def _step(self) -> Chunk:
        """Run steps until one gives a chunk."""
        self._is_stepping = True
        try:
            while True:
                for _, chunk in self._batch.step():
                    return chunk
        finally:
            self._is_stepping = False

    def __del__(self) -> None:
        """Close a stream that was dropped."""
        if hasattr(self, "_is_stepping"):
            self.close()

    def close(self) -> None:
        """Stop; from any thread, at any time, also from a signal handler during a step.

        A running step ends before its next layer; its thread sees the end of the iteration.
        """
        self._cancel.set()
        with self._lock:
            # Within a step this is a signal handler on the stepping thread: `__next__` cleans up.
            if not self._is_stepping:
                self._end()

    def _end(self) -> None:
        self._is_closed = True
        self._batch.release()

    @property
    def completion(self) -> Completion:
        """The whole result, once the stream has ended or was closed.

        Raises
        ------
        InvalidArgumentError
            If it is still open.
        """
        if not (self._is_closed or self._batch.is_done):
            raise InvalidArgumentError(
                "the stream is still open; iterate to its end, or close() it, then ask for "
                "its completion"
            )
        return self._request.completion()
