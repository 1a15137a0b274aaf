"""Fixtures that write small checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.gguf_models import ODD
from converter.pth_files import Make, small_checkpoint
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.converter.shards import split


@pytest.fixture
def make(tmp_path: Path, mini_checkpoint: Path) -> Make:
    """Write the small model into `llama/NAME`, with changes."""

    def write(name: str = "small", **changes: object) -> Path:
        tokenizer = mini_checkpoint / "tokenizer.model"
        return small_checkpoint(tmp_path / "llama" / name, tokenizer, **changes)  # type: ignore[arg-type]

    return write


@pytest.fixture
def split_small(make: Make, tmp_path: Path) -> Callable[[int], Path]:
    """Write the small model in n shards."""

    def write(n_shards: int) -> Path:
        folder = tmp_path / f"shards{n_shards}"
        folder.mkdir()
        with MetaCheckpoint.open(make()) as checkpoint:
            split(checkpoint, folder, n_shards)
        return folder

    return write


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, mini_checkpoint: Path) -> Path:
    """Write a model of odd sizes, `gguf_models.ODD`, in Meta's form."""
    rng = np.random.default_rng(3)
    tensors = {
        name: rng.integers(0x3800, 0x3F80, shape, np.uint16)
        for name, shape in tensor_shapes(ODD.config).items()
    }
    return small_checkpoint(
        tmp_path_factory.mktemp("odd"),
        mini_checkpoint / "tokenizer.model",
        tensors=tensors,
        params=ODD.params,
    )
