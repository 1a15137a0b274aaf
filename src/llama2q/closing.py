"""What is closed at the end of a `with` block."""

from __future__ import annotations

from typing import Self


class Closing:
    """A context manager whose end is `close`, which each class defines."""

    __slots__ = ()

    def close(self) -> None:
        """Let go of what is held; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()
