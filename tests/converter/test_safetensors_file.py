"""The strict reader of safetensors, against the safetensors package."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converter.hf_files import header_of, raw_safetensors, write_safetensors
from llama2q.converter.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from llama2q.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ClosedError,
    ShardFormatError,
    TruncatedShardError,
)

ONE = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
TWO = {**ONE, "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}


def refused(path: Path, error: type[CheckpointError], match: str) -> None:
    with pytest.raises(error, match=match), SafetensorsFile(path):
        pass


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        hnp.arrays(
            st.sampled_from([np.dtype("<f4"), np.dtype("<f2")]),
            hnp.array_shapes(max_dims=3, max_side=4),
        ),
        max_size=4,
    )
)
def test_reads_what_the_package_writes(tensors: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        safetensors.numpy.save_file(tensors, path, {"format": "pt"})
        with SafetensorsFile(path) as file:
            assert set(file.tensors) == set(tensors)
            for name, array in tensors.items():
                found = file.tensors[name].array()
                assert (found.dtype, found.flags.writeable) == (array.dtype, False)
                np.testing.assert_array_equal(found, array)
                file.check_crc(name)
                file.tensors[name].release()


def test_the_tests_files_are_sound(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.arange(4, dtype="<u2")}
    path = write_safetensors(tmp_path / "x", tensors)
    with safetensors.safe_open(path, "numpy") as package, SafetensorsFile(path) as file:
        assert set(package.keys()) == set(file.tensors)
        assert package.get_slice("b").get_dtype() == "BF16"
        assert file.tensors["b"].dtype == "bf16"
        np.testing.assert_array_equal(package.get_tensor("a"), file.tensors["a"].array())
        np.testing.assert_array_equal(file.tensors["b"].array(), tensors["b"])


@given(st.data())
def test_nothing_is_taken_that_the_package_refuses(data: st.DataObject) -> None:
    """Of changed files, only such as the package reads too are read; others give a named error."""
    tensors = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.arange(4, dtype="<f2")}
    with tempfile.TemporaryDirectory() as folder:
        path = write_safetensors(Path(folder) / "x", tensors)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789,:[]{}" '))
        cut = data.draw(st.integers(0, 3) | st.just(0))
        path.write_bytes(content[: len(content) - cut])
        try:
            with SafetensorsFile(path) as file:
                found = {name: (t.dtype, t.shape) for name, t in file.tensors.items()}
        except CheckpointError:
            return
        with safetensors.safe_open(path, "numpy") as package:
            assert found == {
                name: (piece.get_dtype().lower(), tuple(piece.get_shape()))
                for name in package.keys()
                for piece in [package.get_slice(name)]
            }


def entry(**changes: object) -> dict[str, Any]:
    return {"a": {**ONE["a"], **changes}}


@pytest.mark.parametrize(
    ("header", "n_bytes", "error", "match"),
    [
        (ONE, 23, TruncatedShardError, r"is truncated \(\d+ of \d+ bytes\); download it again"),
        (ONE, 25, ShardFormatError, "1 bytes follow its last tensor"),
        ({**TWO, "b": {**TWO["b"], "data_offsets": [20, 28]}}, 28, ShardFormatError,
         "'b' overlaps 'a'"),
        ({**TWO, "b": {**TWO["b"], "data_offsets": [0, 8]}}, 24, ShardFormatError,
         "'a' overlaps 'b'"),
        ({**TWO, "b": {**TWO["b"], "data_offsets": [28, 36]}}, 36, ShardFormatError,
         "a hole of 4 bytes lies between 'a' and 'b'"),
        (entry(data_offsets=[4, 28]), 28, ShardFormatError, "hole of 4 bytes lies between the st"),
        (entry(dtype="F16"), 24, ShardFormatError, "in F16 needs 12 bytes; its place is"),
        (entry(dtype="F31"), 24, ShardFormatError, "unknown dtype 'F31'"),
        (entry(dtype=["F32"]), 24, ShardFormatError, "unknown dtype"),
        (entry(shape=[2, 4]), 24, ShardFormatError, "needs 32 bytes"),
        (entry(shape=[2, -3]), 24, ShardFormatError, "expected sizes"),
        (entry(shape=[2, 3.0]), 24, ShardFormatError, "expected sizes"),
        (entry(shape=[True, 6]), 24, ShardFormatError, "expected sizes"),
        (entry(shape=[1] * 9), 24, ShardFormatError, "expected sizes"),
        (entry(shape="23"), 24, ShardFormatError, "expected sizes"),
        (entry(shape=[2**60, 2**60]), 24, ShardFormatError, "expected sizes"),
        (entry(shape=[0, 3], data_offsets=[0, 0]), 0, ShardFormatError, "is empty"),
        (entry(data_offsets=[24, 0]), 24, ShardFormatError, "its place is"),
        (entry(data_offsets=[0, 2**70]), 24, ShardFormatError, "expected two bytes' places"),
        (entry(data_offsets=[0]), 24, ShardFormatError, "expected two bytes' places"),
        (entry(extra=1), 24, ShardFormatError, "has not exactly the keys"),
        ({"a": 3}, 24, ShardFormatError, "has not exactly the keys"),
        ({**ONE, "__metadata__": {"format": 1}}, 24, ShardFormatError, "is not an object of str"),
        ({**ONE, "__metadata__": []}, 24, ShardFormatError, "__metadata__ is not an object"),
        (json.dumps(ONE)[:-1].encode() + b',"a":1}', 24, ShardFormatError, "a key appears twice"),
        (b'{"a": NaN}', 24, ShardFormatError, "NaN is not a number of JSON"),
        (b'{"a": \xff}', 24, ShardFormatError, "not valid JSON"),
        (b"{" + b'"a":{' * 5000, 24, ShardFormatError, "not valid JSON"),
        (b"[1, 2, 3]", 24, ShardFormatError, "expected a safetensors file"),
    ],
)  # fmt: skip
def test_headers_that_are_refused(
    tmp_path: Path, header: object, n_bytes: int, error: type[CheckpointError], match: str
) -> None:
    refused(raw_safetensors(tmp_path / "x", header, bytes(n_bytes)), error, match)


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", TruncatedShardError, "x is empty; download it again"),
        (b"\x08\0\0", TruncatedShardError, "has 3 bytes only"),
        (b"\xff" * 8 + b"{}", ShardFormatError, "its header claims 18446744073709551615 bytes"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", ShardFormatError, "claims"),
        ((99).to_bytes(8, "little") + b"{}", TruncatedShardError, "ends inside its header"),
        (b"<!DOCTYPE html><html>", ShardFormatError, r"is a web page: the download failed; log in"),
        (b"version https://git-lfs.github.com/spec/v1\n", ShardFormatError, "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(30), ShardFormatError, "is a zip archive, as torch.save writes it"),
        (b"GGUF\x03\0\0\0\0\0", ShardFormatError, "expected a safetensors file"),
    ],
)
def test_other_files(
    tmp_path: Path, content: bytes, error: type[CheckpointError], match: str
) -> None:
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", error, match)


def test_absent_and_closed_files(tmp_path: Path) -> None:
    refused(tmp_path / "x", CheckpointNotFoundError, "is not a file")
    path = write_safetensors(tmp_path / "x", {"a": np.ones(3, "<f4")})
    with SafetensorsFile(path) as file:
        kept = file.tensors["a"].array()
    assert kept.sum() == 3
    with pytest.raises(ClosedError):
        file.tensors["a"].array()


def test_headers_of_the_builders() -> None:
    assert header_of({"a": np.zeros((2, 3), "<f4"), "b": np.zeros(4, "<u2")}) == TWO
