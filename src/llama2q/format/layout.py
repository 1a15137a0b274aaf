"""What a `.l2q` file holds and where: derived from config, recipe and the tokenizer's size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llama2q.config import ModelConfig
from llama2q.format.recipe import (
    EMBEDDINGS,
    LAYER_MATRICES,
    OUTPUT,
    Recipe,
    TensorType,
    matrix_names,
)
from llama2q.quant import ArraySpec
from llama2q.quant.quant_type import NUMPY_DTYPES

__all__ = [
    "ALIGNMENT",
    "DATA_ALIGNMENT",
    "EMBEDDINGS",
    "INV_FREQ",
    "LAYER_MATRICES",
    "OUTPUT",
    "TOKENIZER",
    "MatrixSpec",
    "PlacedTensor",
    "TensorSpec",
    "is_pad",
    "matrix_names",
    "matrix_spec",
    "model_parts",
    "place",
    "tensor_specs",
]

ALIGNMENT = 64
"""Every tensor starts at a multiple of this many bytes."""
DATA_ALIGNMENT = 4096
"""The data section starts at a multiple of this many bytes."""
INV_FREQ = "rope.inv_freq"
TOKENIZER = "tokenizer.model"
_PAD = "pad."


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A stored tensor: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes, as an exact Python integer."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class MatrixSpec:
    """A weight matrix of the model and how the file holds it.

    Attributes
    ----------
    name : str
        Its name in the recipe.
    rows, cols : int
        Shape of each of its sources.
    stored : TensorType
        Quant type, group size and grid.
    sources : tuple of str
        Names of Meta's tensors: one, or w1 and w3, whose bands alternate.
    """

    name: str
    rows: int
    cols: int
    stored: TensorType
    sources: tuple[str, ...]

    @property
    def is_table(self) -> bool:
        """Whether it is the embedding table, stored row by row."""
        return self.name == EMBEDDINGS

    @property
    def n_weights(self) -> int:
        """Number of weights, without padding."""
        return len(self.sources) * self.rows * self.cols

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Return its stored tensors: codes and scales, or the values alone."""
        make = self.stored.kind.row_arrays if self.is_table else self.stored.kind.band_arrays
        arrays = make(self.rows, self.cols, self.stored.group_size)
        return tuple(self._tensor(array) for array in arrays)

    def _tensor(self, array: ArraySpec) -> TensorSpec:
        shape = array.shape
        return TensorSpec(
            self.name + array.suffix, array.dtype, (shape[0] * len(self.sources), *shape[1:])
        )


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor or pad and its place, in bytes from the start of the data section."""

    spec: TensorSpec
    begin: int
    end: int


def matrix_spec(config: ModelConfig, recipe: Recipe, name: str) -> MatrixSpec:
    """Return the shape, type and sources of one matrix of the recipe."""
    stored = recipe.tensors[name]
    if name in (EMBEDDINGS, OUTPUT):
        return MatrixSpec(name, config.vocab_size, config.dim, stored, (name,))
    sources: tuple[str, ...] = (name,)
    if name.endswith(".w1_w3.weight"):
        sources = (name.replace("w1_w3", "w1"), name.replace("w1_w3", "w3"))
    rows, cols = {
        "wq": (config.dim, config.dim),
        "wk": (config.kv_dim, config.dim),
        "wv": (config.kv_dim, config.dim),
        "wo": (config.dim, config.dim),
        "w1_w3": (config.hidden_dim, config.dim),
        "w2": (config.dim, config.hidden_dim),
    }[name.split(".")[3]]
    return MatrixSpec(name, rows, cols, stored, sources)


def model_parts(
    config: ModelConfig, recipe: Recipe, tokenizer_bytes: int
) -> Iterator[MatrixSpec | TensorSpec]:
    """Yield what a file holds, in its order: matrices as such, all else as tensors.

    Parameters
    ----------
    config : ModelConfig
    recipe : Recipe
        Must have passed `Recipe.check(config)`.
    tokenizer_bytes : int
        Size of the SentencePiece model.
    """

    def norm(name: str) -> TensorSpec:
        return TensorSpec(name, "F32", (config.dim,))

    def matrices(names: Iterable[str]) -> Iterator[MatrixSpec]:
        return (matrix_spec(config, recipe, name) for name in names)

    yield from matrices([EMBEDDINGS])
    yield TensorSpec(INV_FREQ, "F64", (config.head_dim // 2,))
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}."
        yield norm(f"{prefix}attention_norm.weight")
        yield from matrices(prefix + name for name in LAYER_MATRICES[:4])
        yield norm(f"{prefix}ffn_norm.weight")
        yield from matrices(prefix + name for name in LAYER_MATRICES[4:])
    yield norm("norm.weight")
    yield from matrices([OUTPUT])
    yield TensorSpec(TOKENIZER, "U8", (tokenizer_bytes,))


def tensor_specs(config: ModelConfig, recipe: Recipe, tokenizer_bytes: int) -> list[TensorSpec]:
    """Return every tensor of a file, without pads, in its order; see `model_parts`."""
    specs: list[TensorSpec] = []
    for part in model_parts(config, recipe, tokenizer_bytes):
        specs.extend(part.tensors() if isinstance(part, MatrixSpec) else (part,))
    return specs


def place(specs: Iterable[TensorSpec]) -> list[PlacedTensor]:
    """Lay tensors out without holes.

    A tensor whose size is not a multiple of 64 bytes is followed by a pad, a U8 tensor `pad.N`
    of zeros.
    """
    placed: list[PlacedTensor] = []
    offset = n_pads = 0
    for spec in specs:
        placed.append(PlacedTensor(spec, offset, offset + spec.nbytes))
        offset += spec.nbytes
        if missing := -offset % ALIGNMENT:
            pad = TensorSpec(f"{_PAD}{n_pads}", "U8", (missing,))
            placed.append(PlacedTensor(pad, offset, offset + missing))
            offset += missing
            n_pads += 1
    return placed


def is_pad(name: str) -> bool:
    """Whether a tensor's name is that of a pad."""
    return name.startswith(_PAD)
