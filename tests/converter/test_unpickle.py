"""The pickle machine: what it refuses, by name."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.pth_files import (
    REBUILD,
    archive,
    dict_pickle,
    integer,
    refused,
    storage,
    tensor,
    text,
    tuple_of,
)
from llama2q.converter.unpickle import unpickle
from llama2q.errors import (
    CheckpointError,
    ShardFormatError,
    UnsafePickleError,
)

GOOD = dict_pickle(a=tensor())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consolidated.00.pth"


CALL = b"R"
HOSTILE = {
    "os.system": (b"\x80\x02cos\nsystem\n" + tuple_of(text("true")) + b"R.", r"'os\.system'"),
    "builtins.eval": (b"\x80\x02cbuiltins\neval\n.", r"'builtins\.eval'"),
    "torch.load": (b"\x80\x02ctorch\nload\n.", r"'torch\.load'"),
    "torch.DoubleStorage": (
        dict_pickle(a=tensor(storage(kind="DoubleStorage"))),
        r"'torch\.DoubleStorage'",
    ),
    "dotted name": (b"\x80\x04\x8c\x05torch\x8c\x10FloatStorage.mro\x93.", "FloatStorage.mro"),
    "os.system by STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"'os\.system'"),
    "STACK_GLOBAL of no text": (b"\x80\x04K\x01K\x02\x93.", "a Python int"),
    "escape codes in a name": (b"\x80\x02c\x1b[2J\nx\n.", r"\\x1b\[2J"),
    "REDUCE of a text": (b"\x80\x02" + text("f") + b")R.", "a call of a Python str"),
    "REDUCE of a storage type": (b"\x80\x02ctorch\nFloatStorage\n)R.", "FloatStorage with"),
    "REDUCE of a tensor": (b"\x80\x02" + tensor() + b")R.", "a call of a tensor"),
    "OrderedDict with items": (
        b"\x80\x02ccollections\nOrderedDict\n" + tuple_of(b"}") + b"R.",
        "OrderedDict with",
    ),
    "hooks": (
        dict_pickle(a=tensor(hooks=b"}" + text("x") + b"Ns")),
        "_rebuild_tensor_v2 with",
    ),
    "BUILD of a tensor": (b"\x80\x02" + tensor() + b"}b.", "BUILD of a tensor"),
    "BUILD of a dict": (
        b"\x80\x02}}" + text("__class__") + b"Nsb.",
        "BUILD of a Python dict from a Python dict",
    ),
    "BUILD with more than metadata": (
        b"\x80\x02}}(" + text("_metadata") + b"}" + text("x") + b"Nub.",
        "BUILD of",
    ),
    "INST": (b"\x80\x02(ios\nsystem\n.", r"INST \(0x69\)"),
    "OBJ": (b"\x80\x02(o.", r"OBJ \(0x6f\)"),
    "NEWOBJ": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "PERSID": (b"\x80\x02Pstorage\n.", "PERSID"),
    "EMPTY_LIST": (b"\x80\x02].", "EMPTY_LIST"),
    "INT": (b"\x80\x02I1\n.", r"INT \(0x49\)"),
    "second PROTO": (b"\x80\x02\x80\x02}.", "second PROTO"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "unknown opcode": (b"\x80\x02\xff.", r"unknown opcode \(0xff\)"),
    "protocol 0": (b"(d.", "protocol"),
    "protocol 6": (b"\x80\x06}.", "protocol"),
    "huge integer": (b"\x80\x02\x8a\x09" + bytes(9) + b".", "9 bytes"),
    "huge text": (b"\x80\x02X" + struct.pack("<I", 5000) + bytes(5000) + b".", "5000 bytes"),
    "a text as persistent id": (b"\x80\x02" + text("storage") + b"Q.", "persistent id"),
    "a short persistent id": (b"\x80\x02" + tuple_of(text("storage")) + b"Q.", "persistent id"),
    "another persistent id": (
        dict_pickle(a=tensor(storage().replace(b"storage", b"module_"))),
        "persistent id",
    ),
    "persistent id with a function": (
        b"\x80\x02"
        + tuple_of(text("storage"), REBUILD, text("0"), text("cpu"), integer(6))
        + b"Q.",
        "a storage of the type",
    ),
    "persistent id with a number as key": (
        b"\x80\x02"
        + tuple_of(text("storage"), b"ctorch\nFloatStorage\n", integer(0), text("cpu"), integer(6))
        + b"Q.",
        "persistent id",
    ),
    "key with a path": (dict_pickle(a=tensor(storage(key="../0"))), r"key '\.\./0'"),
    "negative numel": (dict_pickle(a=tensor(storage(-1))), "-1 elements"),
    "boolean numel": (
        b"\x80\x02"
        + tuple_of(text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), b"\x88")
        + b"Q.",
        "True elements",
    ),
    "one key in two types": (
        dict_pickle(a=tensor(), b=tensor(storage(12, kind="HalfStorage"))),
        "two types",
    ),
    "negative offset": (dict_pickle(a=tensor(offset=-1)), "is -1"),
    "negative size": (dict_pickle(a=tensor(shape=(-2, -3))), "is -2"),
    "negative stride": (dict_pickle(a=tensor(strides=(-3, 1))), "is -3"),
    "fewer strides": (dict_pickle(a=tensor(strides=(1,))), "2 dimensions and 1 strides"),
    "many dimensions": (dict_pickle(a=tensor(shape=(1,) * 9, strides=(1,) * 9)), "9 dimensions"),
    "huge size": (dict_pickle(a=tensor(shape=(2**62, 2**62))), "a tensor whose"),
    "a name twice": (
        b"\x80\x02}(" + text("a") + tensor() + text("a") + tensor() + b"u.",
        "'a' twice",
    ),
    "a number as name": (b"\x80\x02}K\x01Ns.", "a Python int as the key"),
    "SETITEMS on a tuple": (b"\x80\x02)(" + text("a") + b"Nu.", "SETITEMS"),
    "SETITEMS of an odd number": (b"\x80\x02}(" + text("a") + b"u.", "SETITEMS"),
    "deep marks": (b"\x80\x02" + b"(" * 1000 + b".", "deep stack"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_unsafe_pickles(path: Path, case: str) -> None:
    pickled, match = HOSTILE[case]
    archive(path, pickled)
    refused(path, UnsafePickleError, match)


MALFORMED = {
    "empty": (b"", "cut off"),
    "no STOP": (GOOD[:-1], "cut off"),
    "bytes after STOP": (GOOD + b"N", "1 bytes follow"),
    "empty stack": (b"\x80\x02.", "one object"),
    "two objects": (b"\x80\x02NN.", "one object"),
    "pop across a mark": (b"\x80\x02)(\x85.", "empty stack"),
    "no mark": (b"\x80\x02t.", "lacks a mark"),
    "memo": (b"\x80\x02h\x05.", "memo 5"),
    "frame": (b"\x80\x04\x95" + struct.pack("<Q", 99) + b"}.", "frame"),
    "global without end": (b"\x80\x02ctorch", "cut off or too long"),
    "text that is not UTF-8": (b"\x80\x02X\x01\x00\x00\x00\xff.", "UTF-8"),
    "a tensor": (b"\x80\x02" + tensor() + b".", "a tensor; expected a dict"),
    "a nested dict": (dict_pickle(model=b"}"), "a Python dict under the name 'model'"),
    "a number": (dict_pickle(epoch=b"K\x07"), "a Python int under the name 'epoch'"),
    "past the storage": (dict_pickle(a=tensor(offset=1)), "runs past its storage of 6"),
    "larger than the storage": (
        dict_pickle(a=tensor(shape=(3, 3))),
        "runs past its storage of 6",
    ),
    "empty tensor": (dict_pickle(a=tensor(shape=(0, 3))), "empty"),
    "transposed": (dict_pickle(a=tensor(strides=(1, 2))), r"\.contiguous"),
    "expanded": (dict_pickle(a=tensor(strides=(0, 1))), r"\.contiguous"),
    "storage of another size": (dict_pickle(a=tensor(storage(5))), "that is 20"),
    "storage that is absent": (dict_pickle(a=tensor(storage(key="7"))), "lacks the storage"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_pickles(path: Path, case: str) -> None:
    pickled, match = MALFORMED[case]
    archive(path, pickled)
    refused(path, ShardFormatError, match)


def test_shared_tuples_cost_nothing() -> None:
    """Tuples that double at each step would print, hash or compare in exponential time."""
    doubling = b"".join(b"q\x01h\x01\x86" for _ in range(200))
    for tail in (b"Q.", b")R.", text("k") + b"\x86.", b"Ns."):
        with pytest.raises(CheckpointError):
            unpickle(b"\x80\x02)" + doubling + tail, "x.pth")


@given(st.binary(max_size=60), st.integers(2, 5))
def test_random_pickles_end_in_a_named_error(body: bytes, protocol: int) -> None:
    with pytest.raises(CheckpointError):
        unpickle(b"\x80" + bytes([protocol]) + body + b"\xff", "x.pth")
