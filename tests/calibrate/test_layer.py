"""A window through a layer, part by part: the bits of the core's model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama2q import _core
from llama2q.calibrate.layer import Layer
from llama2q.format import L2qFile
from llama2q.quant import grid_values
from llama2q.weights import build_model
from strategies import assert_same_bits


@pytest.mark.parametrize("quant", ["int4", "none"])
def test_same_bits_as_the_model(convert_mini: Callable[..., Path], quant: str) -> None:
    n = 70
    positions = np.arange(n, dtype=np.int32)
    table = np.arange(2, dtype=np.int32)[None]
    where = (positions, np.zeros(n, np.int32), table)
    with L2qFile(convert_mini(quant=quant)) as file:
        model = build_model(file, kv_dtype="f32", n_blocks=2, n_threads=2)
        layer = Layer.of(file.config, 2, file.metadata.rope)

        def matrices(name: str) -> list[_core.Matrix]:
            """Return a matrix of layer 2; of w1_w3 both halves, whose bands alternate."""
            spec = file.matrix(f"layers.2.{name}.weight")
            arrays = [file.array(tensor.name) for tensor in spec.tensors()]
            halves = []
            for i in range(len(spec.sources)):
                own = [np.ascontiguousarray(array[i :: len(spec.sources)]) for array in arrays]
                if quant == "none":
                    halves.append(_core.Matrix.dense(own[0], spec.rows, spec.cols))
                else:
                    grid = grid_values("nonuniform")
                    halves.append(_core.Matrix.int4(own[0], own[1], grid, spec.rows, spec.cols))
            return halves

        def norm(name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
            return file.array(f"layers.2.{name}.weight")

        x = model.embed((positions * 31 + 5) % file.config.vocab_size)
        normed = layer.norm(x, norm("attention_norm"))
        wq, wk, wv = (matrices(f"attention.{name}")[0] for name in ("wq", "wk", "wv"))
        attended = layer.attend(normed, wq, wk, wv)
        assert_same_bits(attended, model.attend(2, model.qkv(2, x, *where), *where))
        wo = matrices("attention.wo")[0]
        after = x + layer.product(attended, wo)
        assert_same_bits(after, model.project(2, attended, x))
        hidden = layer.gate_up(layer.norm(after, norm("ffn_norm")), *matrices("feed_forward.w1_w3"))
        assert_same_bits(hidden, model.gate_up(2, after))
        end = after + layer.product(hidden, matrices("feed_forward.w2")[0])
        assert_same_bits(end, model.down(2, hidden, after))
