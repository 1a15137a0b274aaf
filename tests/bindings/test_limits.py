"""The probes of the machine's limits: what they take and give, never how fast."""

from __future__ import annotations

import pytest

from llama2q import _core
from llama2q.errors import InvalidArgumentError, UnsupportedIsaError

MIB = 1 << 20


@pytest.mark.parametrize("isa", _core.isas())
def test_rates(isa: str) -> None:
    for n_threads in (1, 2):
        dots = _core.measure_dot_rate(isa, n_threads, 0.01)
        assert dots
        assert all(rate > 0 for rate in dots.values())
        reads = _core.measure_read_bandwidth(isa, n_threads, 3 * MIB, 0.01)
        assert len(reads) == 64
        assert all(rate > 0 for rate in reads.values())


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0, float("nan"), float("inf")])
def test_wrong_seconds(seconds: float) -> None:
    for measure in (_core.measure_dot_rate, _core.measure_read_bandwidth):
        with pytest.raises(InvalidArgumentError, match="seconds"):
            measure(seconds=seconds)


@pytest.mark.parametrize("n_bytes", [0, -1, MIB - 1, 2**62, -(2**63)])
def test_wrong_size(n_bytes: int) -> None:
    with pytest.raises(InvalidArgumentError, match="n_bytes"):
        _core.measure_read_bandwidth(n_bytes=n_bytes)


@pytest.mark.parametrize("n_threads", [0, -1, 1025])
def test_wrong_threads(n_threads: int) -> None:
    for measure in (_core.measure_dot_rate, _core.measure_read_bandwidth):
        with pytest.raises(InvalidArgumentError, match="n_threads"):
            measure(n_threads=n_threads)


def test_unknown_isa() -> None:
    for measure in (_core.measure_dot_rate, _core.measure_read_bandwidth):
        with pytest.raises(UnsupportedIsaError, match="sse9"):
            measure(isa="sse9")
