"""The strict reader: what it accepts, and a named error for each fault."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from l2q_files import (
    Header,
    edit_header,
    edit_metadata,
    join_file,
    pad_text,
    split_file,
    write_small,
)
from llama2q.errors import (
    ClosedError,
    FormatError,
    HeaderError,
    InvalidArgumentError,
    ModelIdError,
    NotAnL2qFileError,
    TensorLayoutError,
    TruncatedFileError,
    UnsupportedVersionError,
)
from llama2q.format import L2qFile
from llama2q.format.header import canonical_json
from llama2q.quant import grid_values, int4, int8
from numpy_quantizers import SMALL, TOKENIZER, random_weights

W2 = "layers.1.feed_forward.w2.weight.codes"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("file") / "small.l2q"
    write_small(path)
    return path.read_bytes()


@pytest.fixture
def path(original: bytes, tmp_path: Path) -> Path:
    copy = tmp_path / "small.l2q"
    copy.write_bytes(original)
    return copy


def test_what_a_file_holds(path: Path) -> None:
    with L2qFile(path) as file:
        assert file.config == SMALL
        assert file.template == "base"
        assert file.file_bytes == path.stat().st_size
        assert file.recipe.tensors["output.weight"].type == "int8"
        assert bytes(file.array("tokenizer.model")) == TOKENIZER
        assert all(info.offset % 64 == 0 for info in file.tensors.values())
        assert min(info.offset for info in file.tensors.values()) % 4096 == 0
        assert next(iter(file.tensors)) == "tok_embeddings.weight.codes"
        assert list(file.tensors)[-1] == "tokenizer.model"
        assert not any(name.startswith("pad.") for name in file.tensors)
        matrix = file.matrix("layers.0.feed_forward.w1_w3.weight")
        codes = file.array(matrix.name + ".codes")
        scales = file.array(matrix.name + ".scales")
        grid = grid_values("nonuniform")
        for offset, source in enumerate(matrix.sources):
            weights = random_weights(source, matrix.rows, matrix.cols)
            expected = int4.decode(*int4.encode(weights, 64, grid), *weights.shape, grid)
            found = int4.decode(codes[offset::2], scales[offset::2], *weights.shape, grid)
            np.testing.assert_array_equal(found, expected)
        table = random_weights("tok_embeddings.weight", SMALL.vocab_size, SMALL.dim)
        np.testing.assert_array_equal(
            int8.decode_rows(
                file.array("tok_embeddings.weight.codes"),
                file.array("tok_embeddings.weight.scales"),
                64,
            ),
            int8.decode_rows(*int8.encode_rows(table, 64), 64),
        )


@pytest.mark.parametrize("quant", ["int4", "int8", "none"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_safetensors_reads_it(tmp_path: Path, quant: str, dtype: str) -> None:
    from l2q_files import norm
    from llama2q.format import Recipe, Writer
    from llama2q.format.metadata import Metadata
    from llama2q.format.writer import write_model
    from numpy_quantizers import encode_random

    recipe = Recipe.for_model(SMALL, quant, dtype=dtype)
    path = tmp_path / "file.l2q"

    def encode(matrix: Any) -> Any:
        if quant != "none" or dtype == "f32":
            return encode_random(matrix)
        (spec,) = matrix.tensors()
        return [[np.zeros(spec.shape, dtype=np.float16 if dtype == "f16" else np.uint16)]]

    with Writer(path, Metadata(SMALL, recipe), TOKENIZER) as writer:
        write_model(writer, encode, norm)
        writer.finish()
    with L2qFile(path) as file, safe_open(path, framework="np") as other:
        file.verify()
        names = [name for name in other.keys() if not name.startswith("pad.")]
        assert set(names) == set(file.tensors)
        assert other.metadata()["model_id"] == file.model_id
        for name, info in file.tensors.items():
            if info.dtype != "BF16":
                np.testing.assert_array_equal(other.get_tensor(name), file.array(name))
            else:
                assert tuple(other.get_slice(name).get_shape()) == info.shape


def test_arrays_are_read_only_views_that_outlive_the_file(path: Path) -> None:
    file = L2qFile(path)
    codes = file.array(W2)
    before = codes.copy()
    with pytest.raises(ValueError, match="read-only"):
        codes[0, 0, 0] = 1
    file.close()
    file.close()
    np.testing.assert_array_equal(codes, before)
    with pytest.raises(ClosedError, match="closed"):
        file.array(W2)


def test_unknown_names(path: Path) -> None:
    with L2qFile(path) as file:
        with pytest.raises(InvalidArgumentError, match="no tensor 'x'"):
            file.array("x")
        with pytest.raises(InvalidArgumentError, match="no matrix 'norm'"):
            file.matrix("norm")


def refuse(path: Path, error: type[FormatError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        L2qFile(path)
    assert type(caught.value) is error
    assert str(caught.value).startswith(path.name)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "0 bytes"),
        (b"\x10\0\0", "3 bytes"),
        (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
        (b"PK\x03\x04" + bytes(64), "zip"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (bytes(8), "too few"),
        (bytes(100), "does not start"),
        (struct.pack("<Q", 2**62) + b"x" * 50, "does not start"),
        (bytes(range(256)), "does not start"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "other.l2q"
    path.write_bytes(content)
    refuse(path, NotAnL2qFileError, match)


def test_folder_and_absent_file(tmp_path: Path) -> None:
    refuse(tmp_path, NotAnL2qFileError, "folder")
    with pytest.raises(FileNotFoundError):
        L2qFile(tmp_path / "absent.l2q")


def test_plain_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}
    path.write_bytes(join_file({"x": entry}, bytes(64)))
    refuse(path, NotAnL2qFileError, "safetensors file but not")


def test_truncation_everywhere(path: Path, original: bytes) -> None:
    header, data = split_file(original)
    start = len(original) - len(data)
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    for size in [9, 100, 4095, start - 1, start, start + 1, *(start + end - 1 for end in ends)]:
        path.write_bytes(original[:size])
        refuse(path, TruncatedFileError, r"(ends inside its header|truncated)")
    path.write_bytes(original + b"\0")
    refuse(path, TruncatedFileError, "longer")


def set_entry(name: str, key: str, value: Any) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        header[name][key] = value

    return edit


def set_metadata(key: str, value: str | None) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        if value is None:
            del header["__metadata__"][key]
        else:
            header["__metadata__"][key] = value

    return edit


def linear(**changes: Any) -> str:
    return canonical_json(
        {"scaling": "linear", "factor": 2.0, "original_max_seq_len": 16, **changes}
    )


HEADER_FAULTS: list[tuple[Callable[[Header], None], type[FormatError], str]] = [
    (set_metadata("format", "gguf"), NotAnL2qFileError, "not a .l2q model"),
    (set_metadata("format_version", "2"), UnsupportedVersionError, "version 2; .* reads 1"),
    (set_metadata("rope", None), HeaderError, r"missing keys \['rope'\]"),
    (set_metadata("extra", "1"), HeaderError, r"unknown \['extra'\]"),
    (set_metadata("rope", "[]"), HeaderError, "rope is not a JSON object"),
    (set_metadata("rope", '{"scaling":"yarn"}'), HeaderError, "rope: .*missing keys"),
    (set_metadata("rope", '{"scaling":"other"}'), HeaderError, "rope: .*missing keys"),
    (set_metadata("rope", '{"factor":2.0,"scaling":"none"}'), HeaderError, "unknown .*factor"),
    (set_metadata("rope", linear(factor=2)), HeaderError, "factor of rope scaling is 2;"),
    (set_metadata("rope", linear(factor=1e9)), HeaderError, "factor of rope scaling is 1000000"),
    (set_metadata("rope", linear(scaling=["x"])), HeaderError, "the type of rope scaling"),
    (set_metadata("rope", linear(original_max_seq_len=0)), HeaderError, "original_max_seq_len"),
    (set_metadata("rope", '{"scaling": "none"}'), HeaderError, "rope is not canonical"),
    (set_metadata("template", "alpaca"), HeaderError, "template is 'alpaca'"),
    (set_metadata("config", "[]"), HeaderError, "config is not a JSON object"),
    (set_metadata("config", "{"), HeaderError, "config is not valid JSON"),
    (set_metadata("config", '{"dim":NaN}'), HeaderError, "NaN"),
    (set_metadata("config", '{"dim":1,"dim":1}'), HeaderError, "'dim' twice"),
    (set_metadata("config", "[" * 100_000), HeaderError, "config is not valid JSON"),
    (set_metadata("config", '{"dim":' + "9" * 5000 + "}"), HeaderError, "config is not valid"),
    (set_metadata("recipe", "{}"), HeaderError, "the recipe: missing keys"),
    (set_metadata("source", "{}"), HeaderError, "source is not a list"),
    (set_metadata("source", '[{"name":"a"}]'), HeaderError, "entry of source"),
    (set_metadata("licences", '{"a":1}'), HeaderError, "licences is not an object of strings"),
    (set_metadata("attribution", "Me"), HeaderError, "attribution is 'Me'"),
    (set_metadata("sha256", "{}"), HeaderError, "sha256 does not name exactly"),
    (set_entry(W2, "dtype", "I8"), TensorLayoutError, "expected .*w2.*codes U8"),
    (set_entry(W2, "dtype", "I64"), HeaderError, "dtype 'I64'"),
    (set_entry(W2, "dtype", None), HeaderError, "dtype None"),
    (set_entry(W2, "shape", []), HeaderError, "shape"),
    (set_entry(W2, "shape", [3, 24, -64]), HeaderError, "shape"),
    (set_entry(W2, "shape", [3, 24.0, 64]), HeaderError, "shape"),
    (set_entry(W2, "shape", [True, 24, 64]), HeaderError, "shape"),
    (set_entry(W2, "shape", [10**18, 10**18, 10**18]), TensorLayoutError, "needs 10{54} bytes"),
    (set_entry(W2, "shape", [2**63, 1]), HeaderError, "shape"),
    (set_entry(W2, "shape", [24, 3, 64]), TensorLayoutError, r"\[3, 24, 64\]"),
    (set_entry(W2, "shape", [3, 24, 63]), TensorLayoutError, "needs"),
    (set_entry(W2, "data_offsets", [0]), HeaderError, "data_offsets"),
    (set_entry(W2, "data_offsets", [-1, 4607]), HeaderError, "data_offsets"),
    (set_entry(W2, "data_offsets", [0, 4608]), TensorLayoutError, "overlaps"),
    (set_entry(W2, "extra", 1), HeaderError, "exactly the keys"),
    (lambda header: header.update(x=1), HeaderError, "exactly the keys"),
    (lambda header: header.pop("pad.0"), TensorLayoutError, "hole"),
    (lambda header: header.pop("tokenizer.model"), TensorLayoutError, "hole"),
    (lambda header: header.update(y=header.pop(W2)), TensorLayoutError, "found y"),
    (lambda header: header.update({"pad.99": header.pop("pad.0")}), TensorLayoutError, "pad.99"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "error", "match"), HEADER_FAULTS)
def test_header_faults(
    path: Path, edit: Callable[[Header], None], error: type[FormatError], match: str
) -> None:
    edit_header(path, edit)
    refuse(path, error, match)


def test_recipe_and_config_faults(path: Path, original: bytes) -> None:
    def with_tensor(name: str, **fields: Any) -> Callable[[Any], Any]:
        def edit(recipe: Any) -> Any:
            recipe["tensors"][name] = {**recipe["tensors"][name], **fields}
            return recipe

        return edit

    wk = "layers.0.attention.wk.weight"
    cases: list[tuple[str, Callable[[Any], Any], type[FormatError], str]] = [
        ("recipe", with_tensor(wk, type="int3"), HeaderError, f"{wk}: type is 'int3'"),
        ("recipe", with_tensor(wk, type=["int4"]), HeaderError, "type is"),
        ("recipe", with_tensor(wk, grid="x"), HeaderError, "grid is 'x'"),
        ("recipe", with_tensor(wk, group_size=48), HeaderError, "group_size is 48"),
        ("recipe", with_tensor(wk, group_size=32), HeaderError, "read one activation"),
        ("recipe", with_tensor(wk, group_size=64.0), HeaderError, "group_size is 64.0"),
        ("recipe", with_tensor(wk, grid="uniform"), ModelIdError, ""),
        ("recipe", with_tensor(wk, type="f32", group_size=None), HeaderError, "no grid"),
        (
            "recipe",
            with_tensor("tok_embeddings.weight", type="int4", grid="uniform"),
            HeaderError,
            "row-major",
        ),
        ("recipe", lambda r: {**r, "quant": "int5"}, HeaderError, "quant is 'int5'"),
        ("recipe", lambda r: {**r, "tensors": []}, HeaderError, "not an object"),
        (
            "recipe",
            lambda r: {**r, "tensors": {"x": r["tensors"][wk]}},
            HeaderError,
            "names 1 matrices; a model of 2 layers has 14",
        ),
        ("config", lambda c: {**c, "n_layers": 2**31 - 1}, HeaderError, "names 14 matrices"),
        ("config", lambda c: {**c, "dim": 10**18}, HeaderError, "dim is 10"),
        ("config", lambda c: {**c, "dim": "48"}, HeaderError, "dim is '48'"),
        ("config", lambda c: {**c, "norm_eps": 1}, HeaderError, "norm_eps is 1"),
        ("config", lambda c: {**c, "head_dim": 16}, HeaderError, "unknown"),
        ("config", lambda c: {**c, "vocab_size": 38}, TensorLayoutError, "tok_embeddings"),
        ("config", lambda c: {**c, "hidden_dim": 100}, TensorLayoutError, "w1_w3"),
    ]
    for key, edit, error, match in cases:
        path.write_bytes(original)
        edit_metadata(path, key, edit)
        if error is ModelIdError:  # legal: the layout does not depend on the grid
            L2qFile(path).close()
        else:
            refuse(path, error, match)


def test_model_id(path: Path) -> None:
    edit_header(path, set_metadata("template", "llama2-chat"), sign=False)
    refuse(path, ModelIdError, "changed or damaged")
    edit_header(path, set_metadata("model_id", "0" * 63 + "G"), sign=False)
    refuse(path, HeaderError, "64 hex digits")


def test_header_text(path: Path, original: bytes) -> None:
    header, data = split_file(original)
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))

    def attempt(changed: str, match: str, encoding: str = "ascii") -> None:
        raw = changed.encode(encoding)
        raw += b" " * (-(8 + len(raw)) % 4096)
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
        refuse(path, HeaderError, match)

    attempt(json.dumps(header), "not canonical")
    attempt(text.replace(":", ": ", 1), "not canonical")
    attempt(text[:-1] + ',"norm.weight":1}', "'norm.weight' twice")
    attempt(text.replace('"base"', '"b\u00e4se"'), "not ASCII", "utf-8")
    attempt(text.replace('"base"', "1"), "not an object of strings")
    attempt(text[:-1], "not valid JSON")
    attempt("{" + text, "not valid JSON")
    for name in ("data_offsets", "shape"):
        entry = json.dumps(header[W2][name], separators=(",", ":"))
        attempt(text.replace(f'"{name}":{entry}', f'"{name}":Infinity'), "Infinity")


def test_header_length(path: Path, original: bytes) -> None:
    header, data = split_file(original)
    raw = pad_text(json.dumps(header, sort_keys=True, separators=(",", ":")))
    path.write_bytes(struct.pack("<Q", len(raw) + 64) + raw + b" " * 64 + data)
    refuse(path, HeaderError, "expected a multiple of 4096")
    path.write_bytes(struct.pack("<Q", len(raw) + 4096) + raw + b" " * 4096 + data)
    refuse(path, HeaderError, "padded with")
    path.write_bytes(struct.pack("<Q", 16 * 1024 * 1024 + 1) + raw + data)
    refuse(path, HeaderError, "at most 16777216")


@settings(max_examples=150)
@given(st.data())
def test_any_changed_byte_of_the_header_is_refused(
    original: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    start = len(original) - len(split_file(original)[1])
    at = data.draw(st.integers(0, start - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != original[at]))
    path = tmp_path_factory.mktemp("fuzz") / "x.l2q"
    path.write_bytes(original[:at] + bytes([value]) + original[at + 1 :])
    with pytest.raises(FormatError):
        L2qFile(path)
