"""The recipe: which quant type each matrix of a model is stored in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from llama2q.config import ModelConfig
from llama2q.errors import InvalidArgumentError
from llama2q.quant import GRIDS, QUANT_TYPES, QuantType

QUANTS = ("int4", "int8", "none")
"""Names of the ready-made recipes."""
METHODS = ("gptq", "calibrated", "search", "rtn")
"""How int4 codes are chosen, best first; int8 has "rtn" alone."""
CALIBRATED = ("gptq", "calibrated")
"""Methods that run a text through the model."""
_TOP_KEYS = {"quant", "calibration", "method", "group_size", "grid", "tensors"}
_TENSOR_KEYS = {"type", "group_size", "grid"}


@dataclass(frozen=True, slots=True)
class TensorType:
    """How one matrix is stored.

    Attributes
    ----------
    type : str
        Name of a quant type: "int4", "int8", "f32", "f16" or "bf16".
    group_size : int or None
        Columns per scale; None for dense types.
    grid : str or None
        Name of the grid of int4; None otherwise.
    """

    type: str
    group_size: int | None = None
    grid: str | None = None

    def __post_init__(self) -> None:
        """Refuse combinations that no kernel reads."""
        if not isinstance(self.type, str) or self.type not in QUANT_TYPES:
            raise InvalidArgumentError(
                f"type is {self.type!r}; expected one of {', '.join(QUANT_TYPES)}"
            )
        kind = QUANT_TYPES[self.type]
        kind.check_group_size(self.group_size)
        if kind.has_grid:
            if not isinstance(self.grid, str) or self.grid not in GRIDS:
                raise InvalidArgumentError(
                    f"grid is {self.grid!r}; expected one of {', '.join(GRIDS)}"
                )
        elif self.grid is not None:
            raise InvalidArgumentError(f"grid is {self.grid!r}; {self.type} has no grid")

    @property
    def kind(self) -> QuantType:
        """The description of the quant type."""
        return QUANT_TYPES[self.type]

    def __str__(self) -> str:
        """Name type, group size and grid, as in int4/64/nonuniform."""
        return "/".join(str(p) for p in (self.type, self.group_size, self.grid) if p is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dict, for JSON."""
        return {"type": self.type, "group_size": self.group_size, "grid": self.grid}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Build from `to_dict`'s form; the key set must be exact."""
        _require_keys(values, _TENSOR_KEYS, "a recipe entry")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model was quantized, and the type of each matrix.

    Attributes
    ----------
    quant : str
        The recipe's name: "int4", "int8" or "none".
    calibration, method : str
        How codes were chosen; for the reader of the file only.
    group_size, grid
        What was asked for; None where the recipe has none.
    tensors : mapping of str to TensorType
        One entry per matrix of `matrix_names`.
    """

    quant: str
    calibration: str
    method: str
    group_size: int | None
    grid: str | None
    tensors: Mapping[str, TensorType]

    def __post_init__(self) -> None:
        """Check the fields that describe the whole."""
        if self.quant not in QUANTS:
            raise InvalidArgumentError(
                f"quant is {self.quant!r}; expected one of {', '.join(QUANTS)}"
            )
        for name in ("calibration", "method"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise InvalidArgumentError(f"{name} is {value!r}; expected a word")
        summary = TensorType(self.quant, self.group_size, self.grid) if self.is_quantized else None
        if summary is None and (self.group_size is not None or self.grid is not None):
            raise InvalidArgumentError(
                "a recipe without quantization has no group_size and no grid"
            )

    @property
    def is_quantized(self) -> bool:
        """Whether the layers hold codes."""
        return self.quant != "none"

    @classmethod
    def for_model(
        cls,
        config: ModelConfig,
        quant: str = "int4",
        *,
        group_size: int = 64,
        grid: str = "nonuniform",
        dtype: str = "bf16",
        method: str | None = None,
        calibration: str = "none",
    ) -> Self:
        """Return a ready-made recipe.

        Parameters
        ----------
        config : ModelConfig
        quant : {"int4", "int8", "none"}
            int4 keeps the embeddings and the output matrix in int8.
        group_size : int
            Columns per scale; ignored by "none".
        grid : str
            Grid of int4; ignored otherwise.
        dtype : {"f32", "f16", "bf16"}
            The checkpoint's own type, which "none" keeps.
        method : {"gptq", "calibrated", "search", "rtn"}, optional
            How codes are chosen; the best there is by default.
        calibration : str
            What was run through the model; "none" where the method runs nothing.
        """
        if quant not in QUANTS:
            raise InvalidArgumentError(f"quant is {quant!r}; expected one of {', '.join(QUANTS)}")
        method = method_of(quant, method)
        if quant == "none":
            layers = outer = TensorType(dtype)
        else:
            outer = TensorType("int8", group_size)
            layers = TensorType("int4", group_size, grid) if quant == "int4" else outer
        return cls(
            quant=quant,
            calibration=calibration if method in CALIBRATED else "none",
            method=method,
            group_size=layers.group_size,
            grid=layers.grid,
            tensors={
                name: outer if name in OUTER_MATRICES else layers for name in matrix_names(config)
            },
        )

    def check(self, config: ModelConfig) -> None:
        """Raise InvalidArgumentError unless the entries fit a model of this shape."""
        expected = 2 + len(LAYER_MATRICES) * config.n_layers
        if len(self.tensors) != expected or any(
            name not in self.tensors for name in matrix_names(config)
        ):
            raise InvalidArgumentError(
                f"the recipe names {len(self.tensors)} matrices; a model of {config.n_layers} "
                f"layers has {expected}: tok_embeddings, output and "
                f"{len(LAYER_MATRICES)} per layer"
            )
        if not self.tensors[EMBEDDINGS].kind.has_rows:
            raise InvalidArgumentError(
                f"{EMBEDDINGS} is {self.tensors[EMBEDDINGS].type}; it needs a row-major type"
            )
        for layer in range(config.n_layers):
            readers = [f"layers.{layer}.attention.{name}.weight" for name in ("wq", "wk", "wv")]
            groups = {self.tensors[name].group_size for name in readers} - {None}
            if len(groups) > 1:
                raise InvalidArgumentError(
                    f"layer {layer}: wq, wk and wv read one activation but have group sizes "
                    f"{sorted(map(str, groups))}; expected one"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain dicts, for JSON."""
        return {
            "quant": self.quant,
            "calibration": self.calibration,
            "method": self.method,
            "group_size": self.group_size,
            "grid": self.grid,
            "tensors": {name: entry.to_dict() for name, entry in self.tensors.items()},
        }

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Build from `to_dict`'s form; the key sets must be exact."""
        _require_keys(values, _TOP_KEYS, "the recipe")
        entries = values["tensors"]
        if not isinstance(entries, dict):
            raise InvalidArgumentError("the recipe's tensors are not an object")
        tensors = {}
        for name, entry in entries.items():
            try:
                tensors[name] = TensorType.from_dict(entry)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"recipe of {name}: {error}") from error
        return cls(**{**values, "tensors": tensors})


