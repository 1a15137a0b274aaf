"""What systems do each in their own way with files: locks, replacing, the way to the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from llama2q.errors import FileInUseError

_log = logging.getLogger(__name__)

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_LOCKED_BYTE = 2**31 - 2
"""Place of the byte that stands for a locked file on Windows: the last that its call can reach."""
_DENIED_BY_USE = {
    5: "ERROR_ACCESS_DENIED",
    32: "ERROR_SHARING_VIOLATION",
    33: "ERROR_LOCK_VIOLATION",
    1224: "ERROR_USER_MAPPED_FILE",
}
"""What Windows says when a file is open or mapped."""
_ATTEMPTS, _SECONDS_BETWEEN = 10, 0.1


def lock(file: BinaryIO) -> bool:
    """Take the file for this process until it is closed, where the system can.

    Returns
    -------
    bool
        False if another process has it. True also where the file system knows no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        return take_byte(file, lambda: msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1))
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        _log.debug("this file system has no locks")
    return True


def is_open_under(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still names the open file (another writer may have renamed it)."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def take_byte(file: BinaryIO, take: Callable[[], None]) -> bool:
    """Lock one byte of a file, at which `take` finds it; False if that is refused.

    Windows locks ranges of bytes, also beyond the end, and each against reading and writing through
    any other handle; nobody else reads a file that is being written.
    """
    place = file.tell()
    file.seek(_LOCKED_BYTE)
    try:
        take()
    except PermissionError:
        return False
    finally:
        file.seek(place)
    return True


def replace(source: Path, target: Path) -> None:
    """Give `source` the name `target`; what had it before is gone.

    Windows refuses while anything has the target (or the source) open or mapped. Virus scanners and
    indexers open new files for moments, so it is tried for a second.

    Raises
    ------
    FileInUseError
        On Windows: another program has one of the files open. Both are unchanged.
    """
    for attempt in range(_ATTEMPTS):
        try:
            source.replace(target)
        except OSError as error:
            reason = _why_in_use(error)
            if reason is None:
                raise
            if attempt + 1 == _ATTEMPTS:
                raise FileInUseError(
                    f"{target} cannot be replaced while a program uses it ({reason}): close what "
                    "has it open, such as a loaded model, and see that it is not write-protected; "
                    f"the new content is in {source}"
                ) from error
            time.sleep(_SECONDS_BETWEEN)
        else:
            return


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that only its owner can read; it gets its name, whole, at the block's end.

    Until then the data lie in `NAME.part`, which an error removes. What had the name is replaced.

    Raises
    ------
    FileInUseError
        See `replace`; `NAME.part` stays.
    FileExistsError
        What has the name is no file: a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is there, and is no file: give another name")
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)  # of a writer that was killed: others may have it open
        with os.fdopen(os.open(part, _NEW, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(part, path)
    except FileInUseError:
        raise  # it says where the new content is
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    fsync_folder(path.parent)


def require_replaceable(target: Path) -> None:
    """Refuse early, before hours of work, what `replace` would refuse; nothing where it is absent.

    Raises
    ------
    FileInUseError
        On Windows: another program has the file open.
    """
    try:
        target.rename(target)  # needs the same access as replacing it, and changes nothing
    except OSError as error:
        reason = _why_in_use(error)
        if reason is None:
            return
        raise FileInUseError(
            f"{target} cannot be replaced while a program uses it ({reason}): close what has it "
            "open, such as a loaded model, or write to another name"
        ) from error


def _why_in_use(error: OSError) -> str | None:
    return _DENIED_BY_USE.get(getattr(error, "winerror", None) or 0)


def fsync_folder(folder: Path) -> None:
    """Have a rename reach the disk; Windows has no such call, and its file system keeps a log."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def will_need(file: BinaryIO, begin: int, nbytes: int) -> None:
    """Have the system read a range from the disk in the background, where it can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), begin, nbytes, os.POSIX_FADV_WILLNEED)


def start_writing(file: BinaryIO, begin: int, nbytes: int) -> None:
    """Have the system write a range to the disk in the background, where it can.

    Without it hundreds of MB wait in memory until the flush at the end.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # the call writes dirty pages, and drops clean ones
            os.posix_fadvise(file.fileno(), begin, nbytes, os.POSIX_FADV_DONTNEED)


def leave_page_cache(file: BinaryIO) -> None:
    """Drop what was written from memory: the next one to map it has it read in larger pages."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
