"""Finds stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until a stop string appears; never lets a part of one through.

    The string that ends first ends the text (the longest, if several end at the same character),
    so how the text was cut into pieces makes no difference.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str | None]:
        """Take the next piece.

        Returns
        -------
        text : str
            What is certain to come before any stop string.
        stop : str or None
            The stop string found; nothing may be fed after it.
        """
        if not self._stops:
            return piece, None
        text = self._held + piece
        matches = [
            (begin + len(stop), begin, stop)
            for stop in self._stops
            if (begin := text.find(stop)) >= 0
        ]
        if matches:
            _, begin, stop = min(matches)
            self._held = ""
            return text[:begin], stop
        keep = next(
            n
            for n in range(min(len(text), self._longest - 1), -1, -1)
            if n == 0 or any(stop.startswith(text[-n:]) for stop in self._stops)
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """Return the text held back, when no more will come."""
        text, self._held = self._held, ""
        return text
