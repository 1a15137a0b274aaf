"""How much memory can be had, and sizes as people write them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from llama2q import host
from llama2q.errors import InvalidArgumentError

_UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def parse_size(text: str) -> int:
    """Read a size in bytes.

    Parameters
    ----------
    text : str
        A decimal number and a unit: B, KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of
        1024), as in "8GB" or "7.5 GiB".

    Raises
    ------
    InvalidArgumentError
        If it is anything else, or less than one byte.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2]) if match else None
    size = int(Decimal(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise InvalidArgumentError(
            f"{text!r} is not a size; expected a number and one of {', '.join(_UNITS)}, "
            "as in 8GB or 7.5GiB"
        )
    return size


def format_size(n_bytes: int, like: int | None = None) -> str:
    """Write a size for people, with one decimal, in the unit that suits `like` (or itself)."""
    largest = n_bytes if like is None else like
    if largest >= 2**30:
        return f"{n_bytes / 2**30:.1f} GiB"
    return f"{n_bytes / 2**20:.1f} MiB"


def available_bytes() -> int:
    """Return what this process can have without swapping: the system's, or its own limit's."""
    import psutil

    free = int(psutil.virtual_memory().available)
    rooms = [room for room in (cgroup_room_bytes(), host.commit_room_bytes()) if room is not None]
    return max(0, min([free, *rooms]))


def peak_resident_bytes() -> int:
    """Return the largest resident size that this process ever had."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    high_water = _status_bytes(Path("/proc/self/status")).get("VmHWM")
    if high_water is not None:
        return high_water
    import resource

    # Not on Linux: there it begins with the size of the process that started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes(pid: int | None = None) -> tuple[int | None, int | None]:
    """Return what a process (this one) has resident of its own memory, and of mapped files.

    None where the system does not tell them apart (other than Linux).
    """
    values = _status_bytes(Path("/proc") / ("self" if pid is None else str(pid)) / "status")
    return (values["RssAnon"], values["RssFile"]) if "RssFile" in values else (None, None)


def _status_bytes(path: Path) -> dict[str, int]:
    """Return the sizes that Linux tells of a process, in bytes, by name; none elsewhere."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(size.split()[0]) * 1024 for name, size in pairs}


def cgroup_limit_bytes() -> int | None:
    """Return the lowest memory limit of this process's cgroup and those above it, if any."""
    return min((limit for limit, _ in _cgroup_limits()), default=None)


def cgroup_room_bytes() -> int | None:
    """Return what the cgroup limits leave; page cache counts as free, as the kernel drops it."""
    return min((limit - used for limit, used in _cgroup_limits()), default=None)


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes in use) of each cgroup that this process is in and that has a limit."""
    for folder, names in _own_cgroups():
        limit_name, used_name, cache_names = names
        limit = _read_number(folder / limit_name)
        used = _read_number(folder / used_name)
        # Version 1 writes "no limit" as a number near 2**63.
        if limit is not None and used is not None and limit < 2**60:
            yield limit, max(0, used - _page_cache(folder, cache_names))


_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def _own_cgroups() -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """Yield the folders of this process's memory cgroups, the innermost first."""
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUPS, _V2
        elif "memory" in controllers.split(","):
            root, names = _CGROUPS / "memory", _V1
        else:
            continue
        # A path that is not mounted here belongs to another namespace: its root is ours.
        folder = root / path.lstrip("/")
        while folder != root:
            yield folder, names
            folder = folder.parent
        yield root, names


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _page_cache(folder: Path, names: tuple[str, str]) -> int:
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    return sum(int(values.get(name, "0")) for name in names)
