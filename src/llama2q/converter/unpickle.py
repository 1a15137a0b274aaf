"""A machine for the pickles that `torch.save` writes for a dict of tensors, and for no others.

It knows the opcodes that torch emits with protocols 2 to 5, and a closed list of globals that it
turns into plain data. Nothing is imported and nothing is called, so a pickle can do no more than
describe tensors. Everything else is an `UnsafePickleError` that names it.
Source of the opcodes: CPython's Lib/pickle.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from llama2q.converter.torch_objects import (
    RefusedError,
    StorageRef,
    TensorRef,
    build,
    call,
    find_global,
    kind,
    load_storage,
)
from llama2q.errors import ShardFormatError, UnsafePickleError

MAX_PICKLE_BYTES = 1 << 22
MAX_TEXT_BYTES = 4096
MAX_STACK = 1 << 20
MAX_MARKS = 256


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a pickle holds."""

    tensors: dict[str, TensorRef]
    storages: dict[str, StorageRef]


def unpickle(data: bytes, where: str, *, exact: bool = True) -> Unpickled:
    """Interpret a pickle that holds a dict of tensors.

    Parameters
    ----------
    data : bytes
        The pickle.
    where : str
        File name for the messages.
    exact : bool
        Whether the pickle must end where `data` ends.

    Returns
    -------
    Unpickled
        Tensors by name, in the pickle's order, and the storages by key.

    Raises
    ------
    UnsafePickleError
        An opcode, global, call or persistent id is not one of those that torch.save writes for
        tensors.
    ShardFormatError
        The pickle is cut off, too large, or describes no dict of tensors.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise ShardFormatError(
            f"{where}: its pickle has {len(data)} bytes; expected at most {MAX_PICKLE_BYTES}"
        )
    machine = _Machine(data, where)
    root = machine.run()
    if exact and machine.at != len(data):
        raise ShardFormatError(f"{where}: {len(data) - machine.at} bytes follow its pickle")
    if not isinstance(root, dict):
        raise ShardFormatError(f"{where} holds {kind(root)}; expected a dict of tensors")
    tensors: dict[str, TensorRef] = {}
    for name, value in root.items():
        if not isinstance(value, TensorRef):
            raise ShardFormatError(
                f"{where} holds {kind(value)} under the name {name[:80]!r}; expected a tensor. "
                "Meta's form is one flat dict of tensors"
            )
        tensors[name] = value
    return Unpickled(tensors, machine.storages)


class _Machine:
    """Stack, memo and position of one run; `at` is the next byte."""

    def __init__(self, data: bytes, where: str) -> None:
        self.at = 0
        self.storages: dict[str, StorageRef] = {}
        self._data = data
        self._where = where
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        """Interpret opcodes up to STOP and return the only object left."""
        if self._take(1) != b"\x80" or self._take(1)[0] not in (2, 3, 4, 5):
            raise self._unsafe("another protocol than 2 to 5", 0)
        while True:
            start = self.at
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                break
            operation = _OPERATIONS.get(code)
            if operation is None:
                name = _REFUSED.get(code, "unknown opcode")
                raise self._unsafe(f"{name} ({code:#04x})", start)
            try:
                operation(self, start)
                if len(self._stack) > MAX_STACK or len(self._marks) > MAX_MARKS:
                    raise RefusedError("an unreasonably deep stack")
            except RefusedError as error:
                raise self._unsafe(str(error), start) from None
        if len(self._stack) != 1 or self._marks:
            raise self._malformed("it ends with a stack that does not hold one object")
        return self._stack[0]

    # --- bytes and faults ---

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._data):
            raise self._malformed("it is cut off")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def _integer(self, form: str) -> int:
        value: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return value

    def _unsafe(self, what: str, at: int) -> UnsafePickleError:
        return UnsafePickleError(
            f"{self._where}: its pickle asks for {what} at byte {at}; a checkpoint needs plain "
            "tensors only. Do not load this file with anything unless you trust its source"
        )

    def _malformed(self, what: str) -> ShardFormatError:
        return ShardFormatError(f"{self._where}: its pickle is malformed: {what}")

    # --- stack ---

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        bottom = self._marks[-1] if self._marks else 0
        if len(self._stack) <= bottom:
            raise self._malformed("it pops from an empty stack")
        return self._stack.pop()

    def _pop_many(self, count: int) -> tuple[object, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    def _pop_mark(self) -> tuple[object, ...]:
        if not self._marks:
            raise self._malformed("it lacks a mark")
        bottom = self._marks.pop()
        items = tuple(self._stack[bottom:])
        del self._stack[bottom:]
        return items

    def mark(self, start: int) -> None:
        self._marks.append(len(self._stack))

    # --- plain data ---

    def frame(self, start: int) -> None:
        if self._integer("<Q") > len(self._data) - self.at:
            raise self._malformed("a frame is cut off")

    def constant(self, value: object) -> None:
        self._push(value)

    def integer(self, form: str) -> None:
        self._push(self._integer(form))

    def long1(self, start: int) -> None:
        count = self._take(1)[0]
        if count > 8:
            raise RefusedError(f"an integer of {count} bytes")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def text(self, form: str, start: int) -> None:
        count = self._integer(form)
        if count > MAX_TEXT_BYTES:
            raise RefusedError(f"a text of {count} bytes")
        try:
            self._push(self._take(count).decode())
        except UnicodeDecodeError:
            raise self._malformed(f"the text at byte {start} is not UTF-8") from None

    def new_dict(self, start: int) -> None:
        self._push({})

    def tuple_of(self, count: int) -> None:
        self._push(self._pop_many(count))

    def tuple_from_mark(self, start: int) -> None:
        self._push(self._pop_mark())

    def _set_items(self, items: tuple[object, ...], start: int) -> None:
        target = self._pop()
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedError(f"SETITEMS on {kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise RefusedError(f"{kind(key)} as the key of a dict")
            if key in target:
                raise RefusedError(f"the name {key[:80]!r} twice in a dict")
            target[key] = value
        self._push(target)

    def set_item(self, start: int) -> None:
        self._set_items(self._pop_many(2), start)

    def set_items(self, start: int) -> None:
        self._set_items(self._pop_mark(), start)

    # --- memo ---

    def put(self, form: str, start: int) -> None:
        self._memoize(self._integer(form), start)

    def memoize(self, start: int) -> None:
        self._memoize(len(self._memo), start)

    def _memoize(self, index: int, start: int) -> None:
        value = self._pop()
        if len(self._memo) >= MAX_STACK:
            raise RefusedError("an unreasonably large memo")
        self._memo[index] = value
        self._push(value)

    def get(self, form: str, start: int) -> None:
        index = self._integer(form)
        if index not in self._memo:
            raise self._malformed(f"memo {index} is read before it is written")
        self._push(self._memo[index])

    # --- globals, calls, persistent ids ---

    def global_(self, start: int) -> None:
        lines: list[str] = []
        for _ in range(2):
            end = self._data.find(b"\n", self.at, self.at + 256)
            if end < 0:
                raise self._malformed(f"the global at byte {start} is cut off or too long")
            lines.append(self._take(end - self.at).decode("utf-8", "backslashreplace"))
            self.at += 1
        self._push(find_global(*lines))

    def stack_global(self, start: int) -> None:
        self._push(find_global(*self._pop_many(2)))

    def persistent_id(self, start: int) -> None:
        storage = load_storage(self._pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise RefusedError(f"storage {storage.key} in two types or sizes")
        self._push(storage)

    def reduce(self, start: int) -> None:
        self._push(call(*self._pop_many(2)))

    def build(self, start: int) -> None:
        self._push(build(*self._pop_many(2)))


_OPERATIONS: dict[int, Callable[[_Machine, int], None]] = {
    0x28: _Machine.mark,
    0x29: lambda machine, _: machine.constant(()),
    0x4A: lambda machine, _: machine.integer("<i"),  # BININT
    0x4B: lambda machine, _: machine.integer("<B"),  # BININT1
    0x4D: lambda machine, _: machine.integer("<H"),  # BININT2
    0x4E: lambda machine, _: machine.constant(None),
    0x51: _Machine.persistent_id,  # BINPERSID
    0x52: _Machine.reduce,
    0x58: lambda machine, start: machine.text("<I", start),  # BINUNICODE
    0x62: _Machine.build,
    0x63: _Machine.global_,
    0x68: lambda machine, start: machine.get("<B", start),  # BINGET
    0x6A: lambda machine, start: machine.get("<I", start),  # LONG_BINGET
    0x71: lambda machine, start: machine.put("<B", start),  # BINPUT
    0x72: lambda machine, start: machine.put("<I", start),  # LONG_BINPUT
    0x73: _Machine.set_item,
    0x74: _Machine.tuple_from_mark,
    0x75: _Machine.set_items,
    0x7D: _Machine.new_dict,
    0x85: lambda machine, _: machine.tuple_of(1),
    0x86: lambda machine, _: machine.tuple_of(2),
    0x87: lambda machine, _: machine.tuple_of(3),
    0x88: lambda machine, _: machine.constant(True),
    0x89: lambda machine, _: machine.constant(False),
    0x8A: _Machine.long1,
    0x8C: lambda machine, start: machine.text("<B", start),  # SHORT_BINUNICODE
    0x93: _Machine.stack_global,
    0x94: _Machine.memoize,
    0x95: _Machine.frame,
}

_REFUSED = {
    **{0x30: "POP", 0x31: "POP_MARK", 0x32: "DUP", 0x80: "a second PROTO"},
    **{0x46: "FLOAT", 0x47: "BINFLOAT", 0x49: "INT", 0x4C: "LONG", 0x8B: "LONG4"},
    **{0x53: "STRING", 0x54: "BINSTRING", 0x55: "SHORT_BINSTRING", 0x56: "UNICODE"},
    **{0x42: "BINBYTES", 0x43: "SHORT_BINBYTES", 0x8D: "BINUNICODE8", 0x8E: "BINBYTES8"},
    **{0x5D: "EMPTY_LIST", 0x6C: "LIST", 0x61: "APPEND", 0x65: "APPENDS", 0x64: "DICT"},
    **{0x8F: "EMPTY_SET", 0x90: "ADDITEMS", 0x91: "FROZENSET", 0x67: "GET", 0x70: "PUT"},
    **{0x50: "PERSID", 0x69: "INST", 0x6F: "OBJ", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX"},
    **{0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4"},
    **{0x96: "BYTEARRAY8", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER"},
}
"""Names of the opcodes that no tensor needs."""
