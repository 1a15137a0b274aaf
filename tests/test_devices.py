"""What is asked for, and what is missing: kernels, driver, its version, a GPU.

Drivers are fakes, compiled here and found through LD_LIBRARY_PATH by a process of its own, whose
package is a folder of links, with or without a library of kernels.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama2q
from llama2q import _core, devices
from llama2q.devices import Device, DeviceRequest
from llama2q.errors import DeviceError, InvalidArgumentError

PACKAGE = Path(llama2q.__file__).parent
STAND_IN = PACKAGE / "libllama2q_stand_in.so"
KERNELS = next(
    (path for path in (PACKAGE / devices.LIBRARY_NAME, STAND_IN) if path.is_file()), None
)
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
OLD_DRIVER = "the GPU driver is 535.129.03; version 580 or newer is needed"
NO_KERNELS = "this installation of llama2q has no CUDA kernels"
NO_DRIVER = "there is no NVIDIA driver (libcuda.so.1 was not found); install version 580 or newer"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="CUDA is supported on Linux alone")
compiles = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
has_kernels = pytest.mark.skipif(
    KERNELS is None, reason="needs a library of kernels, or -DLLAMA2Q_TEST_LIBRARIES=ON"
)


# --- what users write -------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_requests(device: str) -> None:
    assert DeviceRequest.of(device, "auto", None) == DeviceRequest(device=device)
    assert DeviceRequest.of(device, 0, "2GB").gpu_memory == 2 * 10**9
    assert DeviceRequest.of(device, 7, 5) == DeviceRequest(
        device=device, gpu_layers=7, gpu_memory=5
    )


@pytest.mark.parametrize(
    ("device", "gpu_layers", "gpu_memory", "message"),
    [
        ("gpu", "auto", None, "device is 'gpu'; expected auto, cpu, cuda or cuda:N"),
        ("cuda:", "auto", None, "device is 'cuda:'"),
        ("cuda:-1", "auto", None, "device is 'cuda:-1'"),
        ("CUDA", "auto", None, "device is 'CUDA'"),
        ("cuda\n", "auto", None, "device is 'cuda"),
        (None, "auto", None, "device is None"),
        ("cpu", -1, None, "gpu_layers is -1"),
        ("cpu", "all", None, "gpu_layers is 'all'; expected \"auto\" or an integer"),
        ("cpu", 1.0, None, "gpu_layers is 1.0"),
        ("cpu", True, None, "gpu_layers is True"),
        ("cpu", None, None, "gpu_layers is None"),
        ("cpu", "auto", 0, "gpu_memory is 0"),
        ("cpu", "auto", -5, "gpu_memory is -5"),
        ("cpu", "auto", 1e9, "gpu_memory is 1000000000.0; expected bytes, or text like 7GB"),
        ("cpu", "auto", True, "gpu_memory is True"),
        ("cpu", "auto", "much", "much"),
    ],
)
def test_what_is_no_request(device: Any, gpu_layers: Any, gpu_memory: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        DeviceRequest.of(device, gpu_layers, gpu_memory)
    assert message in str(error.value)


def test_limit() -> None:
    device = Device(index=0, name="a", total_bytes=10**10, free_bytes=8 * 10**9, room_bytes=7)
    assert DeviceRequest().limit(device).room_bytes == 7
    assert DeviceRequest(gpu_memory=10**9).limit(device).room_bytes == 10**9
    assert DeviceRequest(gpu_memory=9 * 10**9).limit(device).room_bytes == 8 * 10**9


@pytest.mark.parametrize(
    ("total", "free", "room"),
    [
        (8 * 2**30, 7 * 2**30, 7 * 2**30 - 512 * 2**20),
        (100 * 2**30, 90 * 2**30, 85 * 2**30),
        (8 * 2**30, 2**20, 0),
    ],
)
def test_reserve(total: int, free: int, room: int) -> None:
    """The larger of 512 MiB and 5 % of the whole."""
    description: Any = {
        "name": "GPU",
        "total_bytes": total,
        "free_bytes": free,
        "compute_capability": (9, 0),
        "bytes_per_second": 0,
        "n_multiprocessors": 1,
        "shared_bytes": 1,
    }
    assert devices._device(2, description).room_bytes == room


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    with pytest.raises(DeviceError, match="CUDA is supported on Linux alone"):
        devices.find()


# --- libraries that are none of ours ----------------------------------------------------------


def compile_library(path: Path, source: str) -> Path:
    """Compile C to a shared library."""
    assert COMPILER is not None
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)],
        input=source, text=True, check=True, capture_output=True,
    )  # fmt: skip
    return path


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Name the library to take."""
    return lambda path: monkeypatch.setenv(devices.LIBRARY_VARIABLE, str(path))


