"""A folder that appears whole or not at all: made as `NAME.part`, then renamed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from llama2q.errors import InvalidArgumentError, OutputError, OutputExistsError
from llama2q.files import fsync_folder, replace


@contextlib.contextmanager
def new_folder(path: Path, names: Collection[str], *, overwrite: bool) -> Iterator[Path]:
    """Yield `NAME.part`, an empty folder that gets its name when the block ends.

    An error or an interruption removes it.

    Parameters
    ----------
    path : Path
        The final name; an empty folder that has it is replaced.
    names : collection of str
        Files that an export writes.
    overwrite : bool
        Whether a folder that holds nothing but files of these names is replaced.

    Raises
    ------
    OutputExistsError
        `path` or `NAME.part` exists and may not be replaced.
    InvalidArgumentError
        The folder that it is to be in does not exist.
    OutputError
        The system refuses.
    """
    part = path.with_name(path.name + ".part")
    _refuse_existing(path, names, overwrite=overwrite)
    try:
        part.mkdir()
    except FileExistsError as error:
        raise OutputExistsError(
            f"{part} exists: another export is writing it, or one was killed; remove it"
        ) from error
    except OSError as error:
        raise OutputError(f"{part} cannot be made: {error.strerror or error}") from error
    try:
        yield part
        _refuse_existing(path, names, overwrite=overwrite)
        try:
            for found in sorted(path.iterdir()) if path.exists() else ():
                found.unlink()
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
            replace(part, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    fsync_folder(path.parent)


def _refuse_existing(path: Path, names: Collection[str], *, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"the folder {path.parent} does not exist")
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputExistsError(f"{path} is a file; give the name of a folder")
    found = {entry.name for entry in path.iterdir()}
    if found and not overwrite:
        raise OutputExistsError(
            f"{path} exists and is not empty; pass overwrite=True (--force) to replace it"
        )
    if strange := sorted(found - set(names)):
        raise OutputExistsError(
            f"{path} holds {strange[0]!r}, which no export wrote; it is not replaced: give another "
            "name"
        )
