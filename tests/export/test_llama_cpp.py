"""llama.cpp itself: it loads exported files, finds the same tokens and predicts alike.

`tools/check_gguf.py` measures more of the same on a real text.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

import check_gguf

pytestmark = pytest.mark.slow

TEXT = " ".join(
    4
    * [
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the",
        "age of foolishness, it was the epoch of belief, it was the epoch of incredulity.",
    ]
)
"""Without spaces at its ends, which the demo model's tokenizer drops and llama.cpp keeps."""


@pytest.fixture(autouse=True)
def _llama_cpp() -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which compiles llama.cpp")


@pytest.mark.parametrize("recipe", check_gguf.RECIPES, ids=lambda r: "-".join(map(str, r.values())))
def test_llama_cpp_agrees(mini_checkpoint: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    """Both round activations to int8 where the weights are quantized, each in groups of its own.

    So llama.cpp is as far from float32 activations as we are at the most, and the two errors add up
    to twice ours; a wrong weight would cost a thousand times as much.
    """
    args = argparse.Namespace(tokens=126, ctx=64, flash=False)
    row = check_gguf.measure(mini_checkpoint, recipe, TEXT, args, tmp_path)
    assert row.same_tokens
    if row.dense_ours is None:
        assert row.ours_theirs.value < 1e-4
    else:
        assert row.ours_theirs.value <= 2 * row.dense_ours.value
