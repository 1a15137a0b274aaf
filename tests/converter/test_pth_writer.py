"""Writing shards: what is written is read back, in little memory."""

from __future__ import annotations

import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama2q.converter.crc32 import crc32_of_zeros
from llama2q.converter.mapped_tensor import NUMPY_DTYPES
from llama2q.converter.pth import ShardFile
from llama2q.converter.pth_writer import PthWriter, TensorSource, write_pth
from llama2q.errors import (
    InvalidArgumentError,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consolidated.00.pth"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_written_tensors_are_read_back(path: Path, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["f32", "f16", "bf16"]))
    shapes = data.draw(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
            st.lists(st.integers(1, 9), max_size=4).map(tuple),
            max_size=6,
        )
    )
    tensors = {
        name: np.frombuffer(
            data.draw(st.randoms(use_true_random=False)).randbytes(
                int(np.prod(shape)) * NUMPY_DTYPES[dtype].itemsize
            ),
            NUMPY_DTYPES[dtype],
        ).reshape(shape)
        for name, shape in shapes.items()
    }
    write_pth(path, tensors, dtype)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    with ShardFile(path) as shard:
        assert list(shard.tensors) == list(tensors)
        assert all(shard.crc_ok(entry) for entry in shard.entries.values())
        assert all(entry.offset % 64 == 0 for entry in shard.entries.values())
        for name, expected in tensors.items():
            stored = shard.tensors[name]
            found = stored.array()
            assert (stored.name, stored.dtype, stored.shape) == (name, dtype, expected.shape)
            assert found.dtype == expected.dtype
            assert found.tobytes() == expected.tobytes()


@pytest.mark.skipif(sys.platform == "win32", reason="NTFS would write the 4.6 GB of zeros")
def test_sparse_file_over_4_gib(path: Path) -> None:
    """Offsets beyond 32 bits; the holes take no room on the disk."""
    hole = TensorSource((1 << 20, 1100), None)
    tail = np.arange(7, dtype=np.float32)
    write_pth(path, {"hole": hole, "tail": tail}, "f32")
    assert path.stat().st_size > 1 << 32
    with zipfile.ZipFile(path) as file:
        assert [entry.file_size for entry in file.infolist()][-3:] == [(1 << 20) * 4400, 28, 2]
    with ShardFile(path) as shard:
        np.testing.assert_array_equal(shard.tensors["tail"].array(), tail)
        assert shard.tensors["hole"].array()[12345, 678] == 0
        shard.check_crc("tail")


@given(st.integers(0, 70_000))
def test_crc_of_zeros(nbytes: int) -> None:
    assert crc32_of_zeros(nbytes) == zlib.crc32(bytes(nbytes))


def test_chunks_and_holes(path: Path) -> None:
    whole = np.arange(35, dtype=np.float32).reshape(7, 5)
    sources = {
        "a": TensorSource((7, 5), lambda: (whole[i : i + 2] for i in range(0, 7, 2))),
        "hole": TensorSource((3, 100), None),
        "b": np.asfortranarray(whole),
    }
    write_pth(path, sources.items(), "f32")
    with ShardFile(path) as shard:
        np.testing.assert_array_equal(shard.tensors["a"].array(), whole)
        np.testing.assert_array_equal(shard.tensors["b"].array(), whole)
        assert not shard.tensors["hole"].array().any()
        for name in shard.tensors:
            shard.check_crc(name)


def test_the_writer_refuses_what_does_not_fit(path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="expected one of"):
        write_pth(path, {}, "f64")
    with pytest.raises(InvalidArgumentError, match="float64"):
        write_pth(path, {"a": np.zeros(3)}, "f32")
    with pytest.raises(InvalidArgumentError, match="empty"):
        write_pth(path, {"a": np.zeros(0, np.float32)}, "f32")
    short = TensorSource((4,), lambda: [np.zeros(3, np.float32)])
    with pytest.raises(InvalidArgumentError, match="lacks 4 bytes"):
        write_pth(path, {"a": short}, "f32")
    long = TensorSource((2,), lambda: [np.zeros(3, np.float32)])
    with pytest.raises(InvalidArgumentError, match="8 are due"):
        write_pth(path, {"a": long}, "f32")
    with (
        pytest.raises(InvalidArgumentError, match="a is due"),
        PthWriter(path, {"a": (1,), "b": (1,)}, "f32") as writer,
    ):
        writer.write("b", np.zeros(1, np.float32))
    assert list(path.parent.iterdir()) == []
