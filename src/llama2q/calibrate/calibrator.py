"""Rounding a model's matrices one after the other, each for the inputs that it will get.

A calibration text runs through the model while it is rounded, layer by layer, so that a matrix is
rounded for what the rounded matrices before it give. What the next matrix gets is then computed
with its rounded form: with the kernels that will run it, activations quantized as they will be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.calibrate.layer import Layer
from llama2q.calibrate.moments import Moments
from llama2q.config import ModelConfig
from llama2q.errors import (
    CalibrationError,
    NonFiniteError,
    NonFiniteWeightError,
    QuantizationError,
)
from llama2q.format.layout import MatrixSpec
from llama2q.format.recipe import EMBEDDINGS, Recipe
from llama2q.quant import grid_values, int8
from llama2q.quant.bits import widen
from llama2q.rope_scaling import RopeScaling

_F32: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float16]]
"""Codes (n_bands, K/8, 64) and scales (n_bands, K/G, 16)."""

Quantizer: TypeAlias = Callable[[NDArray[Any]], Codes]

CORRECTION = 0.35
"""How much of what the residual stream has lost so far wo and w2 are asked to make up for. All of
it would fit them to the calibration text's noise."""


class Weights(Protocol):
    """Where the checkpoint's tensors come from."""

    def read(self, name: str) -> NDArray[Any]:
        """Return Meta's tensor of a name: float32, float16 or uint16 (bfloat16)."""

    def release(self, name: str) -> None:
        """Let go of its memory."""


