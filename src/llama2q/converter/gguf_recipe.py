"""Which type each matrix of a GGUF file gets: its own where that can be kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, TypeGuard

from llama2q.config import ModelConfig
from llama2q.converter.gguf_blocks import require_dequantizer
from llama2q.converter.gguf_checkpoint import GgufCheckpoint
from llama2q.converter.gguf_types import GROUP_SIZE, GgmlType
from llama2q.errors import InvalidArgumentError
from llama2q.format.layout import matrix_spec
from llama2q.format.recipe import EMBEDDINGS, Recipe, TensorType, matrix_names

INT8 = TensorType("int8", GROUP_SIZE)
INT4 = TensorType("int4", GROUP_SIZE, "nonuniform")
MOST_BITS_OF_INT4 = 5.0
"""Types that cannot be kept become int4 up to here, beyond int8."""


def is_taken_over(
    checkpoint: object, quant: str | None, method: str | None
) -> TypeGuard[GgufCheckpoint]:
    """Whether a checkpoint is a GGUF file whose codes or numbers shall be kept where they can be.

    A file of plain numbers that is to be quantized is like any other checkpoint; so is a quantized
    one whose codes shall be chosen anew by a method other than rounding.
    """
    if not isinstance(checkpoint, GgufCheckpoint):
        return False
    return quant == "none" or (checkpoint.dtype == "quantized" and method in (None, "rtn"))


def choose_recipe(checkpoint: GgufCheckpoint, asked: dict[str, Any]) -> Recipe:
    """Return the recipe of a GGUF file that is taken over.

    Unless something else is asked for, each matrix keeps its own type, or gets a close one.

    Parameters
    ----------
    checkpoint : GgufCheckpoint
    asked : dict
        Those of `quant`, `group_size` and `grid` that were asked for; as in `convert`.

    Raises
    ------
    InvalidArgumentError
        The arguments do not fit each other, or "none" is asked of a quantized file.
    MissingPackageError, UnsupportedModelError
        A type cannot be read.
    """
    config = checkpoint.config
    is_plain = asked.get("quant") == "none"
    if is_plain and checkpoint.dtype == "quantized":
        kinds = sorted({checkpoint.tensor(name).type.name for name in checkpoint.shapes})
        raise InvalidArgumentError(
            f"quant 'none' keeps numbers as they are, but the file is quantized ({', '.join(kinds)}"
            "); leave --quant out to keep what can be kept"
        )
    recipe = _recipe_of(config, _own_types(checkpoint))
    if asked and not is_plain:
        like = {"group_size": GROUP_SIZE} | ({"grid": recipe.grid} if recipe.grid else {})
        recipe = Recipe.for_model(config, **(like | asked), method="rtn")
    for name, stored in recipe.tensors.items():
        for source in matrix_spec(config, recipe, name).sources:
            kind = checkpoint.tensor(source).type
            if stored not in kind.kept:
                require_dequantizer(kind)
    method, calibration = _origin(checkpoint, recipe)
    return replace(recipe, method=method, calibration=calibration)


def _own_types(checkpoint: GgufCheckpoint) -> dict[str, TensorType]:
    """Return the type of each matrix that is its own, or the closest one that it can have."""
    config = checkpoint.config
    # The sources of a matrix do not depend on its type.
    any_recipe = Recipe.for_model(config, "none")
    types = {}
    for name in matrix_names(config):
        sources = matrix_spec(config, any_recipe, name).sources
        kinds = [checkpoint.tensor(source).type for source in sources]
        types[name] = _common([_closest(kind, is_table=name == EMBEDDINGS) for kind in kinds])
    return types


def _closest(kind: GgmlType, *, is_table: bool) -> TensorType:
    for stored in kind.kept:
        if stored.kind.has_rows or not is_table:
            return stored
    return INT8 if is_table or kind.bits > MOST_BITS_OF_INT4 else INT4


def _common(types: list[TensorType]) -> TensorType:
    """Return a type for w1 and w3 together: int8 where they differ, which holds int4 exactly."""
    if all(stored == types[0] for stored in types):
        return types[0]
    return TensorType("f32") if all(stored.kind.is_dense for stored in types) else INT8


def _recipe_of(config: ModelConfig, types: dict[str, TensorType]) -> Recipe:
    """Return a recipe of these types, named by what most quantized weights have."""
    plain = Recipe(
        quant="none",
        calibration="none",
        method="none",
        group_size=None,
        grid=None,
        tensors=types,
    )
    weights: Counter[TensorType] = Counter()
    for name, stored in types.items():
        if not stored.kind.is_dense:
            weights[stored] += matrix_spec(config, plain, name).n_weights
    if not weights:
        return plain
    most = weights.most_common(1)[0][0]
    return replace(plain, quant=most.type, group_size=most.group_size, grid=most.grid)


def _origin(checkpoint: GgufCheckpoint, recipe: Recipe) -> tuple[str, str]:
    """Return method and calibration: codes are those of the file, or rounded anew, or both."""
    moved = {
        stored in checkpoint.tensor(source).type.kept
        for name, stored in recipe.tensors.items()
        if not stored.kind.is_dense
        for source in matrix_spec(checkpoint.config, recipe, name).sources
    }
    method = {
        frozenset[bool](): "none",
        frozenset({False}): "rtn",
        frozenset({True}): "gguf",
    }.get(frozenset(moved), "gguf+rtn")
    known = "imatrix" if checkpoint.has_importances else "unknown"
    return method, known if True in moved else "none"
