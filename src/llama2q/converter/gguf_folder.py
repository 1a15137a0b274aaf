"""Finding a GGUF file, told by its first bytes or its name, and the parts of a split one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llama2q.converter.checkpoint_folder import require_file
from llama2q.converter.foreign import HUB_AGAIN
from llama2q.converter.gguf_file import MAGIC
from llama2q.errors import CheckpointNotFoundError, MissingShardError

SUFFIX = ".gguf"
MAX_PARTS = 1000

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_TYPE = re.compile(r"[-._](I?Q\d\w*|B?F16|F32)$", re.IGNORECASE)
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_WEIGHTS = (".safetensors", ".bin", ".pth")


@dataclass(frozen=True, slots=True)
class GgufParts:
    """The files of a model.

    Attributes
    ----------
    paths : tuple of Path
        One, or the parts in order.
    """

    paths: tuple[Path, ...]

    @property
    def stem(self) -> str:
        """The model's name by that of its file, without the type; "" for a file of another kind."""
        name = self.paths[0].name
        match = _PART.fullmatch(name)
        stem = match[1] if match else name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else ""
        return _TYPE.sub("", stem)


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, whatever its name, or has the name of one."""
    if not path.is_file():
        return False
    if path.suffix == SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def gguf_in(folder: Path) -> Path | None:
    """Return the GGUF file of a folder that holds no other weights; the first part of a split one.

    Raises
    ------
    CheckpointNotFoundError
        It holds several.
    """
    if not folder.is_dir():
        return None
    children = sorted(folder.iterdir())
    if any(child.suffix in _WEIGHTS for child in children):
        return None
    found = [child for child in children if child.suffix == SUFFIX]
    whole = [child for child in found if not _is_later_part(child.name)]
    if len(whole) > 1:
        names = ", ".join(child.name for child in whole[:5]) + (", ..." if len(whole) > 5 else "")
        raise CheckpointNotFoundError(
            f"{folder} holds {len(whole)} GGUF files ({names}). Try: llama2q-convert {whole[0]}"
        )
    return next(iter(whole or found), None)


def find_parts(path: Path) -> GgufParts:
    """Find the other parts of a file whose name says that it is one of several.

    Raises
    ------
    MissingShardError
        A part is missing.
    UnreadableFileError
        A part is no ordinary file.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return GgufParts((path,))
    stem, count = match[1], int(match[3])
    if not 1 <= int(match[2]) <= count <= MAX_PARTS:
        raise MissingShardError(
            f"{path.name} says that it is part {int(match[2])} of {count}; expected at most "
            f"{MAX_PARTS}, counted from 1. Give it the name that it had"
        )
    names = [f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}" for number in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        listed = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise MissingShardError(
            f"{listed} {'is' if len(missing) == 1 else 'are'} missing: the model has {count} "
            f"parts; {HUB_AGAIN}"
        )
    for name in names:
        require_file(path.parent / name)
    return GgufParts(tuple(path.parent / name for name in names))


def plain_name(text: str) -> str:
    """Turn a model's name into one that a file can have."""
    return _UNFIT.sub("-", text).strip("-.")[:100]


def _is_later_part(name: str) -> bool:
    match = _PART.fullmatch(name)
    return match is not None and int(match[2]) != 1