Stored: TypeAlias = Callable[[int], Mapping[str, Codes] | None]
"""Codes and scales of a layer's matrices by Meta's names, if the layer is already rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Int4:
    """A rounded matrix."""

    name: str
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    matrix: _core.Matrix


class Calibrator:
    """Rounds the layers' matrices in the order of the file.

    Parameters
    ----------
    config : ModelConfig
    recipe : Recipe
        All matrices of the layers are int4, of one group size and grid. Its method: "calibrated"
        weighs the errors of a scale search by the inputs' squares; "gptq" hands errors on to the
        columns that are still to be rounded (`_core.feed_back_int4`), and asks wo and w2 to bring
        the residual stream back to that of the model that is not rounded.
    rope : RopeScaling
        The model's own.
    checked, weights : Weights
        The same tensors, each read once from `checked` when it is rounded; `weights` serves
        whatever else they are needed for.
    windows : list of list of int
        Token ids; each window is a sequence.
    stored : callable
        See `Stored`; asked once per layer.
    n_threads : int
    """

    def __init__(
        self,
        config: ModelConfig,
        recipe: Recipe,
        checked: Weights,
        weights: Weights,
        windows: Iterable[list[int]],
        stored: Stored,
        n_threads: int,
        rope: RopeScaling,
    ) -> None:
        if recipe.group_size is None or recipe.grid is None:
            raise CalibrationError(f"a recipe of {recipe.quant} cannot be calibrated, only int4")
        self._config = config
        self._group_size = recipe.group_size
        self._grid = grid_values(recipe.grid)
        self._feeds_back = recipe.method == "gptq"
        self._checked = checked
        self._weights = weights
        self._windows = list(windows)
        self._stored_of = stored
        self._stored: Mapping[str, Codes] | None = None
        self._n_threads = n_threads
        self._layer = Layer.of(config, n_threads, rope)
        self._rounded = self._layers()
        self._x: list[_F32] = []
        self._exact: list[_F32] = []

    def encode(self, matrix: MatrixSpec) -> list[Codes]:
        """Round a matrix; each call must name one that comes later in the file than the last.

        Returns
        -------
        list of (codes, scales)
            One of each of its sources.

        Raises
        ------
        CalibrationError
            An activation is not finite.
        NonFiniteWeightError, QuantizationError
            With the tensor's name.
        """
        try:
            return [self._next(name) for name in matrix.sources]
        except NonFiniteError as error:
            raise CalibrationError(
                f"calibrating {matrix.name}: {error}. The weights are damaged, or are no language "
                "model: method='search' (--fast) rounds them without running them"
            ) from error

    def _next(self, name: str) -> Codes:
        for rounded in self._rounded:
            if rounded.name == name:
                return rounded.codes, rounded.scales
        raise CalibrationError(f"{name} has been passed already")

    def _layers(self) -> Iterator[Int4]:
        self._embed()
        for layer in range(self._config.n_layers):
            self._stored = self._stored_of(layer)
            yield from self._attention(f"layers.{layer}")
            yield from self._feed_forward(f"layers.{layer}")

    def _embed(self) -> None:
        """Begin both streams: rounded like the table of the file, and as they are."""
        table = self._weights.read(EMBEDDINGS)
        for ids in self._windows:
            rows = np.ascontiguousarray(table[ids])
            codes, scales = _core.quantize_rows_int8(rows, self._group_size, self._n_threads)
            self._x.append(int8.decode_rows(codes, scales, self._group_size))
            if self._feeds_back:
                self._exact.append(widen(rows))
        self._weights.release(EMBEDDINGS)

    def _attention(self, prefix: str) -> Iterator[Int4]:
        layer, norm = self._layer, self._norm(f"{prefix}.attention_norm.weight")
        names = [f"{prefix}.attention.{name}.weight" for name in ("wq", "wk", "wv")]
        wo_name = f"{prefix}.attention.wo.weight"
        wo = None
        if self._feeds_back:
            exact, wo = [self._dense(name) for name in names], self._dense(wo_name)
            for i, x in enumerate(self._exact):
                attended = layer.attend(layer.norm(x, norm), *exact)
                self._exact[i] = x + layer.product(attended, wo)
            del exact
        rounded = self._round(names, (layer.norm(x, norm) for x in self._x))
        yield from rounded
        matrices = [each.matrix for each in rounded]
        inputs = [layer.attend(layer.norm(x, norm), *matrices) for x in self._x]
        yield self._close_the_gap(wo_name, inputs, wo)

    def _feed_forward(self, prefix: str) -> Iterator[Int4]:
        layer, norm = self._layer, self._norm(f"{prefix}.ffn_norm.weight")
        names = [f"{prefix}.feed_forward.{name}.weight" for name in ("w1", "w3")]
        w2_name = f"{prefix}.feed_forward.w2.weight"
        w2 = None
        if self._feeds_back:
            exact, w2 = [self._dense(name) for name in names], self._dense(w2_name)
            for i, x in enumerate(self._exact):
                hidden = layer.gate_up(layer.norm(x, norm), *exact)
                self._exact[i] = x + layer.product(hidden, w2)
            del exact
        rounded = self._round(names, (layer.norm(x, norm) for x in self._x))
        yield from rounded
        matrices = [each.matrix for each in rounded]
        inputs = [layer.gate_up(layer.norm(x, norm), *matrices) for x in self._x]
        del matrices
        yield self._close_the_gap(w2_name, inputs, w2)

    def _close_the_gap(self, name: str, inputs: list[_F32], exact: _core.Matrix | None) -> Int4:
        """Round wo or w2, whose outputs are added to the stream, and add them."""
        correction = None
        if exact is not None and self._stored is None:
            correction = np.zeros((inputs[0].shape[1], self._config.dim), np.float32)
            for x, given, wanted in zip(self._x, inputs, self._exact, strict=True):
                lost = wanted - (x + self._layer.product(given, exact))
                _core.add_product(correction, given, lost, n_threads=self._n_threads)
            correction *= np.float32(CORRECTION)
        (rounded,) = self._round([name], inputs, correction)
        for i, given in enumerate(inputs):
            self._x[i] = self._x[i] + self._layer.product(given, rounded.matrix)
        return rounded

    def _round(
        self, names: list[str], inputs: Iterable[_F32], correction: _F32 | None = None
    ) -> list[Int4]:
        """Round matrices that get the same inputs, or take what is stored of them."""
        if self._stored is not None:
            return [self._int4(name, self._stored[name]) for name in names]
        choose = self._feed_back(inputs, correction) if self._feeds_back else self._search(inputs)
        return [self._int4(name, self._codes(name, choose)) for name in names]

    def _feed_back(self, inputs: Iterable[_F32], correction: _F32 | None) -> Quantizer:
        moments = None
        for x in inputs:
            moments = (moments or Moments(x.shape[1], self._n_threads)).add(x)
        if moments is None:
            raise CalibrationError("there are no windows to calibrate on")
        factors = moments.factor()
        return lambda weights: _core.feed_back_int4(
            weights,
            self._group_size,
            self._grid,
            factors.ldl,
            factors.importance,
            correction,
            n_threads=self._n_threads,
        )

    def _search(self, inputs: Iterable[_F32]) -> Quantizer:
        squares = sum((np.square(x).sum(axis=0, dtype=np.float32) for x in inputs), np.float32(0))
        importance = np.ascontiguousarray(squares, np.float32)
        return lambda weights: _core.search_int4(
            weights, self._group_size, self._grid, importance, n_threads=self._n_threads
        )

    def _codes(self, name: str, choose: Quantizer) -> Codes:
        try:
            return choose(self._checked.read(name))
        except NonFiniteWeightError as error:
            raise NonFiniteWeightError(f"{name}: {error}") from error
        except QuantizationError as error:
            raise QuantizationError(
                f"{name}: {error}; method='search' (--fast) takes weights as they are, without "
                "corrections"
            ) from error
        finally:
            self._checked.release(name)

    def _int4(self, name: str, codes: Codes) -> Int4:
        rows, cols = self._shape(name)
        return Int4(name, *codes, _core.Matrix.int4(*codes, self._grid, rows, cols))

    def _shape(self, name: str) -> tuple[int, int]:
        config = self._config
        return {
            "wq": (config.dim, config.dim),
            "wk": (config.kv_dim, config.dim),
            "wv": (config.kv_dim, config.dim),
            "wo": (config.dim, config.dim),
            "w1": (config.hidden_dim, config.dim),
            "w3": (config.hidden_dim, config.dim),
            "w2": (config.dim, config.hidden_dim),
        }[name.split(".")[3]]

    def _dense(self, name: str) -> _core.Matrix:
        values = _core.pack_dense(self._weights.read(name), self._n_threads)
        self._weights.release(name)
        return _core.Matrix.dense(values, *self._shape(name))

    def _norm(self, name: str) -> _F32:
        weight = widen(self._weights.read(name))
        self._weights.release(name)
        return weight
