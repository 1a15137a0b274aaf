"""MLX itself, its CPU build: it finds the same weights, and mlx-lm the same model.

`pip install "mlx[cpu]" mlx-lm` (Linux); on a Mac `pip install mlx-lm`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from export.models import WHOLE, write_extreme
from export.test_mlx import NAMES, expected_of
from llama2q.evaluate.divergence import score_rows
from reference_weights import Quantized, load_l2q

pytestmark = pytest.mark.slow

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 3


@pytest.fixture(scope="module")
def mx() -> Any:
    return pytest.importorskip("mlx.core", reason="needs mlx")


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_dequantize(mx: Any, tmp_path: Path, quant: str, group_size: int) -> None:
    source = write_extreme(
        tmp_path / "x.l2q", quant, config=WHOLE, group_size=group_size, grid="uniform",
        largest=511.5,
    )  # fmt: skip
    folder = llama2q.export_mlx(source, tmp_path / "x").path
    tensors = mx.load(str(folder / "model.safetensors"))
    for name, matrix in load_l2q(source).matrices.items():
        assert isinstance(matrix, Quantized)
        module = NAMES[name].removesuffix("weight")
        found = mx.dequantize(
            tensors[module + "weight"],
            *(tensors[module + part].astype(mx.float32) for part in ("scales", "biases")),
            group_size=group_size,
            bits=8 if matrix.grid is None else 4,
        )
        expected = expected_of(name, matrix.float64, WHOLE.head_dim)
        assert np.array_equal(np.array(found), expected), name


@pytest.mark.parametrize(
    "recipe",
    [
        {"quant": "none"},
        *(
            {"quant": "int4", "group_size": size, "grid": "uniform", "method": "rtn"}
            for size in (32, 64, 128)
        ),
        {"quant": "int8", "group_size": 32},
    ],
    ids=lambda recipe: "-".join(map(str, recipe.values())),
)
def test_mlx_lm(mx: Any, mini_checkpoint: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    """It computes in bfloat16 or float16, we with int8 activations: that is the difference.

    A wrong weight or row costs a thousand times as much.
    """
    mlx_lm = pytest.importorskip("mlx_lm", reason="needs mlx-lm")
    source = tmp_path / "mini.l2q"
    llama2q.convert(mini_checkpoint, source, **recipe)
    folder = llama2q.export_mlx(source, tmp_path / "x").path
    model, tokenizer = mlx_lm.load(str(folder))
    with llama2q.load(source, n_threads=1) as llm:
        tokens = llm.tokenizer.encode(TEXT)
        ours = llm.logits(tokens)
    assert tokenizer.encode(TEXT.strip()) == tokens
    theirs = np.array(model(mx.array([tokens]))[0].astype(mx.float32))
    kl = score_rows(ours, theirs, [*tokens[1:], 0]).kl.mean()
    assert kl < 0.002
