"""What only one operating system knows of the machine, asked without a subprocess."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

ROSETTA = (
    "this Python is an x86-64 program under Rosetta; install one for arm64, it is several times "
    "faster"
)


def cpu_name() -> str:
    """Return the CPU's own name for itself, or its architecture."""
    if sys.platform == "darwin":
        name = _sysctl_text(b"machdep.cpu.brand_string")
    elif sys.platform == "win32":
        name = _windows_cpu_name()
    else:
        name = _linux_cpu_name()
    return name or platform.processor() or platform.machine()


def is_translated() -> bool:
    """Whether this is an x86-64 process on an Arm Mac (Rosetta)."""
    if sys.platform != "darwin" or platform.machine() != "x86_64":
        return False
    return _sysctl_number(b"sysctl.proc_translated") == 1


def commit_room_bytes() -> int | None:
    """Return what this process may still allocate; None where allocating is free (not Windows).

    Windows counts memory when it is allocated, not when it is used: with a small page file, what is
    free may be more than what may be allocated.
    """
    if sys.platform != "win32":
        return None

    class MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("physical", ctypes.c_ulonglong * 2),
            ("commit", ctypes.c_ulonglong * 2),  # all, free
            ("virtual", ctypes.c_ulonglong * 2),
            ("extended", ctypes.c_ulonglong),
        )

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.commit[1])


def _linux_cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.lower().startswith(("model name", "hardware")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _windows_cpu_name() -> str:
    if sys.platform == "win32":
        import winreg

        try:
            with winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            ) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            pass
    return ""


def _sysctl_number(name: bytes) -> int | None:
    """Return a 32-bit number that macOS knows by this name."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    failed = _sysctl(name, ctypes.byref(value), ctypes.byref(size))
    return None if failed else value.value


def _sysctl_text(name: bytes) -> str:
    """Return a text that macOS knows by this name; empty if it does not."""
    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    failed = _sysctl(name, buffer, ctypes.byref(size))
    return "" if failed else buffer.value.decode("utf-8", "replace").strip()


def _sysctl(name: bytes, value: object, size: object) -> bool:
    """Call the C library's sysctlbyname; return whether it failed."""
    return bool(ctypes.CDLL(None).sysctlbyname(name, value, size, None, 0))
