"""How long the library of kernels stays mapped."""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path

import pytest

import llama2q
from llama2q import _core

STAND_IN = Path(llama2q.__file__).parent / "libllama2q_stand_in.so"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.skipif(not STAND_IN.is_file(), reason="needs -DLLAMA2Q_TEST_LIBRARIES=ON")
def test_it_outlives_its_last_user(tmp_path: Path) -> None:
    """The CUDA runtime leaves functions behind that the process calls when it ends."""
    path = tmp_path / "libllama2q_mapped_once.so"
    shutil.copy(STAND_IN, path)
    library = _core.DeviceLibrary(str(path))
    assert library.targets
    del library
    gc.collect()
    assert path.name in Path("/proc/self/maps").read_text()
