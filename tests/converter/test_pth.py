"""One shard: tensors as views of the file, and files that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.pth_files import (
    ORDERED_DICT,
    archive,
    dict_pickle,
    refused,
    small_tensors,
    tensor,
    text,
    torch_pickle,
    tuple_of,
)
from llama2q.converter.pth import ShardFile
from llama2q.converter.pth_writer import write_pth
from llama2q.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ClosedError,
    ShardFormatError,
    TruncatedShardError,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consolidated.00.pth"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol(
    path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    arrays = {f"layers.{i}.w": np.full((i + 1, 3), i, np.float32) for i in range(300)}
    pickled = torch_pickle(monkeypatch, arrays, protocol)
    archive(path, pickled, {str(i): a.tobytes() for i, a in enumerate(arrays.values())})
    with ShardFile(path) as shard:
        assert list(shard.tensors) == list(arrays)
        for name, expected in arrays.items():
            np.testing.assert_array_equal(shard.tensors[name].array(), expected)


def test_the_demo_model(mini_checkpoint: Path) -> None:
    with ShardFile(mini_checkpoint / "consolidated.00.pth") as shard:
        assert len(shard.tensors) == 57 + ("rope.freqs" in shard.tensors)
        assert {stored.dtype for stored in shard.tensors.values()} == {"bf16"}
        assert shard.tensors["layers.5.attention.wk.weight"].shape == (128, 256)
        for name in shard.tensors:
            shard.check_crc(name)


def test_stories(shared_dir: Path) -> None:
    folder = shared_dir / "checkpoints" / "stories260K"
    if not folder.is_dir():
        pytest.skip("no stories260K in ../shared/checkpoints")
    with ShardFile(folder / "consolidated.00.pth") as shard:
        assert shard.tensors["layers.0.feed_forward.w1.weight"].shape == (172, 64)
        assert shard.tensors["tok_embeddings.weight"].array().dtype == np.float32


def test_arrays_are_read_only_views_of_the_map(path: Path) -> None:
    write_pth(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "f32")
    with ShardFile(path) as shard:
        first, second = shard.tensors["a"].array(), shard.tensors["a"].array()
        assert first.ctypes.data == second.ctypes.data
        assert not first.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            first.flags.writeable = True
        shard.tensors["a"].release()
        assert first[1, 2] == 5
    assert first[0, 1] == 1  # outlives the shard
    with pytest.raises(ClosedError):
        shard.tensors["a"].array()


@pytest.mark.parametrize("root", ["archive", "consolidated.00", "a b"])
def test_views_share_a_storage_and_any_alignment_is_fine(path: Path, root: str) -> None:
    pickled = dict_pickle(
        whole=tensor(), row=tensor(offset=3, shape=(1, 3), strides=(99, 1)), all=tensor()
    )
    archive(path, pickled, root=root, extra={f"{root}/version": b"3\n"})
    with ShardFile(path) as shard:
        np.testing.assert_array_equal(shard.tensors["row"].array(), [[3, 4, 5]])
        np.testing.assert_array_equal(shard.tensors["whole"].array(), [[0, 1, 2], [3, 4, 5]])
        assert shard.tensors["whole"].array().flags.aligned


def test_parameters_and_metadata_of_a_state_dict(path: Path) -> None:
    parameter = (
        b"ctorch._utils\n_rebuild_parameter\n" + tuple_of(tensor(), b"\x88", ORDERED_DICT) + b"R"
    )
    items = b"(" + text("a") + parameter + b"u"
    state = b"}" + text("_metadata") + ORDERED_DICT + b"s"
    archive(path, b"\x80\x02" + ORDERED_DICT + items + state + b"b.")
    with ShardFile(path) as shard:
        assert shard.tensors["a"].shape == (2, 3)


@pytest.mark.parametrize("limit", [0, 64, 1000])
def test_zip64_directories(path: Path, limit: int) -> None:
    """The same file with the fields from `limit` on moved into Zip64 records."""
    arrays = {"a": np.arange(300, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    write_pth(path, arrays, "f32")
    plain = path.read_bytes()
    directory = struct.unpack_from("<2L", plain, len(plain) - 10)
    central = bytearray(plain[directory[1] : directory[1] + directory[0]])
    at = 0
    wide = bytearray()
    while at < len(central):
        lengths = struct.unpack_from("<3H", central, at + 28)
        size, offset = (
            *struct.unpack_from("<L", central, at + 24),
            *struct.unpack_from("<L", central, at + 42),
        )
        name = central[at + 46 : at + 46 + lengths[0]]
        header = central[at : at + 46]
        values = b""
        if size >= limit:
            struct.pack_into("<2L", header, 20, 0xFFFFFFFF, 0xFFFFFFFF)
            values += struct.pack("<2Q", size, size)
        if offset >= limit:
            struct.pack_into("<L", header, 42, 0xFFFFFFFF)
            values += struct.pack("<Q", offset)
        extra = struct.pack("<2H", 1, len(values)) + values if values else b""
        struct.pack_into("<H", header, 30, len(extra))
        wide += header + name + extra
        at += 46 + sum(lengths)
    count = struct.unpack_from("<H", plain, len(plain) - 12)[0]
    end = directory[1] + len(wide)
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(wide), directory[1]
    )
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(plain[: directory[1]] + wide + record + locator + tail)
    with ShardFile(path) as shard:
        np.testing.assert_array_equal(shard.tensors["a"].array(), arrays["a"])
        assert all(shard.crc_ok(entry) for entry in shard.entries.values())


def test_no_file(path: Path) -> None:
    refused(path, CheckpointNotFoundError, "not a file")


def test_an_empty_file(path: Path) -> None:
    path.touch()
    refused(path, TruncatedShardError, r"consolidated\.00\.pth is empty; run download\.sh again")


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><html>",
        b"\n  <html lang=en>",
        b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code>",
    ],
)
def test_a_web_page(path: Path, page: bytes) -> None:
    path.write_bytes(page)
    refused(path, ShardFormatError, r"is a web page: the signed URL from Meta expired \(24 hours\)")


def test_other_kinds(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(path, ShardFormatError, "Git LFS")
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    refused(path, ShardFormatError, r"legacy form .* torch\.save\(torch\.load")
    path.write_bytes(bytes(257) + b"ustar" + bytes(250))
    refused(path, ShardFormatError, "legacy form")
    path.write_bytes(b"GGUF" + bytes(100))
    refused(path, ShardFormatError, "starts with b'GGUF")


def test_truncated_files_say_how_much_is_there(path: Path) -> None:
    write_pth(path, {"a": np.zeros((1000, 1000), np.float32)}, "f32")
    data = path.read_bytes()
    path.write_bytes(data[:1_200_000])
    refused(path, TruncatedShardError, r"truncated \(1\.2 of 4\.0 MB\); run download\.sh again")
    path.write_bytes(data[:-1])
    refused(path, TruncatedShardError, "lack the archive's end")
    path.write_bytes(data[:50])
    refused(path, TruncatedShardError, "its 50 bytes lack")


@pytest.fixture(scope="module")
def small_shard() -> bytes:
    import tempfile

    names = ["norm.weight", "layers.0.attention_norm.weight", "layers.0.attention.wk.weight"]
    tensors = small_tensors()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "consolidated.00.pth"
        write_pth(path, {name: tensors[name] for name in names}, "bf16")
        return path.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(data=st.data())
def test_damaged_files_end_in_a_named_error(
    path: Path, small_shard: bytes, data: st.DataObject
) -> None:
    """A few changed bytes, or a cut: the file is read, or refused by name; no other error."""
    damaged = bytearray(small_shard)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        damaged[: data.draw(st.sampled_from([len(damaged)] * 3 + [len(damaged) // 2]))]
    )
    try:
        with ShardFile(path) as shard:
            for stored in shard.tensors.values():
                assert stored.array().size
    except CheckpointError:
        pass


def test_every_cut_is_refused(path: Path, small_shard: bytes) -> None:
    for length in range(0, len(small_shard), 7):
        path.write_bytes(small_shard[:length])
        with pytest.raises(CheckpointError), ShardFile(path):
            pass
