"""What tests on the emulated library share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from emulated_models import LIBRARY
from llama2q import devices


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the library; all of its device's memory is free again after the test."""
    if not LIBRARY.is_file():
        pytest.skip("needs a build with -DLLAMA2Q_TEST_LIBRARIES=ON")
    monkeypatch.setenv(devices.LIBRARY_VARIABLE, str(LIBRARY))
    yield
    gc.collect()
    for device in devices.find():
        assert device.free_bytes == device.total_bytes
