"""Outlying channels are brought to the others' size, and no output shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2q
import make_outlier
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.equalize import LEAST, EqualizedCheckpoint, sites
from llama2q.quant.bits import widen

PROMPT = [1, *range(50, 90)]


@pytest.fixture(scope="module")
def outlier(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with 96 channels 128 to 1024 times as large, its function unchanged."""
    folder = tmp_path_factory.mktemp("outlier") / "mini-outlier"
    assert make_outlier.main([str(mini_checkpoint), str(folder)]) == 0
    return folder


def wide(weights: NDArray[Any]) -> NDArray[np.float64]:
    return widen(weights).astype(np.float64)


def test_every_product_of_maker_and_reader_stays(outlier: Path) -> None:
    """Powers of two: what a channel is divided by, each of its columns is multiplied by."""
    with MetaCheckpoint.open(outlier) as before:
        after = EqualizedCheckpoint.of(before)
        config = after.config
        moved = 0
        for layer in range(config.n_layers):
            for site in sites(config, layer):
                made = wide(after.read(site.maker)).reshape(len(before.read(site.maker)), -1)
                was = wide(before.read(site.maker)).reshape(made.shape)
                # Columns of w3 and wv may have moved with the norm: rows are compared by their sum
                # of logarithms, which these leave the same for all rows.
                if site.maker.endswith("norm.weight"):
                    factors = (made / was)[:, 0]
                else:
                    norm = wide(after.read(norm_of(site.maker))) / wide(
                        before.read(norm_of(site.maker))
                    )
                    factors = np.median(made * norm / was, axis=1)
                assert (np.frexp(factors)[0] == 0.5).all()
                moved += int(np.count_nonzero(factors != 1))
                heads = factors.reshape(-1, 1, config.head_dim) if site.copies > 1 else factors
                columns = (
                    np.repeat(heads, site.copies, axis=1).ravel() if site.copies > 1 else factors
                )
                for name in site.readers:
                    rows = np.ones(len(before.read(name)))
                    if name.endswith(("wv.weight", "w3.weight")):
                        found = wide(after.read(name)) * columns / wide(before.read(name))
                        rows = np.median(found, axis=1)
                    expected = wide(before.read(name)) * rows[:, None] / columns
                    np.testing.assert_array_equal(wide(after.read(name)), expected)
        assert moved == after.n_moved == 96
        assert "96 channels" in after.notes[-1]


def norm_of(name: str) -> str:
    """Return the norm before wv or w3."""
    prefix, part = name.rsplit(".", 3)[0], name.split(".")[2]
    return f"{prefix}.{'attention_norm' if part == 'attention' else 'ffn_norm'}.weight"


def test_sizes_are_even_afterwards(outlier: Path) -> None:
    """What was moved is within the factor that is let pass."""
    with MetaCheckpoint.open(outlier) as checkpoint:
        once = EqualizedCheckpoint.of(checkpoint)
        twice = EqualizedCheckpoint.of(once)
        for layer in range(once.config.n_layers):
            norm = np.abs(once.read(f"layers.{layer}.attention_norm.weight"))
            assert norm.max() / np.median(norm) < 2 ** (LEAST + 2)
            twice.read(f"layers.{layer}.feed_forward.w2.weight")
        assert once.n_moved == 96
        assert twice.n_moved == 0


def test_a_model_without_outliers_is_left_alone(mini_checkpoint: Path) -> None:
    with MetaCheckpoint.open(mini_checkpoint) as checkpoint:
        equalized = EqualizedCheckpoint.of(checkpoint)
        for name in checkpoint.shapes:
            found = equalized.read(name)
            assert found.dtype == checkpoint.read(name).dtype
            np.testing.assert_array_equal(found, checkpoint.read(name))
        assert equalized.n_moved == 0
        assert equalized.notes == checkpoint.notes


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantized_outliers_are_as_good(
    mini_checkpoint: Path,
    outlier: Path,
    convert_mini: Callable[..., Path],
    tmp_path: Path,
    quant: str,
) -> None:
    """As the demo model without them; without evening out, int8 loses a hundred times as much."""
    method = "rtn" if quant == "int4" else None

    def loss(checkpoint: Path) -> float:
        path = tmp_path / f"{checkpoint.name}.l2q"
        report = llama2q.convert(checkpoint, path, quant=quant, group_size=64, method=method)
        assert any("channels" in note for note in report.notes) == (checkpoint == outlier)
        with llama2q.load(path, n_ctx=64) as llm:
            return float(np.square(llm.logits(PROMPT) - exact).mean())

    with llama2q.load(convert_mini(quant="none"), n_ctx=64) as llm:
        exact = llm.logits(PROMPT)
    assert loss(outlier) < 1.5 * loss(mini_checkpoint)


def test_unquantized_files_keep_every_number(outlier: Path, tmp_path: Path) -> None:
    report = llama2q.convert(outlier, tmp_path / "x.l2q", quant="none")
    assert report.notes == ()
    with MetaCheckpoint.open(outlier) as checkpoint, llama2q.load(report.path) as llm:
        name = "layers.0.attention_norm.weight"
        np.testing.assert_array_equal(llm._engine.file.array(name), widen(checkpoint.read(name)))
