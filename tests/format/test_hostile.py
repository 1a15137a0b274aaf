"""Hostile `.l2q` files: every field changed, every cut, random bit flips; named errors only."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l2q_files import Header, join_file, pad_text, split_file, write_small
from llama2q.config import ModelConfig
from llama2q.errors import CorruptDataError, FormatError, NotAnL2qFileError, TruncatedFileError
from llama2q.format import L2qFile
from llama2q.format.header import canonical_json

TINY = ModelConfig(
    dim=12, hidden_dim=20, n_layers=1, n_heads=3, n_kv_heads=1, vocab_size=19, norm_eps=1e-5
)
"""Padded rows, padded columns and pads in few bytes."""
W2 = "layers.0.feed_forward.w2.weight.codes"
JSON_VALUES = ("config", "rope", "recipe", "licences", "source", "sha256")
DEEP = "[" * 100_000
slow = pytest.mark.slow
QUANTS = ["int4", pytest.param("int8", marks=slow), pytest.param("none", marks=slow)]


@pytest.fixture(scope="module", params=QUANTS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("file") / "tiny.l2q"
    write_small(path, request.param, config=TINY, group_size=32)
    return path.read_bytes()


@pytest.fixture(params=[9, pytest.param(1, marks=slow)])
def every(request: pytest.FixtureRequest) -> int:
    """1: all changes; n: every n-th of them, for the short run."""
    return int(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.l2q"


def outcome(path: Path, content: bytes, *, verify: bool = False) -> Exception | None:
    """Open, and perhaps verify; return a named error or None. Anything else is not caught."""
    path.write_bytes(content)
    try:
        with L2qFile(path) as file:
            if verify:
                file.verify()
    except FormatError as error:
        caught = error
    else:
        return None
    assert str(caught).startswith(path.name) or isinstance(caught, CorruptDataError)
    assert len(str(caught)) < 3000
    return caught


def refused(path: Path, content: bytes, what: object) -> Exception:
    error = outcome(path, content)
    assert error is not None, f"accepted: {what!r}"
    return error


# --- every value of the header ----------------------------------------------------------------

OTHERS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, 10**18, -(10**18), 0.5, -0.0, 1e300, "",
    "0", "x", "é\u0000\ud800", [], [0], [1, 2, 3], [10**18] * 4, {}, {"a": 1}, [[[[]]]],
)  # fmt: skip
"""What any value is replaced by."""


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key and element below a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*at, key)
        if isinstance(child, dict | list):
            yield from places(child, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], other: Any) -> Any:
    """Return a copy with one value replaced; `...` removes it."""
    result = copy.deepcopy(value)
    parent = result
    for key in at[:-1]:
        parent = parent[key]
    if other is ...:
        del parent[at[-1]]
    else:
        parent[at[-1]] = other
    return result


def same(first: Any, second: Any) -> bool:
    return canonical_json(first) == canonical_json(second)


def get(value: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        value = value[key]
    return value


def test_every_value_of_the_header(path: Path, original: bytes, every: int) -> None:
    """Absent, of a wrong type, another value: each with a model id that is right again."""
    header, data = split_file(original)
    count = 0
    for at in places(header):
        for other in (..., *OTHERS):
            if other is not ... and same(get(header, at), other):
                continue
            count += 1
            if count % every:
                continue
            changed = replaced(header, at, other)
            metadata = changed.get("__metadata__")
            sign = at != ("__metadata__", "model_id") and isinstance(metadata, dict)
            refused(path, join_file(changed, data, sign=sign), (at, other))
    assert count > 3000


FREE = {
    ("recipe", "calibration"), ("recipe", "method"), ("config", "norm_eps"),
    ("config", "max_seq_len"), ("config", "rope_theta"),
}  # fmt: skip
"""Values that may change without the tensors changing: the model id guards them."""


def test_every_value_inside_the_metadata(path: Path, original: bytes, every: int) -> None:
    """Config, recipe and the others, value by value. What is accepted must read back as written."""
    header, data = split_file(original)
    count = 0
    for name in JSON_VALUES:
        values = json.loads(header["__metadata__"][name])
        for at in places(values):
            for other in (..., *OTHERS):
                if other is not ... and same(get(values, at), other):
                    continue
                count += 1
                if count % every:
                    continue
                changed = copy.deepcopy(header)
                changed["__metadata__"][name] = canonical_json(replaced(values, at, other))
                content = join_file(changed, data)
                if outcome(path, content) is not None:
                    continue
                with L2qFile(path) as file:
                    read = file.metadata.to_strings()[name]
                assert read == changed["__metadata__"][name], (name, at, other)
                allowed = (name, at[0]) in FREE or (name, at[-1]) == ("recipe", "grid")
                assert allowed or name in ("licences", "source"), (name, at, other)
    assert count > 500


@pytest.mark.parametrize("name", JSON_VALUES)
@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{", "}", "null", "true", "0", '"x"', "[]", "{}", "NaN", "Infinity", "-Infinity",
        '{"a":NaN}', '{"a":1e999}', '{"a":1,"a":2}', '{"a":[{"b":1,"b":2}]}', DEEP,
        '{"a":' * 99_999,
        DEEP + "]" * 100_000, '{"a":' + "9" * 5000 + "}", '{"a":-0}', '{"a":1.0e5}', '{"a": 1}',
        '{"b":1,"a":1}', '{"a":"\u00e9"}', "\x00", '{"a":"\ud800"}', "[1,2,3", '{"a"}', "{'a':1}",
    ],
)  # fmt: skip
def test_texts_inside_the_metadata(path: Path, original: bytes, name: str, text: str) -> None:
    header, data = split_file(original)
    if header["__metadata__"][name] == text:
        return
    accepted = {("licences", "{}"), ("source", "[]")}
    header["__metadata__"][name] = text
    error = outcome(path, join_file(header, data))
    assert (error is None) == ((name, text) in accepted)


# --- the text of the header -------------------------------------------------------------------


def test_texts_of_the_header(path: Path, original: bytes) -> None:
    header, data = split_file(original)
    text = canonical_json(header)
    begin, end = header[W2 if W2 in header else "layers.0.feed_forward.w2.weight"]["data_offsets"]
    place = f"[{begin},{end}]"
    assert place in text
    variants: dict[str, str] = {
        "duplicate metadata": text[:-1] + ',"__metadata__":{}}',
        "duplicate tensor": text[:-1] + ',"pad.0":{}}',
        "duplicate dtype": text.replace('"dtype":"', '"dtype":"U8","dtype":"', 1),
        "deep": text[:-1] + ',"x":' + DEEP + "}",
        "deep and closed": text[:-1] + ',"x":' + DEEP + "]" * 100_000 + "}",
        "deep objects": text[:-1] + ',"x":' + '{"a":' * 100_000 + "}",
        "NaN": text.replace(place, f"[{begin},NaN]"),
        "Infinity": text.replace(place, "[Infinity,Infinity]"),
        "minus Infinity": text.replace(place, f"[-Infinity,{end}]"),
        "exponent": text.replace(place, f"[{begin}.0,{end}]"),
        "huge": text.replace(place, f"[{begin},{10**30}]"),
        "5000 digits": text.replace(place, f"[{begin},{'9' * 5000}]"),
        "hex": text.replace(place, f"[0x10,{end}]"),
        "leading zero": text.replace(place, f"[0{begin},{end}]"),
        "minus zero": text.replace(place, f"[-0,{end}]"),
        "swapped": text.replace(place, f"[{end},{begin}]"),
        "array": "[" + text + "]",
        "two": text + text,
        "blank first": " " + text,
        "tab": text + "\t",
        "newline": text + "\n",
        "zero byte": text + "\0",
        "zero byte inside": text.replace('"base"', '"base\0"'),
        "latin": text.replace('"base"', '"b\u00e4se"'),
        "byte order mark": "\ufeff" + text,
        "escape": text.replace('"base"', '"b\\u0061se"'),
        "surrogate": text.replace('"base"', '"\\ud800"'),
        "comment": text[:-1] + "/* */}",
        "trailing comma": text[:-1] + ",}",
        "cut": text[:-1],
        "empty": "",
        "empty object": "{}",
        "null": "null",
        "blanks only": " " * 100,
    }
    for name, changed in variants.items():
        raw = changed.encode("utf-8")
        raw += b" " * (-(8 + len(raw)) % 4096)
        refused(path, struct.pack("<Q", len(raw)) + raw + data, name)
        refused(path, struct.pack("<Q", len(changed)) + changed.encode("utf-8") + data, name)


def test_lies_about_the_headers_length(path: Path, original: bytes) -> None:
    (length,) = struct.unpack("<Q", original[:8])
    lies = [0, 1, 2, 7, length - 4096, length - 1, length + 1, length + 4096, len(original) - 8]
    lies += [len(original), len(original) + 1, 2**24, 2**24 + 1, 2**31, 2**32 + length, 2**63]
    lies += [2**64 - 1, 2**64 - 8, int.from_bytes(struct.pack(">Q", length), "little")]
    for lie in lies:
        if lie != length and 0 <= lie < 2**64:
            refused(path, struct.pack("<Q", lie) + original[8:], lie)


def test_padding_of_the_header(path: Path, original: bytes) -> None:
    header, data = split_file(original)
    raw = bytearray(pad_text(canonical_json(header)))
    used = len(canonical_json(header))
    for filler in (0, 9, 10, 13, ord("x"), 0xA0, 0xFF):
        for at in {used, (used + len(raw)) // 2, len(raw) - 1}:
            changed = raw.copy()
            changed[at] = filler
            refused(path, struct.pack("<Q", len(raw)) + bytes(changed) + data, (filler, at))


# --- places of tensors ------------------------------------------------------------------------


def test_places_of_every_tensor(path: Path, original: bytes, every: int) -> None:
    """Moved, grown, shrunk, swapped, doubled: the header is signed again each time."""
    header, data = split_file(original)
    names = [name for name in header if name != "__metadata__"]
    count = 0

    def attempt(edit: Callable[[Header], object]) -> None:
        nonlocal count
        count += 1
        if count % every:
            return
        changed = copy.deepcopy(header)
        edit(changed)
        refused(path, join_file(changed, data), edit)
        refused(path, join_file(changed, data + bytes(128)), edit)

    for index, name in enumerate(names):
        begin, end = header[name]["data_offsets"]
        for other in (
            [begin + 64, end + 64], [begin - 64, end - 64], [begin, end + 64], [begin, end - 1],
            [begin + 1, end], [begin + 1, end + 1], [end, begin], [0, 0], [begin, begin],
            [0, len(data)], [len(data), len(data) + end - begin], [begin, 2**63 - 1],
            [2**63 - 64, 2**63 - 1], [begin, 2**64 + end], [-64, end],
        ):  # fmt: skip
            if other != [begin, end]:
                attempt(lambda h, name=name, other=other: h[name].update(data_offsets=other))
        shape = header[name]["shape"]
        shapes = [[10**18] * n for n in (1, 2, 3, 4)] + [[0], [*shape, 1], [1, *shape], [1] * 5]
        shapes += [[2**62, 2, *shape], [2**32, 2**32], [*shape[:-1], shape[-1] * 2], shape[:-1]]
        shapes += [[2**63 - 1], [*shape[:-1], -shape[-1]], [*shape[:-1], float(shape[-1])]]
        for wrong in shapes:
            if wrong != shape or any(type(size) is not int for size in wrong):
                attempt(lambda h, name=name, wrong=wrong: h[name].update(shape=wrong))
        attempt(lambda h, name=name: h.pop(name))
        attempt(lambda h, name=name: h.update({f"{name}.x": h.pop(name)}))
        attempt(lambda h, name=name: h.update({f"{name}.x": copy.deepcopy(h[name])}))
        following = names[(index + 1) % len(names)]

        def swap(h: Header, name: str = name, following: str = following) -> None:
            h[name], h[following] = h[following], h[name]

        if not same(header[name], header[following]):
            attempt(swap)
    assert count > 500


# --- cuts -------------------------------------------------------------------------------------


def test_cut_at_every_boundary(path: Path, original: bytes) -> None:
    """Behind every part of the file, one byte before and after, and longer than it should be."""
    header, data = split_file(original)
    start = len(original) - len(data)
    ends = {0, 1, 7, 8, 9, 10, 32, start // 2, start - 4096, start}
    ends |= {8 + len(canonical_json(header))}
    for name, entry in header.items():
        if name != "__metadata__":
            ends |= {start + offset for offset in entry["data_offsets"]}
    sizes = {end + more for end in ends for more in (-1, 0, 1)} - {len(original)}
    for size in sorted(size for size in sizes if 0 <= size < len(original)):
        error = refused(path, original[:size], size)
        assert isinstance(error, NotAnL2qFileError if size <= 8 else TruncatedFileError), size
    for more in (1, 63, 64, 4096):
        assert isinstance(refused(path, original + bytes(more), more), TruncatedFileError)


# --- bit flips --------------------------------------------------------------------------------


def flips(path: Path, original: bytes, count: int, seed: int) -> None:
    """Flip one bit at a time: in the header an error when opened, in the data by verify."""
    header, data = split_file(original)
    start = len(original) - len(data)
    pads = {name: e["data_offsets"] for name, e in header.items() if name.startswith("pad.")}
    assert pads
    rng = random.Random(seed)
    in_header = in_data = in_pads = 0
    for number in range(count):
        # A third each: header, anywhere in the data, pads.
        if number % 3 == 0:
            at = rng.randrange(start)
        elif number % 3 == 1:
            at = start + rng.randrange(len(data))
        else:
            at = start + rng.randrange(*rng.choice(list(pads.values())))
        content = bytearray(original)
        content[at] ^= 1 << rng.randrange(8)
        if at < start:
            in_header += 1
            refused(path, bytes(content), at)
        else:
            in_data += 1
            in_pads += number % 3 == 2
            assert outcome(path, bytes(content)) is None, at
            error = outcome(path, bytes(content), verify=True)
            assert isinstance(error, CorruptDataError), at
    assert min(in_header, in_data, in_pads) >= count // 4


def test_bit_flips(path: Path, original: bytes) -> None:
    flips(path, original, 300, seed=1)


@pytest.mark.slow
def test_10000_bit_flips(path: Path, original: bytes) -> None:
    flips(path, original, 10_000, seed=2)


@pytest.mark.slow
def test_several_bits_at_once(path: Path, original: bytes) -> None:
    """Bursts, as a bad sector or cable gives them."""
    rng = np.random.default_rng(3)
    for _ in range(3000):
        content = bytearray(original)
        at = int(rng.integers(len(content)))
        size = int(rng.choice([2, 16, 512, 4096]))
        content[at : at + size] = rng.bytes(len(content[at : at + size]))
        if bytes(content) != original:
            assert outcome(path, bytes(content), verify=True) is not None, (at, size)
