"""Evening out channels that differ from the others by powers of two, which no output shows.

Llama's norms, w3 and wv each feed channels to matrices that read nothing else: dividing a channel
by 2^k where it is made and multiplying the matching columns by 2^k leaves every output as it is, to
the bit while nothing is rounded. Where a channel is far larger than the others and its columns are
as much smaller, a group of activations that holds it loses the others to its scale, and a group of
weights loses its columns. Such channels are brought to the others' size before weights are rounded.

Nothing is run: how large a channel gets is told by what makes it, the norm's weight or the largest
weight of its row. tools/make_outlier.py makes checkpoints that need it; docs/quality.md has the
figures.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q.config import ModelConfig
from llama2q.converter.forms import Checkpoint
from llama2q.converter.wrapped import WrappedCheckpoint
from llama2q.quant.bits import widen

_log = logging.getLogger(__name__)

_F64: TypeAlias = NDArray[np.float64]
Exponents: TypeAlias = NDArray[np.int32]

LEAST = 2
"""Channels are moved from a factor of 2^2 on: half of that moves one channel of the demo model and
gains nothing."""
_SAMPLE = 256
"""Columns that stand for all when the usual size is asked."""
_PANEL_ROWS = 512


@dataclass(frozen=True, slots=True)
class Site:
    """Where a layer's channels are made and read.

    Attributes
    ----------
    maker : str
        A norm, or a matrix whose rows are the channels.
    readers : tuple of str
        Matrices whose columns are the channels.
    copies : int
        How many columns read one channel: more than one for wv, whose heads several query heads
        share.
    """

    maker: str
    readers: tuple[str, ...]
    copies: int = 1


def sites(config: ModelConfig, layer: int) -> tuple[Site, ...]:
    """Return those of a layer, by Meta's names."""
    a, f = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
    copies = config.n_heads // config.n_kv_heads
    qkv = tuple(f"{a}.{name}.weight" for name in ("wq", "wk", "wv"))
    return (
        Site(f"layers.{layer}.attention_norm.weight", qkv),
        Site(f"layers.{layer}.ffn_norm.weight", (f"{f}.w1.weight", f"{f}.w3.weight")),
        Site(f"{a}.wv.weight", (f"{a}.wo.weight",), copies),
        Site(f"{f}.w3.weight", (f"{f}.w2.weight",)),
    )


