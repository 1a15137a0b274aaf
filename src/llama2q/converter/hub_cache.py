"""Hugging Face's cache: `models--ORG--NAME/snapshots/HASH/FILE`, a link to `../../blobs/...`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from llama2q.errors import CheckpointNotFoundError, ChecksumError

_REPOSITORY = "models--"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OLLAMA_BLOB = re.compile(r"sha256[-:]([0-9a-f]{64})")
_MAX_REF_BYTES = 200


def model_name(folder: Path) -> str:
    """Return the model's name: that of the hub's repository for a snapshot, else the folder's own.

    Parameters
    ----------
    folder : Path
        Resolved.
    """
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith(_REPOSITORY):
        return repository.rpartition("--")[2] or folder.name
    return folder.name


def snapshot_in(folder: Path) -> Path:
    """Return the snapshot in use for a repository's folder of the cache; any other folder itself.

    Raises
    ------
    CheckpointNotFoundError
        It has no snapshot, or several and none that `refs/main` names.
    """
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or not folder.resolve().name.startswith(_REPOSITORY):
        return folder
    found = sorted(child.name for child in snapshots.iterdir() if child.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        with main.open("rb") as file:
            commit = file.read(_MAX_REF_BYTES).decode("ascii", "replace").strip()
        if _COMMIT.fullmatch(commit) and commit in found:
            return snapshots / commit
    if len(found) == 1:
        return snapshots / found[0]
    listed = ", ".join(name[:80] for name in found[:4]) or "none"
    raise CheckpointNotFoundError(
        f"{folder} is a repository in Hugging Face's cache; its snapshots are: {listed}. "
        + (f"Try: llama2q-convert {snapshots / found[0]}" if found else "Download it again")
    )


def blob_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """List the files that a cache names by their SHA-256: file name -> 64 hex digits.

    Hugging Face's are links to such a blob, ollama's are blobs themselves.
    """
    hashes: dict[str, str] = {}
    for path in paths:
        blob = path.resolve()
        if path.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            hashes[path.name] = blob.name
        elif match := _OLLAMA_BLOB.fullmatch(blob.name):
            hashes[path.name] = match[1]
    return hashes


def check_blobs(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compare hashes, both file name -> 64 hex digits.

    Raises
    ------
    ChecksumError
        A blob has not the hash that it is named by.
    """
    for name, digits in expected.items():
        if found[name] != digits:
            raise ChecksumError(
                f"{name} has the SHA-256 {found[name]}; its blob in the cache is named {digits}: "
                "the download is damaged, or the file was changed. Delete the blob and "
                "download it again; if the change was on purpose, convert with --no-checksums "
                "(verify_checksums=False)"
            )
