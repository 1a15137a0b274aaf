"""Cases whose pickle wants to run something, grow without end, or is no tensor's pickle."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import pickletools
import struct
import tarfile
from collections.abc import Callable
from typing import Any

from converter.pth_files import dict_pickle, integer, storage, tensor, text, tuple_of
from hostile.bench import ROOT, Bench, Table
from llama2q.errors import ShardFormatError, UnsafePickleError

CASES = Table()
TOUCH = "open(__import__('os').environ.get('LLAMA2Q_CANARY', 'canary.txt'), 'w')"
SHELL = 'touch "${LLAMA2Q_CANARY:-canary.txt}"'


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


LIVE: dict[str, Call] = {
    "os-system": Call(os.system, SHELL),
    "builtins-eval": Call(builtins.eval, TOUCH),
    "builtins-exec": Call(builtins.exec, TOUCH),
}
"""Payloads as Python's own pickler writes them; a test shows that they do run."""


def before_tensors(payload: bytes) -> Callable[[Bench], Any]:
    """Run a payload, drop its result, go on with the sound pickle: torch would load the file."""

    def make(bench: Bench) -> Any:
        sound = bench.pickle()
        return bench.with_pickle(sound[:2] + payload + b"0" + sound[2:])

    return make


def whole(data: bytes) -> Callable[[Bench], Any]:
    return lambda bench: bench.with_pickle(data)


def add(name: str, sentence: str, payload: bytes) -> None:
    CASES.add(name, UnsafePickleError, sentence, before_tensors(payload))


# --- calls, as a pickler writes them in each protocol -----------------------------------------

for _name, _call in LIVE.items():
    for _protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        _data = pickle.dumps(_call, _protocol)
        _old = _protocol < 2
        CASES.add(
            f"call-{_name}-protocol-{_protocol}",
            UnsafePickleError,
            "another protocol than 2 to 5" if _old else "the global '",
            whole(_data),
        )
        _body = _data[:-1] if _old else _data[2:-1]
        if _protocol >= 4:
            _body = _body[9:]  # without its frame, whose length would be wrong here
        add(f"call-{_name}-then-tensors-protocol-{_protocol}", "its pickle asks for", _body)

# --- globals ----------------------------------------------------------------------------------

GLOBALS = """
os.system posix.system nt.system os.popen subprocess.Popen subprocess.check_output pty.spawn
builtins.eval builtins.exec builtins.compile builtins.getattr builtins.__import__ builtins.open
__builtin__.eval importlib.import_module runpy._run_code operator.attrgetter operator.methodcaller
functools.partial types.CodeType marshal.loads pickle.loads _pickle.loads codecs.encode
webbrowser.open socket.create_connection ctypes.CDLL shutil.rmtree timeit.timeit bdb.Bdb
torch.load torch.save torch.storage._load_from_bytes torch.serialization.load torch.jit.load
torch.hub.load torch.package.PackageImporter torch._utils._rebuild_tensor
torch._utils._rebuild_sparse_tensor torch._tensor._rebuild_from_type_v2 torch.Tensor
torch.DoubleStorage torch.storage.UntypedStorage torch.distributed.rpc.internal._run_function
torch.utils.data.datapipes.utils.common._check numpy.core.multiarray._reconstruct
numpy.testing._private.utils.runstring transformers.pipeline hostile.canary.sing
collections.OrderedDict.fromkeys collections.defaultdict
""".split()
for _path in GLOBALS:
    _module, _, _attribute = _path.rpartition(".")
    _call_bytes = tuple_of(text("x")) + b"R"
    add(
        f"global-{_path.replace('.', '-')}",
        f"asks for the global '{_path}'",
        f"c{_module}\n{_attribute}\n".encode() + _call_bytes,
    )
    add(
        f"stack-global-{_path.replace('.', '-')}",
        f"asks for the global '{_path}'",
        text(_module) + text(_attribute) + b"\x93" + _call_bytes,
    )
