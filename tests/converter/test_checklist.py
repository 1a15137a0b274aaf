"""Checklists of MD5 sums: found beside and above, strict about their form."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llama2q.converter.checklist import ListedFile, read_checklists
from llama2q.errors import ChecklistError, ChecksumError

NAMES = ("consolidated.00.pth", "params.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as download.sh makes it: the tokenizer one folder up."""
    folder = tmp_path / "llama" / "model"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(name)
    (folder.parent / "tokenizer.model").write_text("tokenizer")
    return folder


def sources(folder: Path) -> list[Path]:
    return [*(folder / name for name in NAMES), folder.parent / "tokenizer.model"]


def line(name: str, content: str | None = None, separator: str = "  ") -> str:
    digest = hashlib.md5((name if content is None else content).encode()).hexdigest()
    return f"{digest}{separator}{name}\n"


def test_no_list(folder: Path) -> None:
    assert read_checklists(folder, sources(folder)) == {}


def test_lists_as_download_sh_leaves_them(folder: Path) -> None:
    (folder / "checklist.chk").write_text("".join(map(line, NAMES)))
    (folder.parent / "tokenizer_checklist.chk").write_text(line("tokenizer.model", "tokenizer"))
    listed = read_checklists(folder, sources(folder))
    assert list(listed) == sources(folder)
    for path, entry in listed.items():
        assert entry.path == path
        entry.check(hashlib.md5(path.read_bytes()).hexdigest())


def test_forms_of_a_line(folder: Path) -> None:
    text = line(NAMES[0], separator=" *").upper().replace(NAMES[0].upper(), NAMES[0])
    (folder / "checklist.chk").write_bytes(f"\n{text}".replace("\n", "\r\n").encode())
    (entry,) = read_checklists(folder, sources(folder)).values()
    entry.check(hashlib.md5(NAMES[0].encode()).hexdigest())


def test_other_files_beside_count_too(folder: Path) -> None:
    (folder / "notes.txt").write_text("notes")
    (folder / "checklist.chk").write_text(line("notes.txt", "notes"))
    assert list(read_checklists(folder, sources(folder))) == [folder / "notes.txt"]


def test_a_list_one_folder_up_speaks_of_several_models(folder: Path) -> None:
    lines = line(f"model/{NAMES[0]}", NAMES[0]) + line("other/consolidated.00.pth") + line("x.bin")
    (folder.parent / "checklist.chk").write_text(lines)
    assert list(read_checklists(folder, sources(folder))) == [folder / NAMES[0]]


def test_the_tokenizer_may_be_listed_beside_and_lie_above(folder: Path) -> None:
    (folder / "checklist.chk").write_text(line("tokenizer.model", "tokenizer"))
    assert list(read_checklists(folder, sources(folder))) == [folder.parent / "tokenizer.model"]


def test_missing_file(folder: Path) -> None:
    (folder / "checklist.chk").write_text(line("consolidated.01.pth"))
    with pytest.raises(
        ChecklistError, match=r"consolidated\.01\.pth is missing: checklist\.chk lists it\. Run"
    ):
        read_checklists(folder, sources(folder))


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "<html>",
        "d41d8cd98f00b204e9800998ecf8427e",
        "d41d8cd98f00b204e9800998ecf8427e  ",
        "d41d8cd98f00b204e9800998ecf8427e params.json",
        "d41d8cd98f00b204e9800998ecf8427  params.json",
        "d41d8cd98f00b204e9800998ecf8427g  params.json",
        "params.json  d41d8cd98f00b204e9800998ecf8427e",
        "d41d8cd98f00b204e9800998ecf8427e  ../params.json",
        "d41d8cd98f00b204e9800998ecf8427e  /etc/passwd",
        "d41d8cd98f00b204e9800998ecf8427e  C:\\x",
        "d41d8cd98f00b204e9800998ecf8427e  a\0b",
    ],
)
def test_malformed_lines(folder: Path, text: str) -> None:
    (folder / "checklist.chk").write_text(line(NAMES[1]) + text)
    with pytest.raises(ChecklistError, match=r"checklist\.chk, line 2: expected 32 hex digits"):
        read_checklists(folder, sources(folder))


def test_not_text_and_too_large(folder: Path) -> None:
    (folder / "checklist.chk").write_bytes(b"\xff\xfe\x00" * 100)
    with pytest.raises(ChecklistError, match="line 1: expected 32 hex digits"):
        read_checklists(folder, sources(folder))
    (folder / "checklist.chk").write_bytes(b"\n" * (2**20 + 1))
    with pytest.raises(ChecklistError, match="has over 1048576 bytes"):
        read_checklists(folder, sources(folder))


def test_two_lists_that_disagree(folder: Path) -> None:
    (folder / "checklist.chk").write_text(line(NAMES[1]))
    (folder / "tokenizer_checklist.chk").write_text(line(NAMES[1]))
    assert len(read_checklists(folder, sources(folder))) == 1
    (folder / "tokenizer_checklist.chk").write_text(line(NAMES[1], "else"))
    with pytest.raises(ChecklistError, match=r"params\.json is listed twice"):
        read_checklists(folder, sources(folder))


def test_mismatch_says_all(folder: Path) -> None:
    entry = ListedFile(folder / "params.json", "a" * 32, folder / "checklist.chk")
    entry.check("a" * 32)
    with pytest.raises(ChecksumError) as caught:
        entry.check("b" * 32)
    message = str(caught.value)
    for part in ("params.json", "a" * 32, "b" * 32, "checklist.chk", "download.sh", "--no-check"):
        assert part in message
