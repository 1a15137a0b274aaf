"""What only one operating system knows; the others' answers are played."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama2q import doctor, host, memory


def play_sysctl(monkeypatch: pytest.MonkeyPatch, values: dict[bytes, int | bytes]) -> None:
    """Be a Mac that knows these names."""

    def sysctl(name: bytes, value: Any, size: Any) -> bool:
        found = values.get(name)
        if isinstance(found, bytes):
            value.value = found
        elif found is not None:
            value._obj.value = found
        return found is None

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(host, "_sysctl", sysctl)


def test_cpu_name_here() -> None:
    assert host.cpu_name()
    assert host.cpu_name().isprintable()


def test_cpu_name_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    play_sysctl(monkeypatch, {b"machdep.cpu.brand_string": b"Apple M9 \0"})
    assert host.cpu_name() == "Apple M9"
    play_sysctl(monkeypatch, {})
    assert host.cpu_name() == (platform.processor() or platform.machine())


@pytest.mark.parametrize(
    ("machine", "value", "expected"),
    [("x86_64", 1, True), ("x86_64", 0, False), ("x86_64", None, False), ("arm64", 1, False)],
)
def test_rosetta(
    monkeypatch: pytest.MonkeyPatch, machine: str, value: int | None, expected: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    play_sysctl(monkeypatch, {} if value is None else {b"sysctl.proc_translated": value})
    assert host.is_translated() is expected
    isa = {"chosen": "avx2", "available": ["scalar", "avx2"], "why": ""}
    assert doctor._warnings(isa) == ([host.ROSETTA] if expected else [])


def test_no_rosetta_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    assert not host.is_translated()


def test_rosetta_is_told_at_load(
    convert_mini: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from llama2q.engine import Engine

    monkeypatch.setattr(host, "is_translated", lambda: True)
    with Engine(convert_mini()):
        pass
    assert host.ROSETTA in caplog.messages


def test_room_is_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (host.commit_room_bytes() is None) == (sys.platform != "win32")
    monkeypatch.setattr(host, "commit_room_bytes", lambda: 12345)
    assert memory.available_bytes() == 12345


def test_the_c_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, n: int) -> int:
            value._obj.value = 7
            return 0 if name == b"known" else -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert host._sysctl_number(b"known") == 7
    assert host._sysctl_number(b"unknown") is None
