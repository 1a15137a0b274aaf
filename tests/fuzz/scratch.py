"""A file that each input is written to, in memory where the system has such a folder."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def folder() -> Path:
    """Return a folder of this process, removed when it ends."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="llama2q-fuzz-", dir=base))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