for _module, _attribute in (
    ("torch", "os.system"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("collections", "OrderedDict.__init__.__globals__"),
    ("torch", "FloatStorage\x00"),
    ("Torch", "FloatStorage"),
    (".torch", "FloatStorage"),
    ("", ""),
):
    _slug = "".join(c if c.isalnum() else "-" for c in f"{_module}-{_attribute}")
    add(
        f"dotted-{_slug}",
        "asks for the global '",
        text(_module) + text(_attribute) + b"\x93" + tuple_of(text("x")) + b"R",
    )

# --- every opcode that no tensor needs --------------------------------------------------------

ALLOWED = """
BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_TUPLE FRAME GLOBAL
LONG1 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS
SHORT_BINUNICODE STACK_GLOBAL STOP TUPLE TUPLE1 TUPLE2 TUPLE3
""".split()
"""What torch.save itself writes."""
_NEEDS: dict[str, bytes] = {
    "POP_MARK": b"(", "DUP": b"N", "LIST": b"(", "DICT": b"(", "APPEND": b"]N", "APPENDS": b"](N",
    "INST": b"(", "OBJ": b"(cos\nsystem\n", "ADDITEMS": b"\x8f(N", "FROZENSET": b"(",
    "NEWOBJ": b"ccollections\nOrderedDict\n)", "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}",
    "READONLY_BUFFER": b"N", "POP": b"N",
}  # fmt: skip
_ARGUMENTS: dict[str, bytes] = {
    "INT": b"1\n", "LONG": b"1L\n", "LONG4": b"\x01\0\0\0\x01", "STRING": b"'a'\n",
    "BINSTRING": b"\x01\0\0\0a", "SHORT_BINSTRING": b"\x01a", "BINBYTES": b"\x01\0\0\0a",
    "SHORT_BINBYTES": b"\x01a", "BINBYTES8": b"\x01\0\0\0\0\0\0\0a", "UNICODE": b"a\n",
    "BYTEARRAY8": b"\x01\0\0\0\0\0\0\0a", "BINUNICODE8": b"\x01\0\0\0\0\0\0\0a", "FLOAT": b"1.0\n",
    "BINFLOAT": bytes(8), "GET": b"0\n", "PUT": b"0\n", "EXT1": b"\x01", "EXT2": b"\x01\0",
    "EXT4": b"\x01\0\0\0", "INST": b"os\nsystem\n", "PERSID": b"storage\n",
}  # fmt: skip
for _opcode in pickletools.opcodes:
    if _opcode.name in ALLOWED:
        continue
    _code = _opcode.code.encode("latin-1")
    # A refused opcode before this one would be refused in its place.
    _before = {"APPEND": b"}N", "APPENDS": b"}(N", "ADDITEMS": b"}(N", "OBJ": b"(}"}.get(
        _opcode.name, _NEEDS.get(_opcode.name, b"")
    )
    add(
        f"opcode-{_opcode.name.lower().replace('_', '-')}",
        f"asks for {_opcode.name} ({_code[0]:#04x})",
        _before + _code + _ARGUMENTS.get(_opcode.name, b""),
    )
for _byte in (0x00, 0x01, 0x7F, 0x99, 0xFF):
    add(f"opcode-unknown-{_byte:02x}", f"unknown opcode ({_byte:#04x})", bytes([_byte]))
add("opcode-second-proto", "a second PROTO", b"\x80\x02")
for _protocol in (0, 1, 6, 255):
    CASES.add(
        f"protocol-{_protocol}",
        UnsafePickleError,
        "another protocol than 2 to 5",
        whole(bytes([0x80, _protocol]) + b"}."),
    )

# --- what the allowed opcodes may not do ------------------------------------------------------

add("reduce-storage-type", "torch.FloatStorage with arguments", b"ctorch\nFloatStorage\n)R")
add("reduce-text", "a call of a Python str", text("x") + b")R")
add("reduce-tensor", "a call of a tensor", tensor() + b")R")
add("build-tensor", "BUILD of a tensor", tensor() + b"}b")
add("build-storage-type", "BUILD of torch.FloatStorage", b"ctorch\nFloatStorage\n}b")
add("build-dict", "BUILD of a Python dict", b"}}" + text("__class__") + b"Nsb")
add("persid-text", "a persistent id of another form", text("storage") + b"Q")
add(
    "persid-module",
    "a persistent id of another form",
    tuple_of(text("module"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), integer(6)) + b"Q",
)
add("persid-path", "a storage with the key '../../etc/passwd'", storage(key="../../etc/passwd"))
add("persid-type", "a storage of the type torch._utils._rebuild_tensor_v2", tuple_of(
    text("storage"), b"ctorch._utils\n_rebuild_tensor_v2\n", text("0"), text("cpu"), integer(6)
) + b"Q")  # fmt: skip
add("hooks", "_rebuild_tensor_v2 with arguments", tensor(hooks=b"}" + text("x") + b"Ns"))
add("tuple-as-key", "a Python tuple as the key", b"})Ns")

# --- bombs ------------------------------------------------------------------------------------

add("bomb-long4", "LONG4", b"\x8b\xff\xff\xff\x7f")
add("bomb-long1", "an integer of 255 bytes", b"\x8a\xff" + bytes(255))
add("bomb-text", "a text of 4294967295 bytes", b"X\xff\xff\xff\xff")
add("bomb-text-in-place", "a text of 1000000 bytes", text("x" * 10**6))
add("bomb-binunicode8", "BINUNICODE8", b"\x8d" + struct.pack("<Q", 2**62))
add("bomb-bytearray8", "BYTEARRAY8", b"\x96" + struct.pack("<Q", 2**62))
add("bomb-marks", "an unreasonably deep stack", b"(" * 10**6)
add("bomb-stack", "an unreasonably deep stack", b"N" * (2**20 + 100))
add("bomb-nested-dicts", "an unreasonably deep stack", (b"}" + text("a")) * 590_000)
add("bomb-dup", "DUP", b"N2" * 100)
CASES.add(
    "bomb-memo", ShardFormatError, "its pickle is malformed: memo 4294967295 is read",
    before_tensors(b"j\xff\xff\xff\xff"),
)  # fmt: skip
CASES.add(
    "bomb-laughs", ShardFormatError, "a Python tuple under the name 'x'",
    whole(dict_pickle(x=b"Nq\0" + b"".join(
        b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(200)
    ))),
)  # fmt: skip
CASES.add(
    "bomb-nested-tuples", ShardFormatError, "a Python tuple under the name 'x'",
    whole(dict_pickle(x=b")" + b"\x85" * 3_000_000)),
)  # fmt: skip
CASES.add(
    "bomb-pickle-size", ShardFormatError, "data.pkl has 6000000 bytes; expected at most",
    whole(b"\x80\x02" + b"N" * 5_999_998),
)  # fmt: skip
CASES.add(
    "bomb-frame", ShardFormatError, "a frame is cut off",
    before_tensors(b"\x95" + struct.pack("<Q", 2**63)),
)  # fmt: skip

# --- malformed --------------------------------------------------------------------------------

for _name, _data, _sentence in (
    ("empty", b"", "it is cut off"),
    ("no-stop", b"\x80\x02}", "it is cut off"),
    ("only-stop", b"\x80\x02.", "does not hold one object"),
    ("underflow", b"\x80\x02\x87.", "it pops from an empty stack"),
    ("no-mark", b"\x80\x02t.", "it lacks a mark"),
    ("trailing", b"\x80\x02}.}", "1 bytes follow its pickle"),
    ("list-of-nothing", b"\x80\x02).", "holds a Python tuple; expected a dict"),
    ("number-in-dict", dict_pickle(x=b"K\x01"), "a Python int under the name 'x'"),
    ("nested-state-dict", dict_pickle(model=b"}"), "a Python dict under the name 'model'"),
    ("not-utf8", b"\x80\x02X\x02\0\0\0\xff\xfe.", "is not UTF-8"),
    ("long-global", b"\x80\x02c" + b"a" * 10_000 + b"\nb\n.", "cut off or too long"),
):
    CASES.add(f"malformed-{_name}", ShardFormatError, _sentence, whole(_data))

# --- forms older than zip ---------------------------------------------------------------------


def legacy(bench: Bench, payload: bytes) -> Any:
    """torch.save before 1.6: pickles one after the other."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    head = magic + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return bench.with_shard(head + payload)


def tar(bench: Bench, payload: bytes) -> Any:
    """torch.save before 0.1.10: a tar archive with the pickles `storages`, `tensors`, `pickle`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            file.addfile(info, io.BytesIO(payload))
    return bench.with_shard(buffer.getvalue())


_LIVE_PICKLE = pickle.dumps(LIVE["os-system"], 2)
for _name, _form in (("legacy", legacy), ("tar", tar)):
    CASES.add(
        f"{_name}-form", ShardFormatError, "is in the legacy form of torch.save",
        lambda bench, form=_form: form(bench, b"\x80\x02}."),
    )  # fmt: skip
    CASES.add(
        f"{_name}-form-with-call", ShardFormatError, "is in the legacy form of torch.save",
        lambda bench, form=_form: form(bench, _LIVE_PICKLE),
    )  # fmt: skip
CASES.add(
    "bare-pickle", ShardFormatError, "expected a zip archive as torch.save writes it",
    lambda bench: bench.with_shard(_LIVE_PICKLE),
)  # fmt: skip
CASES.add(
    "constants-pickle", ShardFormatError, "is a TorchScript program",
    lambda bench: bench.with_entries({**bench.entries(), f"{ROOT}/constants.pkl": _LIVE_PICKLE}),
)  # fmt: skip
