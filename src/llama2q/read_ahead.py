"""Which layers stay in memory and which are read from disk at each step, where not all fit."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from llama2q import memory
from llama2q.format.reader import L2qFile

CACHE_CAN_BE_STEERED = sys.platform == "linux"
"""Whether the core can drop what it has read; all systems read ahead."""
LOADING: Literal["map", "read"] = "read" if sys.platform == "darwin" else "map"
"""How weights come into memory: through the map, or by several threads that read the file.

Where macOS has to bring a mapped page from disk, it reads a few of its neighbours along, one
request at a time; several threads that read the file fill the same page cache as fast as the disk
allows. Layers that are in memory already are not read again.
"""
_WINDOW_LAYERS = 2
"""Streamed layers in memory at once: one is computed with while the next one is read."""
_SHARE_LEFT = 1 / 32
"""How much of the room for weights is left to page tables and what else is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAhead:
    """The layers that do not stay in memory.

    Attributes
    ----------
    n_layers : int
        Layers that the CPU computes.
    streamed : tuple of int
        Those that are read from disk at each step and dropped after use, ascending.
    streamed_bytes : int
        Their size.
    window_bytes : int
        How much of them may be in memory at once.
    """

    n_layers: int
    streamed: tuple[int, ...]
    streamed_bytes: int
    window_bytes: int


def read_ahead_for(file: L2qFile, room: int, n_host_layers: int) -> ReadAhead | None:
    """Choose the layers to stream; as few as possible, evenly spread.

    An LRU cache would be of no use to layers that are read in turn: each would be dropped just
    before it is used again. So what fits stays, and only the rest goes through a small window.

    Parameters
    ----------
    file : L2qFile
    room : int
        Bytes of memory that weights may take.
    n_host_layers : int
        Layers that the CPU computes, the first ones; the others are on devices.

    Returns
    -------
    ReadAhead or None
        None where all weights fit, or where the system offers no control of its cache.
    """
    all_sizes = [end - begin for begin, end in layer_ranges(file)]
    sizes = all_sizes[:n_host_layers]
    host_bytes = file.file_bytes - sum(all_sizes[n_host_layers:])
    if host_bytes <= room or not sizes or not CACHE_CAN_BE_STEERED:
        return None
    n_layers, largest = len(sizes), max(sizes)
    left = room - int(room * _SHARE_LEFT) - (host_bytes - sum(sizes))
    n_streamed = next(
        (n for n in range(n_layers) if (n_layers - n + min(n, _WINDOW_LAYERS)) * largest <= left),
        n_layers,
    )
    if n_streamed == 0:
        return None
    streamed = tuple(
        i for i in range(n_layers) if (i + 1) * n_streamed // n_layers > i * n_streamed // n_layers
    )
    return ReadAhead(
        n_layers=n_layers,
        streamed=streamed,
        streamed_bytes=sum(sizes[i] for i in streamed),
        window_bytes=_WINDOW_LAYERS * largest,
    )


def is_worth_loading(file: L2qFile) -> bool:
    """Whether to read all weights ahead of the first step.

    Where the cache cannot be steered, what does not fit would be read for nothing: its beginning
    would be gone before it is used.
    """
    return CACHE_CAN_BE_STEERED or file.file_bytes <= memory.available_bytes()


def layer_ranges(file: L2qFile) -> list[tuple[int, int]]:
    """Return the first byte of each layer in the file and the byte after its last."""
    ranges: list[tuple[int, int]] = [(file.file_bytes, 0)] * file.config.n_layers
    for tensor in file.tensors.values():
        if tensor.name.startswith("layers."):
            i = int(tensor.name.split(".", 2)[1])
            begin, end = ranges[i]
            ranges[i] = min(begin, tensor.offset), max(end, tensor.offset + tensor.nbytes)
    return ranges
