"""Typed access to the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.converter.gguf_file import Value
from llama2q.converter.json_file import shown
from llama2q.errors import ParamsError

_KINDS = {bool: "true or false", int: "an integer", str: "a text", float: "a number"}


@dataclass(frozen=True, slots=True)
class GgufValues:
    """The keys and values of a GGUF file; None stands for an absent key.

    Attributes
    ----------
    where : str
        What messages call the file.
    values : mapping of str to Value
    """

    where: str
    values: Mapping[str, Value]

    def text(self, key: str) -> str | None:
        """Return a text."""
        found = self._get(key, str)
        return found if isinstance(found, str) else None

    def flag(self, key: str) -> bool | None:
        """Return a truth value."""
        found = self._get(key, bool)
        return found if isinstance(found, bool) else None

    def integer(self, key: str) -> int | None:
        """Return an integer; a list that holds the same one for each layer counts as that one."""
        found = self.values.get(key)
        if isinstance(found, np.ndarray) and found.dtype.kind in "iu" and found.size:
            if (found == found[0]).all():
                return int(found[0])
            raise ParamsError(
                f"{self.where}: {key} differs by layer ({shown(found.tolist())}); this engine "
                "computes layers of one shape"
            )
        found = self._get(key, int)
        return found if isinstance(found, int) else None

    def number(self, key: str) -> float | None:
        """Return a number; a float32 as the shortest decimal that stands for it."""
        found = self._get(key, int, float)
        if isinstance(found, float):
            with np.errstate(over="ignore"):
                return float(str(np.float32(found)))
        return float(found) if isinstance(found, int) else None

    def size(self, key: str, default: int | None = None) -> int:
        """Return an integer in [1, 2**31); an absent key without a default is an error."""
        found = self.integer(key)
        if found is None and default is not None:
            return default
        if found is None or not 1 <= found < 2**31:
            raise self._outside(key, found, "a positive integer")
        return found

    def bounded(self, key: str, default: float | None, low: float, high: float) -> float:
        """Return a number in [low, high]; an absent key without a default is an error."""
        found = self.number(key)
        if found is None and default is not None:
            return default
        if found is None or not low <= found <= high:
            raise self._outside(key, found, f"a number in [{low:g}, {high:g}]")
        return found

    def texts(self, key: str) -> tuple[bytes, ...] | None:
        """Return a list of texts, as bytes."""
        found = self.values.get(key)
        if found is not None and not isinstance(found, tuple):
            raise self._wrong(key, "a list of texts")
        return found

    def numbers(self, key: str, kinds: str) -> NDArray[Any] | None:
        """Return a list of numbers whose NumPy kind is one of `kinds`."""
        found = self.values.get(key)
        if found is None:
            return None
        if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds:
            raise self._wrong(key, "a list of numbers")
        return found

    def _get(self, key: str, *kinds: type) -> Value | None:
        found = self.values.get(key)
        if found is not None and type(found) not in kinds:
            raise self._wrong(key, _KINDS[kinds[-1]])
        return found

    def _wrong(self, key: str, expected: str) -> ParamsError:
        found = self.values[key]
        found = found.tolist() if isinstance(found, np.ndarray) else found
        return ParamsError(f"{self.where}: {key} is {shown(found)}; expected {expected}")

    def _outside(self, key: str, found: object, expected: str) -> ParamsError:
        what = f"lacks {key}" if found is None else f"{key} is {found}"
        return ParamsError(f"{self.where}: {what}; expected {expected}")
