"""Sizes as people write them, and what a cgroup leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama2q import memory
from llama2q.errors import InvalidArgumentError
from llama2q.memory import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1B", 1),
        ("8GB", 8 * 10**9),
        ("8 GB", 8 * 10**9),
        ("7.5GiB", 15 * 2**29),
        ("0.1KiB", 102),
        ("512MiB", 2**29),
        ("1TB", 10**12),
        ("2TiB", 2**41),
        ("3kB", None),
    ],
)
def test_sizes(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(InvalidArgumentError, match="is not a size; expected a number and one"):
            parse_size(text)
    else:
        assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "8", "GB", "-8GB", "+8GB", "8gb", "8G", "8Gb", "8,5GB", "8.GB", ".5GB", "1e3GB", "8  GB",
     " 8GB", "8GB ", "0GB", "0.5B", "inf GB", "٨GB", "8GB\n"],
)  # fmt: skip
def test_not_sizes(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a size"):
        parse_size(text)


def test_format() -> None:
    assert format_size(2**30) == "1.0 GiB"
    assert format_size(2**30 - 1) == "1024.0 MiB"
    assert format_size(103 * 2**20, 2**40) == "0.1 GiB"
    assert format_size(0) == "0.0 MiB"


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the system's cgroups by an empty folder."""
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(memory, "_CGROUPS", root)
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "self")
    return root


def write_v2(folder: Path, limit: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\nactive_file {cache}\ninactive_file {cache}\nslab 7\n"
    )


def test_no_cgroup(cgroups: Path) -> None:
    assert memory.cgroup_limit_bytes() is None
    assert memory.cgroup_room_bytes() is None
    assert memory.available_bytes() > 0


def test_cgroup_version_2(cgroups: Path) -> None:
    (cgroups.parent / "self").write_text("0::/a/b\n")
    write_v2(cgroups / "a" / "b", "max", 10, 0)
    assert memory.cgroup_limit_bytes() is None
    write_v2(cgroups / "a" / "b", "9000", 800, 100)
    write_v2(cgroups / "a", "7000", 6500, 1000)
    assert memory.cgroup_limit_bytes() == 7000
    assert memory.cgroup_room_bytes() == 2500
    assert memory.available_bytes() == 2500
    write_v2(cgroups / "a", "7000", 9500, 1000)
    assert memory.available_bytes() == 0


def test_cgroup_version_1(cgroups: Path) -> None:
    (cgroups.parent / "self").write_text("9:cpu:/\n4:hugetlb,memory:/elsewhere\n0::/\n")
    folder = cgroups / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (folder / "memory.usage_in_bytes").write_text("600\n")
    assert memory.cgroup_limit_bytes() is None
    (folder / "memory.limit_in_bytes").write_text("1000\n")
    assert memory.cgroup_room_bytes() == 400
    (folder / "memory.stat").write_text("total_active_file 100\ntotal_inactive_file 50\n")
    assert memory.cgroup_room_bytes() == 550
