"""GPUs: the library of their kernels, the driver, and what each of them offers."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from llama2q import _core
from llama2q.errors import DeviceError, InvalidArgumentError
from llama2q.memory import parse_size

_log = logging.getLogger(__name__)

LIBRARY_VARIABLE = "LLAMA2Q_CUDA_LIBRARY"
"""Names another library of kernels than the one beside this package."""
LIBRARY_NAME = "libllama2q_cuda.so"
OLDEST_DRIVER = 580
"""The first driver that runs what CUDA 13 compiled."""
_OLDEST_CUDA = (13, 0)
_RESERVE_BYTES = 512 * 2**20
_RESERVE_SHARE = 0.05
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


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
    room_bytes : int
        What may be taken: what is free but for a reserve, the larger of 512 MiB and 5 % of the
        whole, unless the user said how much.
    compute_capability : tuple of int
    bytes_per_second : int
        Bandwidth of its memory by clock and bus; 0 if it does not tell.
    n_multiprocessors, shared_bytes : int
        They decide its work space: how many, and the shared memory that a block may have.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    room_bytes: int
    compute_capability: tuple[int, int] = (0, 0)
    bytes_per_second: int = 0
    n_multiprocessors: int = 128
    shared_bytes: int = 99 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """Which devices a user wants.

    Attributes
    ----------
    device : str
        "auto": GPUs where there are any; "cpu"; "cuda": all GPUs, or an error that says why not;
        "cuda:N": that one.
    gpu_layers : int or "auto"
        Layers on GPUs; "auto": as many as fit.
    gpu_memory : int or None
        Bytes of each GPU that may be taken; None: what is free but for a reserve.
    stream_prefill : int, "auto" or None
        Passes of at least so many tokens send the CPU's layers through a GPU; "auto": where that
        is faster; None: never.
    """

    device: str = "auto"
    gpu_layers: int | Literal["auto"] = "auto"
    gpu_memory: int | None = None
    stream_prefill: int | Literal["auto"] | None = "auto"

    @classmethod
    def of(
        cls,
        device: str,
        gpu_layers: int | str,
        gpu_memory: int | str | None,
        stream_prefill: int | str | None = "auto",
    ) -> Self:
        """Read what users write.

        Raises
        ------
        InvalidArgumentError
            If one of them is none of the above; gpu_memory may be text like "7GB".
        """
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise InvalidArgumentError(f"device is {device!r}; expected auto, cpu, cuda or cuda:N")
        layers: int | Literal["auto"]
        if gpu_layers == "auto":
            layers = "auto"
        elif type(gpu_layers) is int and gpu_layers >= 0:
            layers = gpu_layers
        else:
            raise InvalidArgumentError(
                f'gpu_layers is {gpu_layers!r}; expected "auto" or an integer of at least 0'
            )
        if isinstance(gpu_memory, str):
            gpu_memory = parse_size(gpu_memory)
        if gpu_memory is not None and (type(gpu_memory) is not int or gpu_memory < 1):
            raise InvalidArgumentError(
                f"gpu_memory is {gpu_memory!r}; expected bytes, or text like 7GB"
            )
        stream: int | Literal["auto"] | None
        if stream_prefill == "auto":
            stream = "auto"
        elif stream_prefill is None or (type(stream_prefill) is int and stream_prefill >= 1):
            stream = stream_prefill
        else:
            raise InvalidArgumentError(
                f'stream_prefill is {stream_prefill!r}; expected "auto", None or an integer of at '
                "least 1"
            )
        return cls(device=device, gpu_layers=layers, gpu_memory=gpu_memory, stream_prefill=stream)

    def find(self) -> list[Device]:
        """Return the devices to use; none where "auto" finds none.

        Raises
        ------
        DeviceError
            If there is not what was asked for by name.
        """
        if self.device == "cpu" or self.gpu_layers == 0:
            return []
        try:
            found = find()
        except DeviceError as error:
            if self.device != "auto" or self.gpu_layers != "auto":
                raise
            level = logging.WARNING if has_gpu() else logging.DEBUG
            _log.log(level, "%s. Running on the CPU.", error)
            return []
        if ":" in self.device:
            index = int(self.device.partition(":")[2])
            if index >= len(found):
                raise DeviceError(
                    f"device is {self.device!r}; there are {len(found)} GPUs, the first is cuda:0"
                )
            found = [found[index]]
        return [self.limit(device) for device in found]

    def limit(self, device: Device) -> Device:
        """Apply gpu_memory to a device."""
        if self.gpu_memory is None:
            return device
        return replace(device, room_bytes=min(self.gpu_memory, device.free_bytes))


CPU_ONLY = DeviceRequest(device="cpu")


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
        "--config-settings=cmake.define.LLAMA2Q_CUDA=ON makes them"
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
    if not os.environ.get(LIBRARY_VARIABLE):
        _require_new(driver())
    found = [_device(index, kernels.describe(index)) for index in range(kernels.n_devices)]
    if not found:
        raise DeviceError("the driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it)")
    return found


def has_gpu() -> bool:
    """Whether there is a driver, so that a user may expect a GPU to be used."""
    try:
        driver()
    except DeviceError:
        return False
    return True


def _device(index: int, found: _core.DeviceDescription) -> Device:
    reserve = max(_RESERVE_BYTES, int(found["total_bytes"] * _RESERVE_SHARE))
    return Device(
        index=index,
        name=found["name"],
        total_bytes=found["total_bytes"],
        free_bytes=found["free_bytes"],
        room_bytes=max(0, found["free_bytes"] - reserve),
        compute_capability=found["compute_capability"],
        bytes_per_second=found["bytes_per_second"],
        n_multiprocessors=found["n_multiprocessors"],
        shared_bytes=found["shared_bytes"],
    )


def _require_new(found: Driver) -> None:
    if found.cuda < _OLDEST_CUDA:
        name = found.release or f"one for CUDA {found.cuda[0]}.{found.cuda[1]}"
        raise DeviceError(f"the GPU driver is {name}; version {OLDEST_DRIVER} or newer is needed")
