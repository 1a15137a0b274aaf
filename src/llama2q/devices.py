"""GPUs: the library of their kernels, the driver, and what each of them offers."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llama2q import _core
from llama2q.errors import DeviceError

LIBRARY_VARIABLE = "LLAMA2Q_CUDA_LIBRARY"
"""Names another library of kernels than the one beside this package."""
LIBRARY_NAME = "libllama2q_cuda.so"
OLDEST_DRIVER = 580
"""The first driver that runs what CUDA 13 compiled."""
_OLDEST_CUDA = (13, 0)
_RESERVE_BYTES = 512 * 2**20
_RESERVE_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU that can be used.

    Attributes
    ----------
    index : int
        Its number, as in "cuda:0".
    name : str
    total_bytes, free_bytes : int
        Of its memory.
    compute_capability : tuple of int
    bytes_per_second : int
        Bandwidth of its memory by clock and bus; 0 if it does not tell.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    bytes_per_second: int

    @property
    def room_bytes(self) -> int:
        """What is free but for a reserve: the larger of 512 MiB and 5 % of the whole."""
        reserve = max(_RESERVE_BYTES, int(self.total_bytes * _RESERVE_SHARE))
        return max(0, self.free_bytes - reserve)


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver.

    Attributes
    ----------
    release : str
        As in "580.65.06"; empty if it cannot be asked.
    cuda : tuple of int
        The CUDA version that it supports.
    """

    release: str
    cuda: tuple[int, int]


def library() -> _core.DeviceLibrary:
    """Load the library of kernels, once.

    Raises
    ------
    DeviceError
        If there is none, or it cannot be loaded; says what to do.
    """
    return _load(library_path())


@functools.cache
def _load(path: Path) -> _core.DeviceLibrary:
    return _core.DeviceLibrary(str(path))


def library_path() -> Path:
    """Return where the library is.

    Raises
    ------
    DeviceError
        If this installation has none.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return Path(named)
    path = Path(__file__).parent / LIBRARY_NAME
    if path.is_file():
        return path
    raise DeviceError(
        f"this installation of llama2q has no CUDA kernels ({LIBRARY_NAME}); the wheels for Linux "
        "on x86-64 have them, and a build from source with nvcc 13 and "
        '--config-settings=cmake.define.LLAMA2Q_CUDA=ON makes them'
    )


def driver() -> Driver:
    """Ask the driver for its version.

    Raises
    ------
    DeviceError
        If there is none.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise DeviceError(
            "there is no NVIDIA driver (libcuda.so.1 was not found); install version "
            f"{OLDEST_DRIVER} or newer"
        ) from None
    number = ctypes.c_int(0)
    if cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
        raise DeviceError("the NVIDIA driver does not answer (cuDriverGetVersion)")
    return Driver(_release(), (number.value // 1000, number.value % 1000 // 10))


def _release() -> str:
    """Return the driver's release, from its management library; empty without one."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() != 0:
            return ""
        failed = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return ""
    return "" if failed else text.value.decode("ascii", "replace")


def find() -> list[Device]:
    """Return the GPUs that can be used, by their numbers.

    Raises
    ------
    DeviceError
        If there is none; names what is missing: kernels, driver, its version, a GPU.
    """
    if sys.platform != "linux":
        raise DeviceError("CUDA is supported on Linux alone")
    kernels = library()
    if LIBRARY_VARIABLE not in os.environ:
        _require_new(driver())
    found = [
        Device(
            index=index,
            name=str(values["name"]),
            total_bytes=values["total_bytes"],
            free_bytes=values["free_bytes"],
            compute_capability=values["compute_capability"],
            bytes_per_second=values["bytes_per_second"],
        )
        for index in range(kernels.n_devices)
        for values in [kernels.describe(index)]
    ]
    if not found:
        raise DeviceError("the driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it)")
    return found


def _require_new(found: Driver) -> None:
    if found.cuda < _OLDEST_CUDA:
        name = found.release or f"one for CUDA {found.cuda[0]}.{found.cuda[1]}"
        raise DeviceError(
            f"the GPU driver is {name}; version {OLDEST_DRIVER} or newer is needed"
        )