@on_linux
def test_no_such_file(tmp_path: Path, named: Callable[[Path], None]) -> None:
    named(tmp_path / "absent.so")
    with pytest.raises(DeviceError, match=r"absent\.so: cannot open shared object file"):
        devices.find()


@on_linux
def test_a_file_that_is_no_library(tmp_path: Path, named: Callable[[Path], None]) -> None:
    path = tmp_path / "text.so"
    path.write_text("this is no library, but long enough to hold a header of one" * 4)
    named(path)
    with pytest.raises(DeviceError, match=r"text\.so: invalid ELF header"):
        devices.library()


@on_linux
@compiles
def test_a_library_without_the_table(tmp_path: Path, named: Callable[[Path], None]) -> None:
    named(compile_library(tmp_path / "other.so", "int other;"))
    message = r"other\.so has no llama2q_device_table; it is no library of llama2q"
    with pytest.raises(DeviceError, match=message):
        devices.library()


@on_linux
@compiles
def test_another_version_of_the_table(tmp_path: Path, named: Callable[[Path], None]) -> None:
    """Version and size are read before anything is called; the message has both of each."""
    path = compile_library(
        tmp_path / "newer.so", "unsigned llama2q_device_table[64] = {1000003, 256};"
    )
    named(path)
    with pytest.raises(DeviceError) as error:
        devices.library()
    found, _, expected = str(error.value).partition("; expected ")
    assert found == f"{path} offers version 1000003 (256 bytes) of the device table"
    numbers = re.fullmatch(r"version (\d+) \((\d+)( bytes)?\)\. Install llama2q again", expected)
    assert numbers is not None
    version, size = (int(number) for number in numbers.groups()[:2])
    same = compile_library(
        tmp_path / "shorter.so", f"unsigned llama2q_device_table[64] = {{{version}, {size - 8}}};"
    )
    with pytest.raises(DeviceError, match=rf"offers version {version} \({size - 8} bytes\)"):
        _core.DeviceLibrary(str(same))


# --- drivers ----------------------------------------------------------------------------------

CUDA = "int cuDriverGetVersion(int* version) {{ *version = {cuda}; return {error}; }}"
NVML = """
int nvmlInit_v2(void) {{ return {error}; }}
int nvmlShutdown(void) {{ return 0; }}
int nvmlSystemGetDriverVersion(char* text, unsigned length) {{
  const char* release = "{release}";
  unsigned i = 0;
  do {{ if (i >= length) return 7; text[i] = release[i]; }} while (release[i++] != 0);
  return 0;
}}
"""


