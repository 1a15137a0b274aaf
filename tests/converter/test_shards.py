"""Splitting by Meta's rules, merging back, and synthetic models in any number of shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import make_synthetic
import synthetic_shapes
from converter.pth_files import small_checkpoint
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.meta_tensors import shard_shape, shard_slice, split_dim, tensor_shapes
from llama2q.converter.pth import ShardFile
from llama2q.converter.shards import split
from llama2q.errors import InvalidArgumentError


@pytest.mark.parametrize("n_shards", [1, 2, 8])
def test_split_and_merge_give_the_same_bytes(
    mini_checkpoint: Path, tmp_path: Path, n_shards: int
) -> None:
    with MetaCheckpoint.open(mini_checkpoint) as original:
        split(original, tmp_path, n_shards)
        assert len(list(tmp_path.glob("*.pth"))) == n_shards
        with MetaCheckpoint.open(tmp_path) as merged:
            assert (merged.config, merged.dtype) == (original.config, original.dtype)
            assert merged.n_shards == n_shards
            assert merged.tokenizer_bytes == original.tokenizer_bytes
            for name in original.shapes:
                array = merged.read(name)
                assert array.tobytes() == original.read(name).tobytes()
                assert array.flags.c_contiguous
                assert not array.flags.writeable
                merged.check_crc(name)
                merged.release(name)


def test_shards_hold_what_metas_rules_say(mini_checkpoint: Path, tmp_path: Path) -> None:
    """Written out by hand: rows of wq, wk, w1, output; columns of wo, w2, tok_embeddings."""
    with MetaCheckpoint.open(mini_checkpoint) as original:
        split(original, tmp_path, 2)
        whole = {name: original.read(name) for name in original.shapes}
    with ShardFile(tmp_path / "consolidated.01.pth") as second:
        parts = {name: stored.array() for name, stored in second.tensors.items()}
    layer = "layers.2."
    for name, expected in {
        "tok_embeddings.weight": whole["tok_embeddings.weight"][:, 128:],
        layer + "attention.wq.weight": whole[layer + "attention.wq.weight"][128:],
        layer + "attention.wk.weight": whole[layer + "attention.wk.weight"][64:],
        layer + "attention.wv.weight": whole[layer + "attention.wv.weight"][64:],
        layer + "attention.wo.weight": whole[layer + "attention.wo.weight"][:, 128:],
        layer + "feed_forward.w1.weight": whole[layer + "feed_forward.w1.weight"][384:],
        layer + "feed_forward.w2.weight": whole[layer + "feed_forward.w2.weight"][:, 384:],
        layer + "feed_forward.w3.weight": whole[layer + "feed_forward.w3.weight"][384:],
        layer + "ffn_norm.weight": whole[layer + "ffn_norm.weight"],
        "norm.weight": whole["norm.weight"],
        "output.weight": whole["output.weight"][2048:],
    }.items():
        np.testing.assert_array_equal(parts[name], expected)


def test_splitting_shards_again(mini_checkpoint: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("four", "one", "direct")]
    for folder in folders:
        folder.mkdir()
    with MetaCheckpoint.open(mini_checkpoint) as original:
        split(original, folders[0], 4)
        split(original, folders[2], 1)
    with MetaCheckpoint.open(folders[0]) as quarters:
        split(quarters, folders[1], 1)
    one, direct = (folder / "consolidated.00.pth" for folder in folders[1:])
    assert one.read_bytes() == direct.read_bytes()


def test_licences_go_along(tmp_path: Path, mini_checkpoint: Path) -> None:
    source = small_checkpoint(tmp_path / "source", mini_checkpoint / "tokenizer.model")
    (source / "LICENSE").write_text("a\r\nb", newline="")
    (tmp_path / "target").mkdir()
    with MetaCheckpoint.open(source) as checkpoint:
        split(checkpoint, tmp_path / "target", 2)
        with MetaCheckpoint.open(tmp_path / "target") as again:
            assert again.licences == checkpoint.licences == {"LICENSE": "a\r\nb"}


def test_splits_that_are_refused(mini_checkpoint: Path, tmp_path: Path) -> None:
    with MetaCheckpoint.open(mini_checkpoint) as checkpoint:
        with pytest.raises(InvalidArgumentError, match="cannot be split into 3 shards"):
            split(checkpoint, tmp_path, 3)
        with pytest.raises(InvalidArgumentError, match="n_shards is 0"):
            split(checkpoint, tmp_path, 0)
        with pytest.raises(InvalidArgumentError, match="the checkpoint itself"):
            split(checkpoint, mini_checkpoint, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", synthetic_shapes.SHAPES)
@pytest.mark.parametrize("n_shards", [1, 2, 8])
def test_slices_cover_each_tensor_once(shape: str, n_shards: int) -> None:
    for name, size in tensor_shapes(synthetic_shapes.SHAPES[shape].config).items():
        dim = split_dim(name)
        if dim is None:
            continue
        part = shard_shape(name, size, n_shards)
        covered = 0
        for index in range(n_shards):
            slices = shard_slice(name, size, index, n_shards)
            assert (slices[dim].start, slices[dim].stop) == (covered, covered + part[dim])
            covered += part[dim]
        assert covered == size[dim]


# --- synthetic models ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "hidden_dim", "n_parameters"),
    [
        ("1.1b", 5632, 1_100_048_384),
        ("7b", 11008, 6_738_415_616),
        ("13b", 13824, 13_015_864_320),
        ("70b", 28672, 68_976_648_192),
    ],
)
def test_real_shapes(shape: str, hidden_dim: int, n_parameters: int) -> None:
    config = synthetic_shapes.SHAPES[shape].config
    assert config.hidden_dim == hidden_dim
    assert sum(int(np.prod(size)) for size in tensor_shapes(config).values()) == n_parameters


def test_random_weights_do_not_depend_on_chunks() -> None:
    name, shape = "layers.0.attention.wq.weight", (70, 33)
    chunks = {
        elements: list(synthetic_shapes.random_bf16_chunks(name, shape, 7, elements))
        for elements in (1, 33 * 5, 33 * 20, 1 << 20)
    }
    assert [len(chunk) for chunk in chunks[33 * 20]] == [16, 16, 16, 16, 6]
    whole = np.concatenate(chunks[1 << 20])
    for parts in chunks.values():
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    values = (whole.astype(np.uint32) << 16).view(np.float32)
    assert abs(float(values.std()) - 0.02) < 0.001  # 2310 draws: 5 sigma is 0.0015
    (norm,) = synthetic_shapes.random_bf16_chunks("norm.weight", (64,), 7)
    assert abs(float((norm.astype(np.uint32) << 16).view(np.float32).mean()) - 1) < 0.02
    other = np.concatenate(list(synthetic_shapes.random_bf16_chunks(name, shape, 8)))
    assert (other != whole).mean() > 0.9


def test_bf16_rounding() -> None:
    values = np.array([1.0, -1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    np.testing.assert_array_equal(
        synthetic_shapes.to_bf16(values), [0x3F80, 0xBF80, 0x3F80, 0x3F82, 0x3F81]
    )


@pytest.mark.parametrize("n_shards", [1, 2, 8])
def test_make_synthetic(tmp_path: Path, n_shards: int) -> None:
    target = tmp_path / "tiny"
    arguments = ["--shape", "tiny", "--meta", str(target), "--shards", str(n_shards)]
    assert make_synthetic.main(arguments) == 0
    with MetaCheckpoint.open(target) as checkpoint:
        assert checkpoint.config == synthetic_shapes.SHAPES["tiny"].config
        assert checkpoint.n_shards == n_shards
        for name, shape in checkpoint.shapes.items():
            chunks = synthetic_shapes.random_bf16_chunks(name, shape, 0)
            np.testing.assert_array_equal(checkpoint.read(name), np.concatenate(list(chunks)))


def test_make_synthetic_with_holes(tmp_path: Path, mini_checkpoint: Path) -> None:
    shape = synthetic_shapes.SHAPES["tiny"]
    tokenizer = (mini_checkpoint / "tokenizer.model").read_bytes()
    make_synthetic.write_meta(shape, tokenizer, tmp_path, 2, 1, sparse=True)
    with MetaCheckpoint.open(tmp_path) as checkpoint:
        assert not checkpoint.read("output.weight").any()
        assert checkpoint.read("norm.weight").any()
        for name in checkpoint.shapes:
            checkpoint.check_crc(name)
    assert json.loads((tmp_path / "params.json").read_text())["vocab_size"] == -1


def test_make_synthetic_without_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_synthetic, "TOKENIZERS", {})
    arguments = ["--shape", "7b", "--meta", str(tmp_path / "x")]
    assert make_synthetic.main(arguments) == 1
    assert "give one with --tokenizer PATH" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
