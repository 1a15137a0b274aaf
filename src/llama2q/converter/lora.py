"""A checkpoint with a LoRA adapter merged into it, one tensor at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llama2q._core import default_threads
from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.converter.forms import Checkpoint
from llama2q.converter.hf_tensors import heads_of, unpermute
from llama2q.converter.json_file import shown
from llama2q.converter.lora_adapter import LoraAdapter, Update, finite_array
from llama2q.converter.lora_merge import merge, merging_bytes
from llama2q.converter.mapped_tensor import MappedTensor
from llama2q.errors import QuantizationError, UnsupportedAdapterError

_COMPARED_ROWS = 256
_TABLES = ("tok_embeddings.weight", "output.weight")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MergedCheckpoint(Closing):
    """A checkpoint and an adapter (context manager); see `open`.

    It has the attributes of a checkpoint; what the adapter changes is float32.

    Attributes
    ----------
    rounded : bool
        Whether changed matrices are rounded to the checkpoint's dtype.
    n_threads : int
    notes : tuple of str
        What a user should know about the reading.
    """

    rounded: bool
    n_threads: int
    notes: tuple[str, ...]
    _base: Checkpoint = field(repr=False)
    _adapter: LoraAdapter = field(repr=False)
    _updates: dict[str, Update] = field(repr=False)

    @classmethod
    def open(
        cls,
        base: Checkpoint,
        folder: Path,
        *,
        rounded: bool = False,
        n_threads: int | None = None,
    ) -> Self:
        """Open an adapter and fit it to a checkpoint.

        Parameters
        ----------
        base : Checkpoint
            Is not closed with the adapter.
        folder : Path
            The adapter's, or that of its repository in Hugging Face's cache.
        rounded : bool
            Whether changed matrices get the checkpoint's dtype, to nearest even, instead of
            float32; for a file that holds the matrices in that dtype.
        n_threads : int, optional
            All physical cores by default. The numbers do not depend on it.

        Raises
        ------
        CheckpointError
            See `LoraAdapter.open` and `LoraAdapter.updates`.
        """
        adapter = LoraAdapter.open(folder)
        try:
            updates = adapter.updates(base.shapes)
            _check_tables(base, updates)
            notes = (*base.notes, *_notes(base, adapter, updates, rounded=rounded))
        except BaseException:
            adapter.close()
            raise
        return cls(
            rounded=rounded,
            n_threads=n_threads or default_threads(),
            notes=notes,
            _base=base,
            _adapter=adapter,
            _updates=updates,
        )

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self._base.folder

    @property
    def name(self) -> str:
        """The model's name and the adapter's."""
        return f"{self._base.name or 'model'}-{self._adapter.name}"

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""
        return self._base.config

    @property
    def dtype(self) -> str:
        """The checkpoint's."""
        return self._base.dtype

    @property
    def sources(self) -> list[Path]:
        """Every file that is read."""
        return [*self._base.sources, *self._adapter.sources]

    @property
    def tokenizer_bytes(self) -> bytes:
        """The checkpoint's."""
        return self._base.tokenizer_bytes

    @property
    def template(self) -> str:
        """The checkpoint's."""
        return self._base.template

    @property
    def licences(self) -> dict[str, str]:
        """Those of the checkpoint; those of the adapter under `ADAPTER/FILE`."""
        own = {f"{self._adapter.name}/{name}": s for name, s in self._adapter.licences.items()}
        return {**self._base.licences, **own}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Meta's tensor name -> shape."""
        return self._base.shapes

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor, the adapter merged into it.

        Returns
        -------
        float32, float16 or uint16 (the bits of bf16), of shape `shapes[name]`
            Read-only. float32 where the adapter changes it, unless `rounded`.

        Raises
        ------
        NonFiniteWeightError, QuantizationError
            The adapter holds NaN or infinity; a merged matrix does not fit into float16.
        """
        update = self._updates.get(name)
        if update is None:
            return self._base.read(name)
        weights: NDArray[Any]
        if update.whole is None:
            weights = self._base.read(name)
        else:
            weights = self._in_metas_order(name, finite_array(update.whole))
        dtype = self.dtype if self.rounded and weights.ndim == 2 else "f32"
        product = None
        if update.low_rank is not None:
            left, right = update.low_rank.factors()
            product = self._in_metas_order(name, left), right
        try:
            return merge(weights, product, dtype, self.n_threads)
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error

    def reading_bytes(self, name: str) -> int:
        """Return the most memory that a tensor takes while it is read and checked, in bytes.

        What the checkpoint takes for it, and for a tensor that is changed the adapter's pages, the
        factors in float64, and the result.
        """
        update = self._updates.get(name)
        if update is None:
            return self._base.reading_bytes(name)
        shape = self.shapes[name]
        dtype = self.dtype if self.rounded and len(shape) == 2 else "f32"
        merging = merging_bytes(shape, update.rank, dtype, self.n_threads)
        return self._base.reading_bytes(name) + update.reading_bytes + merging

    def merged_terms(self) -> int:
        """Return how many products are added to the weights, over all tensors."""
        return sum(
            math.prod(self.shapes[name]) * update.low_rank.rank
            for name, update in self._updates.items()
            if update.low_rank is not None
        )

    def release(self, name: str) -> None:
        """Give a tensor's mapped pages back to the kernel; it can still be read again."""
        self._base.release(name)
        for tensor in self._tensors(name):
            tensor.release()

    def check_crc(self, name: str, except_in: Container[Path] = ()) -> None:
        """Check the CRC-32 of a tensor and of what changes it, where the forms have one."""
        self._base.check_crc(name, except_in)
        if self._adapter.weights_path not in except_in:
            for tensor in self._tensors(name):
                self._adapter.check_crc(tensor)

    def close(self) -> None:
        """Unmap the adapter's file; arrays handed out stay valid."""
        self._adapter.close()

    def _tensors(self, name: str) -> tuple[MappedTensor, ...]:
        update = self._updates.get(name)
        return () if update is None else update.tensors

    def _in_metas_order(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Bring rows of wq and wk, which adapters have in Hugging Face's order, to Meta's."""
        n_heads = heads_of(name, self.config)
        return rows if n_heads is None else unpermute(rows, n_heads)


def with_adapter(
    base: Checkpoint,
    folder: Path | None,
    *,
    rounded: bool = False,
    n_threads: int | None = None,
) -> Checkpoint:
    """Return the checkpoint itself, or one with the adapter of a folder merged into it."""
    if folder is None:
        return base
    return MergedCheckpoint.open(base, folder, rounded=rounded, n_threads=n_threads)


def _check_tables(base: Checkpoint, updates: dict[str, Update]) -> None:
    """Refuse to change one of two tables that are one: which of them is meant cannot be told."""
    touched = [name for name in _TABLES if name in updates]
    both_whole = all(name in updates and updates[name].whole is not None for name in _TABLES)
    if touched and not both_whole and _are_one(base):
        raise UnsupportedAdapterError(
            f"the adapter changes {' and '.join(touched)}, but this model's embedding table and "
            "output matrix are one; expected an adapter that changes neither, or replaces both. "
            "Merge it with PEFT (merge_and_unload, then save_pretrained) and convert the result"
        )


def _are_one(base: Checkpoint) -> bool:
    """Whether the two tables are equal; stops at the first difference."""
    first, second = (base.read(name) for name in _TABLES)
    equal = all(
        np.array_equal(
            first[start : start + _COMPARED_ROWS], second[start : start + _COMPARED_ROWS]
        )
        for start in range(0, len(first), _COMPARED_ROWS)
    )
    for name in _TABLES:
        base.release(name)
    return equal


def _notes(
    base: Checkpoint, adapter: LoraAdapter, updates: dict[str, Update], *, rounded: bool
) -> tuple[str, ...]:
    products = [u.low_rank for u in updates.values() if u.low_rank is not None]
    n_replaced = sum(update.whole is not None for update in updates.values())
    ranks = _listed({product.rank for product in products})
    scales = _listed({product.scale for product in products})
    done = [f"{len(products)} matrices updated (rank {ranks}, scale {scales})"] if products else []
    done += [f"{n_replaced} tensors replaced"] if n_replaced else []
    notes = [f"LoRA adapter {adapter.name} merged: {', '.join(done)}"]
    trained_on = adapter.config.base_model
    if trained_on is not None:
        other = _plain_name(trained_on) != _plain_name(base.name)
        notes.append(
            f"the adapter was trained on {shown(trained_on)}"
            + (f"; this model is {base.name}: they must be the same" if other else "")
        )
    if adapter.config.targets is None:
        notes.append(
            "the adapter's own tensors say which modules it updates: target_modules is absent, or "
            "a regular expression that is not evaluated"
        )
    if rounded and base.dtype != "f32":
        notes.append(
            f"merged matrices are rounded to the checkpoint's {base.dtype}, as PEFT's "
            "merge_and_unload does; int8 and int4 are made from float32"
        )
    if adapter.has_tokenizer:
        notes.append(
            "the adapter's tokenizer files are not read: the model's own tokenizer and chat "
            "template are kept (--chat-template overrides the latter)"
        )
    return tuple(notes)


def _listed(values: set[int] | set[float]) -> str:
    """Write the first few of some numbers."""
    texts = [f"{value:.6g}" for value in sorted(values)]
    return ", ".join(texts[:4]) + (", ..." if len(texts) > 4 else "")


def _plain_name(name: str) -> str:
    """Return a model's name without its owner, case, punctuation and the ending of a form."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    return re.sub(r"[^a-z0-9]", "", last.removesuffix("-hf"))
