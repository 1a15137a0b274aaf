"""What every command does the same: errors, streams, progress, JSON."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from io import TextIOWrapper
from types import TracebackType
from typing import Any, Self

import typer

from llama2q.errors import Llama2qError

INTERRUPTED = 130
"""Exit code of a command ended by Ctrl-C: 128 + SIGINT."""
BROKEN_PIPE = 141
"""Exit code when the reader of stdout has gone: 128 + SIGPIPE."""
_BAR_AFTER_SECONDS = 1.0


def set_up(verbose: bool) -> None:
    """Read and write UTF-8 whatever locale or code page say; log to stderr if asked to."""
    streams = (sys.stdin, "replace"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")
    for stream, errors in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")


def note(text: str) -> None:
    """Print a line to stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and an exit code."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        note("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Llama2qError as error:
        note(f"error: {_one_line(str(error))}")
        raise typer.Exit(1) from None
    except OSError as error:
        if is_broken_pipe(error):
            # Python flushes stdout once more at exit, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        place = f"{error.filename}: " if error.filename is not None else ""
        note("error: " + _one_line(f"{place}{error.strerror or error}"))
        raise typer.Exit(1) from None


def is_broken_pipe(error: OSError, system: str = sys.platform) -> bool:
    """Whether the reader of stdout has gone; Windows calls that an invalid argument."""
    nameless_einval = error.errno == errno.EINVAL and error.filename is None
    return isinstance(error, BrokenPipeError) or (system == "win32" and nameless_einval)


def _one_line(text: str) -> str:
    """Escape what does not print: names in a message may come from anywhere."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout."""
    print(json.dumps(values, ensure_ascii=False, indent=2))


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A bar on stderr, if that is a terminal, for what takes over a second."""

    def __init__(self, title: str, unit: str = "") -> None:
        """Prepare; nothing shows before a second has passed.

        Parameters
        ----------
        title : str
        unit : str
            "bytes" shows sizes, another word follows the counts.
        """
        self._title = title
        self._unit = unit
        self._started = time.monotonic()
        self._enabled = sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __call__(self, done: int, total: int, label: str = "") -> None:
        """Show how far it is; the form that `progress=` arguments take."""
        if not self._enabled or time.monotonic() - self._started < _BAR_AFTER_SECONDS:
            return
        if self._bar is None:
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=total)
        self._bar.update(self._task, completed=done, total=total, description=label or self._title)

    def _make_bar(self) -> Any:
        from rich import progress
        from rich.console import Console

        counts: list[progress.ProgressColumn]
        if self._unit == "bytes":
            counts = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
        else:
            counts = [progress.MofNCompleteColumn(), progress.TextColumn(self._unit)]
        return progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            *counts,
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def gigabytes(n_bytes: int) -> str:
    """Format a size for people: 3.51 GB, 12.3 MB."""
    if n_bytes >= 10**9:
        return f"{n_bytes / 10**9:.2f} GB"
    return f"{n_bytes / 10**6:.1f} MB"
