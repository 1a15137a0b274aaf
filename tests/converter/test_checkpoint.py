"""An opened checkpoint: merged tensors, and sets of tensors that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.pth_files import (
    Make,
    archive,
    rewrite_params,
    small_tensors,
)
from converter.pth_files import (
    checkpoint_refused as refused,
)
from llama2q.converter import checkpoint as module
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.pth_writer import write_pth
from llama2q.errors import (
    ClosedError,
    CorruptShardError,
    InvalidArgumentError,
    TensorSetError,
    UnsafePickleError,
)


def test_the_demo_model(mini_checkpoint: Path) -> None:
    with MetaCheckpoint.open(mini_checkpoint) as checkpoint:
        config = checkpoint.config
        assert (config.dim, config.hidden_dim, config.vocab_size) == (256, 768, 4096)
        assert (config.n_layers, config.n_heads, config.n_kv_heads) == (6, 4, 2)
        assert (config.norm_eps, config.rope_theta, config.max_seq_len) == (1e-5, 1e4, 4096)
        assert (checkpoint.dtype, checkpoint.n_shards) == ("bf16", 1)
        assert checkpoint.template == "base"
        assert checkpoint.shards == [mini_checkpoint / "consolidated.00.pth"]
        assert checkpoint.tokenizer_path == mini_checkpoint / "tokenizer.model"
        for name, shape in checkpoint.shapes.items():
            array = checkpoint.read(name)
            assert (array.shape, array.dtype) == (shape, np.uint16)
            assert not array.flags.writeable
            checkpoint.check_crc(name)
            checkpoint.release(name)


def test_stories(shared_dir: Path) -> None:
    folder = shared_dir / "checkpoints" / "stories260K"
    if not folder.is_dir():
        pytest.skip("no stories260K in ../shared/checkpoints")
    with MetaCheckpoint.open(folder) as checkpoint:
        assert checkpoint.config.hidden_dim == 172
        assert checkpoint.config.n_kv_heads == 4
        assert checkpoint.dtype == "f32"
        assert checkpoint.read("output.weight").dtype == np.float32


def test_one_shard_is_not_copied(make: Make) -> None:
    with MetaCheckpoint.open(make()) as checkpoint:
        first, second = checkpoint.read("output.weight"), checkpoint.read("output.weight")
        assert first.ctypes.data == second.ctypes.data
        checkpoint.release("output.weight")
        expected = small_tensors()["output.weight"]
        np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(first, expected)
    with pytest.raises(ClosedError, match="closed"):
        checkpoint.read("output.weight")
    with pytest.raises(InvalidArgumentError, match="no tensor 'rope"):
        checkpoint.read("rope.freqs")


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("f32", np.float32), ("f16", np.float16)])
def test_other_dtypes(make: Make, dtype: str, numpy_dtype: type) -> None:
    tensors = {name: a.astype(numpy_dtype) for name, a in small_tensors().items()}
    with MetaCheckpoint.open(make(tensors=tensors, dtype=dtype)) as checkpoint:
        assert checkpoint.dtype == dtype
        for name, expected in tensors.items():
            np.testing.assert_array_equal(checkpoint.read(name), expected)


def test_rope_freqs_are_dropped(make: Make) -> None:
    tensors = small_tensors() | {"rope.freqs": np.zeros(2, np.uint16)}
    with MetaCheckpoint.open(make(tensors=tensors)) as checkpoint:
        assert "rope.freqs" not in checkpoint.shapes


def test_missing_and_unexpected_tensors(make: Make) -> None:
    tensors = small_tensors()
    del tensors["layers.1.attention.wv.weight"]
    tensors["layers.0.attention.wq.bias"] = np.zeros(16, np.uint16)
    refused(
        make(tensors=tensors),
        TensorSetError,
        r"missing 1 \(layers\.1\.attention\.wv\.weight\); unexpected 1 \(.*wq\.bias\)",
    )


@pytest.mark.parametrize("name", ["norm.weight", "tok_embeddings.weight", "output.weight"])
def test_each_tensor_is_required(make: Make, name: str) -> None:
    tensors = small_tensors()
    del tensors[name]
    refused(make(tensors=tensors), TensorSetError, name)


def test_a_wrong_shape(make: Make) -> None:
    tensors = small_tensors()
    tensors["layers.1.attention.wo.weight"] = np.zeros((16, 8), np.uint16)
    refused(make(tensors=tensors), TensorSetError, r"wo\.weight has the shape \(16, 8\); expected")
    tensors = small_tensors()
    tensors["norm.weight"] = tensors["norm.weight"].reshape(1, 16)
    refused(make(tensors=tensors), TensorSetError, r"expected 1 dimension")


def test_layers_that_no_set_can_hold(make: Make) -> None:
    tensors = small_tensors() | {"layers.999999.x": np.zeros(1, np.uint16)}
    refused(make(tensors=tensors), TensorSetError, "cannot make 1000000 layers")


def test_a_state_dict_of_something_else(make: Make) -> None:
    tensors = {"model.embed_tokens.weight": np.zeros((4, 4), np.uint16)}
    refused(make(tensors=tensors), TensorSetError, "not a Llama 2 model")


def test_mixed_dtypes(split_small: Callable[[int], Path]) -> None:
    folder = split_small(2)
    path = folder / "consolidated.01.pth"
    with MetaCheckpoint.open(folder) as checkpoint:
        shapes = {name: t.shape for name, t in checkpoint._files[1].tensors.items()}
    write_pth(path, {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, "f16")
    refused(
        folder,
        TensorSetError,
        r"different dtypes.*bf16: .*\.weight in consolidated\.00\.pth.*f16: .*consolidated\.01",
    )


def test_damaged_weights(make: Make) -> None:
    folder = make()
    path = folder / "consolidated.00.pth"
    with MetaCheckpoint.open(folder) as checkpoint:
        at = checkpoint._files[0].tensors["output.weight"].offset
    data = bytearray(path.read_bytes())
    data[at + 100] ^= 4
    path.write_bytes(data)
    with MetaCheckpoint.open(folder) as checkpoint:
        checkpoint.check_crc("norm.weight")
        with pytest.raises(CorruptShardError, match=r"output\.weight"):
            checkpoint.check_crc("output.weight")


def test_a_hostile_shard_is_named(make: Make) -> None:
    folder = make()
    archive(folder / "consolidated.00.pth", b"\x80\x02cos\nsystem\n.")
    refused(folder, UnsafePickleError, r"^consolidated\.00\.pth: .*'os\.system'")


def test_errors_close_what_was_opened(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Spy(module.ShardFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.append(self)

    monkeypatch.setattr(module, "ShardFile", Spy)
    folder = rewrite_params(make(), n_kv_heads=4)
    refused(folder, TensorSetError, "wk")
    with pytest.raises(ClosedError):
        opened[0].tensors["norm.weight"].array()
