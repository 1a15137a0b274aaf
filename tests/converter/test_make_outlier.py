"""A checkpoint with outlier channels: the same function bit for bit, other magnitudes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import llama2q
import make_outlier
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.shards import split
from llama2q.errors import InvalidArgumentError
from reference import Forward
from reference_weights import Weights, load_meta

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom."


@pytest.fixture(scope="module")
def outlier(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outlier") / "mini-outlier"
    assert make_outlier.main([str(mini_checkpoint), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def weights(mini_checkpoint: Path, outlier: Path) -> tuple[Weights, Weights]:
    """Both models, read without the package."""
    return load_meta(mini_checkpoint), load_meta(outlier)


def test_the_engine_computes_the_same_bits(
    mini_checkpoint: Path, outlier: Path, tmp_path: Path
) -> None:
    logits = []
    for folder in (mini_checkpoint, outlier):
        path = tmp_path / f"{folder.name}.l2q"
        llama2q.convert(folder, path, quant="none")
        with llama2q.load(path, n_ctx=64, kv_dtype="f32") as llm:
            logits.append(llm.logits(llm.tokenizer.encode(TEXT)))
    assert logits[0].tobytes() == logits[1].tobytes()


def test_the_oracle_computes_the_same_bits(weights: tuple[Weights, Weights]) -> None:
    ids = np.array([1, 400, 30, 2000, 7, 4095])
    plain, grown = (Forward(each).step(ids) for each in weights)
    assert plain.tobytes() == grown.tobytes()


def test_which_values_grow_and_shrink(weights: tuple[Weights, Weights]) -> None:
    """Factors read off the files: 4 channels at each place, and their columns, nothing else."""
    plain, grown = weights
    for name in ("tok_embeddings.weight", "output.weight"):
        assert np.array_equal(plain.matrices[name].float64, grown.matrices[name].float64)
    assert np.array_equal(plain.norms["norm.weight"], grown.norms["norm.weight"])
    for layer in range(plain.shape.n_layers):
        prefix = f"layers.{layer}."

        def factor(place: str, prefix: str = prefix) -> np.ndarray:
            name = f"{prefix}{place}.weight"
            if place.endswith("norm"):
                return grown.norms[name] / plain.norms[name]
            return grown.matrices[name].float64 / plain.matrices[name].float64

        attention, ffn = factor("attention_norm"), factor("ffn_norm")
        values, hidden = (
            (factor(place) * norm)[:, 0]
            for place, norm in (("attention.wv", attention), ("feed_forward.w3", ffn))
        )
        for rows in (attention, ffn, values, hidden):
            large = rows[rows != 1]
            assert len(large) == 4
            assert set(large) <= {128, 256, 512, 1024}
        for place, rows, columns in (
            ("attention.wq", 1, attention),
            ("attention.wk", 1, attention),
            ("attention.wv", values[:, None], attention),
            ("attention.wo", 1, np.concatenate([values[:64]] * 2 + [values[64:]] * 2)),
            ("feed_forward.w1", 1, ffn),
            ("feed_forward.w3", hidden[:, None], ffn),
            ("feed_forward.w2", 1, hidden),
        ):
            assert np.array_equal(
                factor(place), np.broadcast_to(rows / columns, factor(place).shape)
            )


def test_the_same_for_any_number_of_shards(
    mini_checkpoint: Path, outlier: Path, tmp_path: Path
) -> None:
    halves, target = tmp_path / "halves", tmp_path / "target"
    halves.mkdir()
    with MetaCheckpoint.open(mini_checkpoint) as mini:
        split(mini, halves, 2)
    assert make_outlier.main([str(halves), str(target)]) == 0
    with MetaCheckpoint.open(target) as two, MetaCheckpoint.open(outlier) as one:
        assert two.n_shards == 2
        for name in one.shapes:
            assert one.read(name).tobytes() == two.read(name).tobytes()


def test_what_f16_cannot_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_outlier.rescale(np.float16([[3.0]]), np.int32([[-10]]), "w") == 3 / 1024
    with pytest.raises(InvalidArgumentError, match=r"w has values .* 2\^10 to 2\^10"):
        make_outlier.rescale(np.float16([[100.0]]), np.int32([[10]]), "w")
    with pytest.raises(InvalidArgumentError, match="float16 does not hold"):
        make_outlier.rescale(np.float16([[2.0**-20]]), np.int32([[-10]]), "w")
    assert make_outlier.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("make_outlier: ")
