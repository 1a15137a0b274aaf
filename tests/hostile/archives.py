"""Cases whose zip archive lies: names, places, sizes, compression, bombs."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from hostile.bench import ROOT, SHARD, Bench, Table
from llama2q.errors import CorruptShardError, Llama2qError, ShardFormatError, TruncatedShardError

CASES = Table()
NOT_TORCH = "is not an archive as torch.save writes it: "


def sound_bytes(bench: Bench) -> bytes:
    return (bench.sound / SHARD).read_bytes()


def edited(edit: Callable[[bytearray], None]) -> Callable[[Bench], Path]:
    """Change bytes of the sound shard, as zipfile writes it (no data descriptors)."""

    def make(bench: Bench) -> Path:
        folder = bench.with_entries(bench.entries())
        data = bytearray((folder / SHARD).read_bytes())
        edit(data)
        (folder / SHARD).write_bytes(data)
        return folder

    return make


def add(name: str, sentence: str, make: Callable[[Bench], Path]) -> None:
    CASES.add(name, ShardFormatError, sentence, make)


def field(data: bytearray, record: bytes, offset: int, form: str, value: int, nth: int = 0) -> None:
    """Set a field of the nth record that starts with this signature, from the end record back."""
    at = data.rindex(b"PK\x05\x06")
    directory = struct.unpack_from("<L", data, at + 16)[0]
    start = at if record == b"PK\x05\x06" else directory if record == b"PK\x01\x02" else 0
    for _ in range(nth + 1):
        start = data.index(record, start) + 1
    struct.pack_into(form, data, start - 1 + offset, value)


def set_field(
    record: bytes, offset: int, form: str, value: int, nth: int = 0
) -> Callable[[Bench], Path]:
    return edited(lambda data: field(data, record, offset, form, value, nth))


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"

# --- names ------------------------------------------------------------------------------------

for _name, _entry in (
    ("parent", f"{ROOT}/../evil"),
    ("only-parent", "../evil"),
    ("absolute", "/etc/passwd"),
    ("drive", "C:\\evil/x"),
    ("backslash", f"{ROOT}\\..\\evil/x"),
    ("dot", f"{ROOT}/./data.pkl"),
    ("double-slash", f"{ROOT}//data.pkl"),
    ("folder-entry", f"{ROOT}/data/"),
    ("no-root", "data.pkl"),
    ("control-characters", f"{ROOT}/\x1b[2J\n"),
    ("long", f"{ROOT}/" + "x" * 60_000),
):
    add(
        f"zip-name-{_name}",
        "is not a plain path below a root folder",
        lambda bench, entry=_entry: bench.with_entries({**bench.entries(), entry: b"x"}),
    )
add(
    "zip-two-roots",
    "is a zip archive with the roots",
    lambda bench: bench.with_entries({**bench.entries(), "other/data.pkl": b"x"}),
)
add(
    "zip-no-pickle",
    f"is a zip archive without {ROOT}/data.pkl",
    lambda bench: bench.with_entries({f"{ROOT}/version": b"3"}),
)
add("zip-office-document", "is a zip archive without word/data.pkl",
    lambda bench: bench.with_entries({"word/document.xml": b"<x/>"}))  # fmt: skip
add("zip-empty", "expected a zip archive", lambda bench: bench.with_entries({}))


def duplicate(bench: Bench, name: str, data: bytes) -> Path:
    folder = bench.with_entries(bench.entries())
    import warnings

    with zipfile.ZipFile(folder / SHARD, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr(name, data)
    return folder


add("zip-duplicate-pickle", NOT_TORCH + f"two entries are named '{ROOT}/data.pkl'",
    lambda bench: duplicate(bench, f"{ROOT}/data.pkl", b"\x80\x02cos\nsystem\n."))  # fmt: skip
add("zip-duplicate-storage", NOT_TORCH + f"two entries are named '{ROOT}/data/0'",
    lambda bench: duplicate(bench, f"{ROOT}/data/0", b"x"))  # fmt: skip
add("zip-local-name-differs", "in its local header", edited(
    lambda data: data.__setitem__(slice(30, 34), b"evil")))  # fmt: skip

# --- compression, encryption, flags -----------------------------------------------------------

for _method, _label, _sentence in (
    (zipfile.ZIP_DEFLATED, "deflate", "is compressed (method 8)"),
    (zipfile.ZIP_BZIP2, "bzip2", "is compressed (method 12)"),
    (zipfile.ZIP_LZMA, "lzma", "has unknown flags (0x0002)"),
):
    add(
        f"zip-compressed-{_label}",
        _sentence,
        lambda bench, method=_method: bench.with_entries(bench.entries(), method),
    )
add(
    "zip-bomb-deflate",
    "is compressed (method 8)",
    lambda bench: bench.with_entries(
        {**bench.entries(), f"{ROOT}/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED
    ),
)
add("zip-encrypted", "is encrypted or has unknown flags (0x0001)",
    set_field(CENTRAL, 8, "<H", 1))  # fmt: skip
add("zip-strong-encryption", "is encrypted or has unknown flags", set_field(CENTRAL, 8, "<H", 0x41))
add("zip-masked-directory", "is encrypted or has unknown", set_field(CENTRAL, 8, "<H", 0x2000))
add("zip-local-compressed", "is compressed or encrypted in its local header",
    set_field(LOCAL, 8, "<H", 8))  # fmt: skip
add("zip-local-encrypted", "is compressed or encrypted in its local header",
    set_field(LOCAL, 6, "<H", 1))  # fmt: skip
add("zip-aes-method", "is compressed (method 99)", set_field(CENTRAL, 10, "<H", 99))

# --- places and sizes -------------------------------------------------------------------------


def overlap(data: bytearray) -> None:
    """Let the second storage's entry name the first one's local header."""
    at = data.rindex(b"PK\x05\x06")
    directory = struct.unpack_from("<L", data, at + 16)[0]
    entries = []
    while data[directory : directory + 4] == CENTRAL:
        lengths = struct.unpack_from("<3H", data, directory + 28)
        entries.append(directory)
        directory += 46 + sum(lengths)
    first = struct.unpack_from("<L", data, entries[0] + 42)[0]
    struct.pack_into("<L", data, entries[1] + 42, first)


def nested(data: bytearray) -> None:
    """Let the first storage's size reach over the second entry, in both its headers."""
    size = struct.unpack_from("<L", data, data.index(CENTRAL) + 24)[0] + 100
    for record, offset in ((CENTRAL, 20), (CENTRAL, 24), (LOCAL, 18), (LOCAL, 22)):
        field(data, record, offset, "<L", size)