def method_of(quant: str, method: str | None) -> str:
    """Return the method asked for, or the best that a quant has by default.

    Raises
    ------
    InvalidArgumentError
        There is no such method, or `quant` does not have it.
    """
    offered = {"int4": METHODS, "int8": ("rtn",)}.get(quant, ("none",))
    if method is None:
        return offered[0]
    if method not in METHODS:
        raise InvalidArgumentError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if method not in offered:
        raise InvalidArgumentError(
            f"method is {method!r}, which chooses codes of int4; with quant={quant!r} leave it out"
        )
    return method


EMBEDDINGS = "tok_embeddings.weight"
OUTPUT = "output.weight"
OUTER_MATRICES = (EMBEDDINGS, OUTPUT)
LAYER_MATRICES = (
    "attention.wq.weight",
    "attention.wk.weight",
    "attention.wv.weight",
    "attention.wo.weight",
    "feed_forward.w1_w3.weight",
    "feed_forward.w2.weight",
)
"""Matrices of a layer, in the order of execution; w1_w3 holds w1 and w3 in alternating bands."""


def matrix_names(config: ModelConfig) -> Iterator[str]:
    """Yield the names of all matrices of a model, in the file's order."""
    yield EMBEDDINGS
    for layer in range(config.n_layers):
        for name in LAYER_MATRICES:
            yield f"layers.{layer}.{name}"
    yield OUTPUT


def _require_keys(values: Any, expected: set[str], what: str) -> None:
    if not isinstance(values, dict):
        raise InvalidArgumentError(f"{what} is not an object")
    if set(values) != expected:
        missing, extra = sorted(expected - set(values)), sorted(set(values) - expected)
        raise InvalidArgumentError(f"{what}: missing keys {missing}, unknown {extra}")
