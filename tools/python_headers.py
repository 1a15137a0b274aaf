"""The running Python's headers, for compilers that do not know this system's own folders (zig)."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

_MULTIARCH = str(sysconfig.get_config_var("MULTIARCH"))


def pyconfig() -> Path:
    """Return pyconfig.h; Debian's one beside the others includes it by the platform's name."""
    found = Path(sysconfig.get_config_h_filename())
    real = found.parent.parent / _MULTIARCH / found.parent.name / found.name
    return real if real.exists() else found


def copy(folder: Path, config: Path) -> Path:
    """Copy all headers into a folder, `config` as pyconfig.h, and return where they are."""
    include = folder / "include"
    shutil.rmtree(include, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), include)
    shutil.copy2(config, include / "pyconfig.h")
    return include


def platform_folder(folder: Path) -> Path:
    """Make an include folder in which Debian's pyconfig.h finds the one that it includes."""
    config = pyconfig()
    place = folder / "platform" / _MULTIARCH / config.parent.name
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy2(config, place)
    return folder / "platform"