@dataclass(slots=True, eq=False, kw_only=True)
class EqualizedCheckpoint(WrappedCheckpoint):
    """A checkpoint whose outlying channels are evened out, layer by layer as it is read.

    A tensor that changes is float32; all others are the checkpoint's own.
    """

    _base: Checkpoint
    _layers: dict[int, list[tuple[Site, Exponents]]] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Checkpoint) -> Self:
        """Wrap a checkpoint; nothing is read yet."""
        return cls(_base=base)

    @property
    def n_moved(self) -> int:
        """How many channels were moved in the layers read so far."""
        return sum(
            int(np.count_nonzero(exponents))
            for found in self._layers.values()
            for _, exponents in found
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """The checkpoint's, and how many channels were moved."""
        if not self.n_moved:
            return self._base.notes
        return (
            *self._base.notes,
            f"{self.n_moved} channels that were far larger or smaller than the others were brought "
            "to their size by powers of two, which changes no output",
        )

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor, its channels evened out."""
        weights = self._base.read(name)
        made, reads = self._exponents(name)
        if made is None and reads is None:
            return weights
        moved = widen(weights) if weights.dtype != np.float32 else weights.copy()
        if made is not None:
            np.ldexp(moved, -(made if moved.ndim == 1 else made[:, None]), out=moved)
        if reads is not None:
            np.ldexp(moved, reads, out=moved)
        return moved

    def reading_bytes(self, name: str) -> int:
        """Return what the checkpoint takes, and a float32 copy, should the tensor change."""
        copy = 4 * math.prod(self.shapes[name]) if name.startswith("layers.") else 0
        return self._base.reading_bytes(name) + copy

    def _exponents(self, name: str) -> tuple[Exponents | None, Exponents | None]:
        """Return those by which a tensor's rows (or elements) shrink and its columns grow."""
        kind, _, rest = name.partition(".")
        if kind != "layers":
            return None, None
        layer = int(rest.partition(".")[0])
        if layer not in self._layers:
            self._layers[layer] = self._search(layer)
        made = reads = None
        for site, exponents in self._layers[layer]:
            if name == site.maker:
                made = exponents
            if name in site.readers:
                reads = _spread(exponents, site.copies, self.config.head_dim)
        return made, reads

    def _search(self, layer: int) -> list[tuple[Site, Exponents]]:
        found = []
        for site in sites(self.config, layer):
            exponents = self._site_exponents(site)
            if exponents.any():
                _log.info("%s: %d channels moved", site.maker, np.count_nonzero(exponents))
                found.append((site, exponents))
        return found

    def _site_exponents(self, site: Site) -> Exponents:
        """Return k of each channel: 0, or the power of two that it is off by at both ends."""
        made = self._sizes_of_rows(site.maker)
        larger = _log2_over_median(made)
        exponents = np.zeros(len(made), np.int32)
        candidates = np.flatnonzero(np.abs(larger) >= LEAST)
        if not len(candidates):
            return exponents
        sample = np.linspace(0, len(made) - 1, min(_SAMPLE, len(made))).astype(np.intp)
        channels = np.union1d(candidates, sample)
        read = self._sizes_of_columns(site, channels)
        smaller = -_log2_over_median(read, np.isin(channels, sample))
        here = larger[channels]
        off = np.where(here > 0, np.minimum(here, smaller), np.maximum(here, smaller))
        moved = np.isin(channels, candidates) & (np.abs(off) >= LEAST) & (off * here > 0)
        exponents[channels[moved]] = np.rint(off[moved]).astype(np.int32)
        return exponents

    def _sizes_of_rows(self, name: str) -> _F64:
        weights = self._base.read(name)
        if weights.ndim == 1:
            sizes = np.abs(widen(weights).astype(np.float64))
        else:
            panels = range(0, len(weights), _PANEL_ROWS)
            sizes = np.concatenate([_largest(weights[i : i + _PANEL_ROWS], 1) for i in panels])
        self._base.release(name)
        return sizes

    def _sizes_of_columns(self, site: Site, channels: NDArray[np.intp]) -> _F64:
        """Return the largest weight that reads each channel, over all readers and copies."""
        columns = _columns_of(channels, site.copies, self.config.head_dim)
        sizes = np.zeros(len(channels))
        for name in site.readers:
            weights = self._base.read(name)
            for i in range(0, len(weights), _PANEL_ROWS):
                panel = _largest(weights[i : i + _PANEL_ROWS][:, columns], 0)
                sizes = np.maximum(sizes, panel.reshape(site.copies, -1).max(axis=0))
            self._base.release(name)
        return sizes


def _columns_of(channels: NDArray[np.intp], copies: int, head_dim: int) -> NDArray[np.intp]:
    """Return the columns that read the channels: all of the first copy, then of the second, ..."""
    if copies == 1:
        return channels
    head, within = channels // head_dim, channels % head_dim
    return np.concatenate([(head * copies + i) * head_dim + within for i in range(copies)])


def _spread(exponents: Exponents, copies: int, head_dim: int) -> Exponents:
    """Return the exponent of each column."""
    if copies == 1:
        return exponents
    by_head = exponents.reshape(-1, 1, head_dim)
    return np.repeat(by_head, copies, axis=1).reshape(-1)


def _largest(weights: NDArray[Any], axis: int) -> _F64:
    """Return the largest magnitude along an axis; bfloat16 is compared as integers."""
    if weights.dtype == np.uint16:
        magnitudes = (weights & np.uint16(0x7FFF)).max(axis=axis)
        return widen(np.ascontiguousarray(magnitudes)).astype(np.float64)
    largest: _F64 = np.abs(weights).max(axis=axis).astype(np.float64)
    return largest


def _log2_over_median(sizes: _F64, usual: NDArray[np.bool_] | None = None) -> _F64:
    """Return log2(size / median), 0 for a channel that is nothing or not finite."""
    median = np.median(sizes if usual is None else sizes[usual])
    sound = np.isfinite(sizes) & (sizes > 0)
    if not (np.isfinite(median) and median > 0):
        return np.zeros(len(sizes))
    return np.log2(np.where(sound, sizes, median) / median)
