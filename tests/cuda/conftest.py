"""What tests on the emulated library share."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator

import pytest

from emulated_models import LIBRARY
from llama2q import devices

HAS_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[HAS_FAILED] = True
    return report


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Use the library; all of its device's memory is free again after a test that passes.

    The traceback of one that fails holds on to its models.
    """
    if not LIBRARY.is_file():
        pytest.skip("needs a build with -DLLAMA2Q_TEST_LIBRARIES=ON")
    monkeypatch.setenv(devices.LIBRARY_VARIABLE, str(LIBRARY))
    yield
    if request.node.stash.get(HAS_FAILED, False):
        return
    gc.collect()
    for device in devices.find():
        assert device.free_bytes == device.total_bytes