add("zip-shared-local-header", "in its local header", edited(overlap))
add("zip-overlap", "overlap", edited(nested))
add("zip-offset-outside", "lies outside the file", set_field(CENTRAL, 42, "<L", 0x7FFFFFFF))
add("zip-offset-no-header", "no local header at byte 1", set_field(CENTRAL, 42, "<L", 1))
add("zip-size-lie", "is stored as", set_field(CENTRAL, 24, "<L", 1))
add("zip-size-huge", "is stored as", set_field(CENTRAL, 24, "<L", 0xFFFFFFFE))
add("zip64-missing", "lacks its Zip64 sizes", set_field(CENTRAL, 24, "<L", 0xFFFFFFFF))
add("zip-volume", "lies on volume 7", set_field(CENTRAL, 34, "<H", 7))
add("zip-multi-volume", "multi-volume", set_field(END, 4, "<H", 3))
add("zip-directory-offset", "should end at byte", set_field(END, 16, "<L", 0))
add("zip-directory-size", "should end at byte", set_field(END, 12, "<L", 0x00FFFFFF))
add("zip-directory-bomb", "its directory claims", set_field(END, 12, "<L", 0xFFFFFFF0))
add("zip-count-too-many", "its directory ends inside entry", edited(
    lambda data: [field(data, END, at, "<H", 0xFFF0) for at in (8, 10)] and None))  # fmt: skip
add("zip-count-too-few", "bytes follow the last entry", edited(
    lambda data: [field(data, END, offset, "<H", 1) for offset in (8, 10)] and None))  # fmt: skip
add("zip-counts-differ", "multi-volume", set_field(END, 8, "<H", 1))
add("zip-directory-signature", "of its directory is malformed", set_field(CENTRAL, 0, "<H", 0))
add("zip-name-length", "of its directory is malformed", set_field(CENTRAL, 28, "<H", 0xFFFF, 1))
add("zip-local-name-length", "in its local header", set_field(LOCAL, 26, "<H", 0xFFFF, 20))
add("zip-comment", "bytes follow the archive's end record", lambda bench: bench.with_shard(
    sound_bytes(bench)[:-2] + b"\x04\x00boom"))  # fmt: skip
add("zip-appended", "bytes follow the archive's end record", lambda bench: bench.with_shard(
    sound_bytes(bench) + b"MZ" * 20))  # fmt: skip
add("zip-prepended", "expected a zip archive as torch.save writes it", lambda bench: (
    bench.with_shard(b"#!/bin/sh\n" + sound_bytes(bench))))  # fmt: skip
