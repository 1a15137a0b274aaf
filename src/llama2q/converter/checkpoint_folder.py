"""Finding the files of a checkpoint in Meta's form, and saying what a folder holds instead."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llama2q.converter.hub_cache import model_name
from llama2q.errors import (
    CheckpointNotFoundError,
    MissingShardError,
    TokenizerError,
    UnreadableFileError,
)

MAX_LICENCE_BYTES = 1 << 20

_SHARD = re.compile(r"consolidated\.(\d{2})\.pth")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """Paths of a checkpoint's files; `shards` in order."""

    path: Path
    shards: tuple[Path, ...]
    params: Path
    tokenizer: Path
    licences: tuple[Path, ...]

    @property
    def template(self) -> str:
        """Chat template: "llama2-chat" if the model's name contains "chat", else "base"."""
        return "llama2-chat" if "chat" in model_name(self.path).lower() else "base"


def find_checkpoint(folder: str | Path) -> CheckpointFolder:
    """Find the files of a checkpoint.

    Parameters
    ----------
    folder : str or Path
        The folder with consolidated.00.pth and so on.

    Raises
    ------
    CheckpointNotFoundError
        The folder does not exist or holds something else; the message says what.
    MissingShardError
        The shards are not numbered without a gap from 00.
    UnreadableFileError
        A shard is no ordinary file.
    TokenizerError
        tokenizer.model lies neither beside the shards nor one folder up.
    """
    given = Path(folder)
    if not given.exists():
        raise CheckpointNotFoundError(f"{given} does not exist")
    if not given.is_dir():
        raise CheckpointNotFoundError(
            f"{given} is a file; give the folder that holds consolidated.00.pth, params.json and "
            f"tokenizer.model. Try: llama2q-convert {given.parent}"
        )
    path = given.resolve()
    numbers = _shard_numbers(path)
    for number in numbers:
        require_file(path / f"consolidated.{number:02d}.pth")
    if not numbers:
        raise CheckpointNotFoundError(_describe(given, path))
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if missing:
        names = ", ".join(f"consolidated.{number:02d}.pth" for number in missing[:8])
        names += ", ..." if len(missing) > 8 else ""
        raise MissingShardError(
            f"{names} {'is' if len(missing) == 1 else 'are'} missing: the checkpoint has "
            f"{numbers[-1] + 1} shards; found {_ranges(numbers)}. "
            "Run download.sh again, it resumes"
        )
    return CheckpointFolder(
        path=path,
        shards=tuple(path / f"consolidated.{number:02d}.pth" for number in numbers),
        params=path / "params.json",
        tokenizer=_find_tokenizer(path),
        licences=find_licences(path),
    )


def read_licences(paths: tuple[Path, ...]) -> dict[str, str]:
    """Read licence texts, by file name in ascending order; bytes that are not UTF-8 as Latin-1."""
    texts: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            data = file.read(MAX_LICENCE_BYTES)
        try:
            texts[path.name] = data.decode()
        except UnicodeDecodeError:
            texts[path.name] = data.decode("latin-1")
    return texts


def holds_shards(path: Path) -> bool:
    """Whether a folder is in Meta's form, complete or not."""
    return bool(_shard_numbers(path))


def _shard_numbers(path: Path) -> list[int]:
    return sorted(
        int(match[1]) for child in path.iterdir() if (match := _SHARD.fullmatch(child.name))
    )


def require_file(path: Path) -> None:
    """Raise UnreadableFileError unless this is an ordinary file, or a link to one."""
    if path.is_file():
        return
    if path.is_dir():
        found = "a folder"
    elif path.is_symlink() and not path.exists():
        found = f"a link to nothing ({path.readlink()})"
    else:
        found = "no ordinary file"
    raise UnreadableFileError(f"{path.name} is {found}; download it again in its place")


def _find_tokenizer(path: Path) -> Path:
    for place in (path, path.parent):
        if (place / "tokenizer.model").is_file():
            return place / "tokenizer.model"
    raise TokenizerError(
        f"tokenizer.model is neither in {path} nor in {path.parent}; download.sh puts it one "
        "folder above the weights. Copy it there"
    )


def find_licences(path: Path, *, above: bool = True) -> tuple[Path, ...]:
    """List licence files beside the weights and, if asked, one folder up; those beside win."""
    found: dict[str, Path] = {}
    for place in (path.parent, path) if above else (path,):
        for child in place.iterdir():
            if child.name.startswith("LICENSE") or child.name == "USE_POLICY.md":
                if child.is_file() and child.stat().st_size <= MAX_LICENCE_BYTES:
                    found[child.name] = child
    return tuple(found[name] for name in sorted(found))


def _ranges(numbers: list[int]) -> str:
    """Write ascending numbers as `00-02, 04-07`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]:02d}" if len(run) == 1 else f"{run[0]:02d}-{run[-1]:02d}" for run in runs
    )


def _describe(given: Path, path: Path) -> str:
    """Say what a folder without shards holds instead, and what to try."""
    models = sorted(
        child.name
        for child in path.iterdir()
        if child.is_dir() and (_shard_numbers(child) or (child / "config.json").is_file())
    )
    if models:
        shown = [f"{name}/" for name in models[:8]]
        listed = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
        return f"{given} holds {listed}, not weights. Try: llama2q-convert {given / models[0]}"
    others = sorted(child.name for child in path.iterdir())
    if not others:
        return f"{given} is empty; expected consolidated.00.pth, params.json and tokenizer.model"
    shown_others = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    return (
        f"{given} holds no consolidated.00.pth (found {shown_others}). Expected Meta's download: "
        "consolidated.00.pth, params.json, tokenizer.model; or a Hugging Face folder: config.json, "
        "model.safetensors, tokenizer.model"
    )
