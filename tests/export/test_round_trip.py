"""A file exported as GGUF and converted back has the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import llama2q
from llama2q.format import L2qFile
from llama2q.format.layout import TOKENIZER


@pytest.mark.parametrize(
    ("quant", "grid"),
    [("int4", "nonuniform"), ("int4", "uniform"), ("int8", "nonuniform"), ("none", "nonuniform")],
)
def test_same_hashes(
    convert_mini: Callable[..., Path], tmp_path: Path, quant: str, grid: str
) -> None:
    """At group 32, which both forms have; the tokenizer is built anew, with the same pieces."""
    original = convert_mini(quant=quant, group_size=32, grid=grid)
    llama2q.export_gguf(original, tmp_path / "x.gguf")
    back = llama2q.convert(
        tmp_path / "x.gguf", tmp_path / "back.l2q", quant="none" if quant == "none" else None
    )
    with L2qFile(original) as before, L2qFile(back.path) as after:
        hashes = [dict(file.metadata.sha256) for file in (before, after)]
        for each in hashes:
            del each[TOKENIZER]
        assert hashes[0] == hashes[1]
        assert before.config == after.config
    with llama2q.load(original) as first, llama2q.load(back.path) as second:
        text = "The king said: nothing comes of nothing.\n  Twice, 42 times!"
        assert first.tokenizer.encode(text) == second.tokenizer.encode(text)