add("zip-local-crc", "has another size or CRC in its local header", set_field(LOCAL, 14, "<L", 1))


def many_entries(bench: Bench) -> Path:
    """300,000 directory entries that all name one local header."""
    local = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 0, 0, 0, 0, 0, 0, 3, 0) + b"a/b"
    central = struct.pack(
        "<4s6H3L5H2L", CENTRAL, 20, 20, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0
    ) + b"a/b"  # fmt: skip
    n = 300_000
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, n * len(central), len(local)
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(local) + n * len(central), 1)
    end = struct.pack("<4s4H2LH", END, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return bench.with_shard(local + central * n + record + locator + end)


add("zip-bomb-directory", "its directory claims 300000 entries", many_entries)


def zip64(offset: int, form: str, value: int) -> Callable[[Bench], Path]:
    """Damage the Zip64 locator (offset from it) of a sound Zip64 end."""

    def make(bench: Bench) -> Path:
        data = sound_bytes(bench)
        if b"PK\x06\x07" not in data[-50:]:
            end = data[-22:]
            _, _, _, _, total, size, start, _ = struct.unpack("<4s4H2LH", end)
            where = len(data) - 22
            record = struct.pack(
                "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, total, total, size, start
            )
            data = data[:-22] + record + struct.pack("<4sLQL", b"PK\x06\x07", 0, where, 1) + end
        changed = bytearray(data)
        struct.pack_into(form, changed, len(data) - 42 + offset, value)
        return bench.with_shard(bytes(changed))

    return make


add("zip64-locator-outside", "Zip64 locator does not point", zip64(8, "<Q", 2**63))
add("zip64-locator-disks", "Zip64 locator does not point", zip64(16, "<L", 9))
add("zip64-record-size", "Zip64 end record is malformed", zip64(-56 + 4, "<Q", 2**60))
add("zip64-disagrees", "its two end records disagree", zip64(-56 + 32, "<Q", 3))
add("zip64-directory-offset", "its two end records disagree", zip64(-56 + 48, "<Q", 2**62))

# --- damage -----------------------------------------------------------------------------------


def damaged(entry: str, error: type[Llama2qError], sentence: str) -> None:
    def make(bench: Bench) -> Path:
        data = bytearray(sound_bytes(bench))
        content = bench.entries()[entry]
        at = bytes(data).index(content)
        data[at + len(content) // 2] ^= 1
        return bench.with_shard(bytes(data))

    CASES.add(f"damaged-{entry.partition('/')[2].replace('/', '-')}", error, sentence, make)


damaged(f"{ROOT}/data.pkl", CorruptShardError, "data.pkl fails its CRC")
damaged(f"{ROOT}/data/0", CorruptShardError, "is damaged: tok_embeddings.weight (entry")
damaged(f"{ROOT}/data/5", CorruptShardError, "fails its CRC; download the file again")

for _order in (b"big", b"middle", b"", b"little\n"):
    add(
        f"byteorder-{_order.decode().strip() or 'empty'}-{len(_order)}",
        "was saved with byte order",
        lambda bench, order=_order: bench.with_entries(
            {**bench.entries(), f"{ROOT}/byteorder": order}
        ),
    )

for _percent in (1, 10, 50, 90, 99):
    CASES.add(
        f"cut-at-{_percent}-percent",
        TruncatedShardError,
        "consolidated.00.pth is truncated",
        lambda bench, percent=_percent: bench.with_shard(
            sound_bytes(bench)[: len(sound_bytes(bench)) * percent // 100]
        ),
    )
for _bytes in (1, 21, 22, 23, 60):
    CASES.add(
        f"cut-by-{_bytes}-bytes",
        TruncatedShardError,
        "run download.sh again, it resumes",
        lambda bench, n=_bytes: bench.with_shard(sound_bytes(bench)[:-n]),
    )
CASES.add(
    "cut-to-4-bytes", TruncatedShardError, "is truncated", lambda bench: bench.with_shard(LOCAL)
)
CASES.add("cut-to-nothing", TruncatedShardError, "is empty", lambda bench: bench.with_shard(b""))
add("cut-to-2-bytes", "expected a zip archive", lambda bench: bench.with_shard(b"PK"))
add("all-zeros", "expected a zip archive", lambda bench: bench.with_shard(bytes(100_000)))
CASES.add("middle-missing", ShardFormatError, NOT_TORCH, lambda bench: bench.with_shard(
    sound_bytes(bench)[:20_000] + sound_bytes(bench)[30_000:]))  # fmt: skip
