"""The MD5 lists that Meta's download.sh leaves: `checklist.chk` and `tokenizer_checklist.chk`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama2q.errors import ChecklistError, ChecksumError

LIST_NAMES = ("checklist.chk", "tokenizer_checklist.chk")
MAX_LIST_BYTES = 1 << 20

# As md5sum writes it: digest, a space, a space or "*" (binary mode), name.
_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](.+)")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file, the MD5 it should have (32 hex digits), and the list that says so."""

    path: Path
    md5: str
    listed_in: Path

    def check(self, found: str) -> None:
        """Compare with the MD5 that the file has.

        Raises
        ------
        ChecksumError
            They differ.
        """
        if found != self.md5:
            raise ChecksumError(
                f"{self.path.name} has the MD5 {found}; {self.listed_in.name} expects {self.md5}: "
                "the download is damaged or incomplete. Delete the file and run download.sh again; "
                "if the file was changed on purpose, convert with --no-checksums "
                "(verify_checksums=False)"
            )


def read_checklists(folder: Path, sources: Iterable[Path]) -> dict[Path, ListedFile]:
    """Read the lists beside a checkpoint and one folder up.

    Parameters
    ----------
    folder : Path
        The folder with the shards.
    sources : iterable of Path
        The checkpoint's files.

    Returns
    -------
    dict
        Path -> what is listed: everything that a list beside the shards names, and those of
        `sources` that a list one folder up names.

    Raises
    ------
    ChecklistError
        A line is malformed, a name leaves the folder, a file is listed with two different MD5 sums,
        or a file listed beside the shards is missing.
    """
    known = {path.resolve(): path for path in sources}
    by_name = {path.name: path for path in known.values()}
    found: dict[Path, ListedFile] = {}
    for place in (folder, folder.parent):
        for list_path in (place / name for name in LIST_NAMES):
            if not list_path.is_file():
                continue
            for name, md5 in _read_list(list_path):
                path = known.get((place / name).resolve())
                if path is None and place == folder:
                    path = _beside(list_path, name, by_name)
                if path is not None:
                    _add(found, ListedFile(path, md5, list_path))
    return found


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Return (name, MD5) of each line."""
    with path.open("rb") as file:
        data = file.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise ChecklistError(
            f"{path.name} has over {MAX_LIST_BYTES} bytes; expected a line per file. "
            f"Run download.sh again, or {_LEAVE_OUT}"
        )
    entries = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None or not _is_inside(match[2]):
            raise ChecklistError(
                f"{path.name}, line {number}: expected 32 hex digits, two spaces and a file name, "
                f"found {line[:80]!r}. Run download.sh again, or {_LEAVE_OUT}"
            )
        entries.append((match[2], match[1].lower()))
    return entries


_LEAVE_OUT = "convert with --no-checksums (verify_checksums=False)"


def _is_inside(name: str) -> bool:
    """Whether a name stays in the list's folder."""
    parts = re.split(r"[/\\]", name)
    return "\0" not in name and ":" not in name and not {"", ".."} & set(parts)


def _beside(list_path: Path, name: str, by_name: dict[str, Path]) -> Path:
    """Return the file that a list beside the shards means; the tokenizer may lie one folder up."""
    path = list_path.parent / name
    if path.is_file():
        return path
    if name in by_name:
        return by_name[name]
    raise ChecklistError(
        f"{name} is missing: {list_path.name} lists it. Run download.sh again, it resumes; "
        f"or {_LEAVE_OUT}"
    )


def _add(found: dict[Path, ListedFile], entry: ListedFile) -> None:
    other = found.setdefault(entry.path, entry)
    if other.md5 != entry.md5:
        raise ChecklistError(
            f"{entry.path.name} is listed twice: {other.md5} in {other.listed_in.name}, "
            f"{entry.md5} in {entry.listed_in.name}. Keep the list that belongs to this download, "
            f"or {_LEAVE_OUT}"
        )