class Place:
    """A package with or without a library of kernels, and where it finds a driver."""

    def __init__(self, folder: Path) -> None:
        self.packages, self.drivers = folder / "packages", folder / "drivers"
        package = self.packages / PACKAGE.name
        package.mkdir(parents=True)
        self.drivers.mkdir()
        for entry in PACKAGE.iterdir():
            if entry.name not in ("__pycache__", devices.LIBRARY_NAME):
                (package / entry.name).symlink_to(entry)
        self.kernels = package / devices.LIBRARY_NAME
        self.hide_driver()

    def add_kernels(self) -> None:
        assert KERNELS is not None
        self.kernels.symlink_to(KERNELS)

    def hide_driver(self) -> None:
        """Stand before this machine's own, if it has one."""
        for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
            (self.drivers / name).write_text("none" * 100)

    def add_driver(self, cuda: int, release: str | None, *, error: int = 0) -> None:
        for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
            (self.drivers / name).unlink()
        compile_library(self.drivers / "libcuda.so.1", CUDA.format(cuda=cuda, error=error))
        source = NVML.format(release=release or "", error=0 if release else 999)
        compile_library(self.drivers / "libnvidia-ml.so.1", source)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if name != devices.LIBRARY_VARIABLE
        }
        environment |= {
            "PYTHONPATH": str(self.packages),
            "LD_LIBRARY_PATH": str(self.drivers),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def error(self) -> str:
        """What find() raises."""
        code = (
            "from llama2q import devices, errors\n"
            "try:\n"
            "    print([gpu.name for gpu in devices.find()])\n"
            "except errors.DeviceError as error:\n"
            "    print(error)\n"
        )
        done = self.python("-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def generate(self, path: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Load the file with these options; print tokens, and warnings to stderr."""
        code = (
            "import json, logging, sys, llama2q\n"
            "logging.basicConfig(level=logging.WARNING, format='%(levelname)s %(message)s')\n"
            f"with llama2q.load({str(path)!r}, n_ctx=64, **{options!r}) as llm:\n"
            "    completion = llm.generate('The river', max_tokens=12, seed=3)\n"
            "    print(json.dumps(completion.token_ids))\n"
        )
        return self.python("-c", code)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@on_linux
def test_without_kernels(place: Place) -> None:
    error = place.error()
    assert error.startswith(NO_KERNELS)
    assert "LLAMA2Q_CUDA=ON" in error


@on_linux
@has_kernels
def test_without_driver(place: Place) -> None:
    place.add_kernels()
    assert place.error() == NO_DRIVER


@on_linux
@compiles
@has_kernels
@pytest.mark.parametrize(
    ("cuda", "release", "message"),
    [
        (12020, "535.129.03", OLD_DRIVER),
        (12090, None, "the GPU driver is one for CUDA 12.9; version 580 or newer is needed"),
        (7050, "352.39", "the GPU driver is 352.39; version 580 or newer is needed"),
    ],
)
def test_old_drivers(place: Place, cuda: int, release: str | None, message: str) -> None:
    place.add_kernels()
    place.add_driver(cuda, release)
    assert place.error() == message


@on_linux
@compiles
@has_kernels
def test_a_driver_that_does_not_answer(place: Place) -> None:
    place.add_kernels()
    place.add_driver(13000, "580.65.06", error=999)
    assert place.error() == "the NVIDIA driver does not answer (cuDriverGetVersion)"


@on_linux
@compiles
@pytest.mark.skipif(not STAND_IN.is_file(), reason="needs -DLLAMA2Q_TEST_LIBRARIES=ON")
@pytest.mark.parametrize(("cuda", "release"), [(13000, "580.65.06"), (14010, None)])
def test_new_drivers(place: Place, cuda: int, release: str | None) -> None:
    place.kernels.symlink_to(STAND_IN)
    place.add_driver(cuda, release)
    assert place.error() == "['stand-in 0']"


@pytest.fixture(scope="module")
def tokens(mini_file: Path) -> list[int]:
    with llama2q.load(mini_file, n_ctx=64, device="cpu") as llm:
        return list(llm.generate("The river", max_tokens=12, seed=3).token_ids)


@on_linux
@compiles
@has_kernels
def test_driver_535(place: Place, mini_file: Path, tokens: list[int]) -> None:
    """An error where a GPU was asked for; else one warning, and the CPU's tokens."""
    place.add_kernels()
    place.add_driver(12020, "535.129.03")
    for options in ({"device": "cuda"}, {"device": "cuda:0"}, {"gpu_layers": 2}):
        done = place.generate(mini_file, **options)
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1] == f"llama2q.errors.DeviceError: {OLD_DRIVER}"
    done = place.generate(mini_file, device="auto")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == tokens
    assert done.stderr.splitlines() == [f"WARNING {OLD_DRIVER}. Running on the CPU."]
    done = place.generate(mini_file, device="cpu")
    assert (json.loads(done.stdout), done.stderr) == (tokens, "")


@on_linux
@compiles
@has_kernels
def test_doctor_of_driver_535(place: Place) -> None:
    place.add_kernels()
    place.add_driver(12020, "535.129.03")
    done = place.python("-m", "llama2q", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cuda"] == OLD_DRIVER


@on_linux
@compiles
def test_a_driver_without_kernels(place: Place, mini_file: Path, tokens: list[int]) -> None:
    """Who has a driver is told why it is not used."""
    place.add_driver(13000, "580.65.06")
    done = place.generate(mini_file)
    assert json.loads(done.stdout) == tokens
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"WARNING {NO_KERNELS}")
    assert line.endswith("Running on the CPU.")


@on_linux
def test_nothing_at_all(place: Place, mini_file: Path, tokens: list[int]) -> None:
    """Without driver and kernels nothing is said, unless a GPU is asked for."""
    done = place.generate(mini_file)
    assert (json.loads(done.stdout), done.stderr) == (tokens, "")
    done = place.generate(mini_file, device="cuda")
    assert done.returncode == 1
    assert f"DeviceError: {NO_KERNELS}" in done.stderr


def test_an_error_is_a_warning_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> list[Device]:
        raise DeviceError("no luck")

    monkeypatch.setattr(devices, "find", fail)
    caplog.set_level(logging.DEBUG, "llama2q.devices")
    for has_gpu, level in ((True, logging.WARNING), (False, logging.DEBUG)):
        caplog.clear()
        monkeypatch.setattr(devices, "has_gpu", lambda found=has_gpu: found)
        assert DeviceRequest().find() == []
        (record,) = caplog.records
        assert (record.levelno, record.message) == (level, "no luck. Running on the CPU.")
        for request in (DeviceRequest(device="cuda"), DeviceRequest(gpu_layers=1)):
            with pytest.raises(DeviceError, match="no luck"):
                request.find()
    assert DeviceRequest(device="cpu").find() == DeviceRequest(gpu_layers=0).find() == []
