"""How fast a planned model will decode: bytes of weights over bandwidths."""

from __future__ import annotations

from llama2q import _core
from llama2q.plan import Plan, threads_for

HOST_SHARE = 0.75
"""Of the bandwidth that the probe reads at: 71 to 79 % of it with 7B int4, docs/performance.md."""
DEVICE_SHARE = 0.85
"""Of the bandwidth by a GPU's clock and bus: the goal of our kernels, not a measurement."""
HOP_SECONDS = 50e-6
"""One way of a row from the host to a device or back, waiting included; assumed."""
_PROBE_BYTES = 2**28
_PROBE_SECONDS = 0.03


def predict(
    plan: Plan, *, n_threads: int | None = None, host_bandwidth: float | None = None
) -> float | None:
    """Predict tokens per second of one sequence at a short context.

    Parameters
    ----------
    plan : Plan
        Its weights are read once a token, each where it is: on the host at 75 % of the bandwidth
        that its threads can read at, on a GPU at 85 % of its memory's, and two hops a GPU.
    n_threads : int or None
        Computing threads that are asked for, as in `llama2q.load`.
    host_bandwidth : float or None
        Bytes per second that these threads can read; None measures it, in less than a second, if
        the host has layers.

    Returns
    -------
    float or None
        None where it cannot be told: weights that do not fit the memory, or a GPU that does not say
        how fast its memory is.
    """
    shares = plan.devices
    if not plan.fits or not all(share.bytes_per_second for share in shares):
        return None
    seconds = 2 * HOP_SECONDS * len(shares)
    seconds += sum(share.read_bytes / (DEVICE_SHARE * share.bytes_per_second) for share in shares)
    if plan.read_bytes:
        if host_bandwidth is None:
            rates = _core.measure_read_bandwidth(
                None, threads_for(n_threads), _PROBE_BYTES, _PROBE_SECONDS
            )
            host_bandwidth = max(rates.values())
        seconds += plan.read_bytes / (HOST_SHARE * host_bandwidth)
    return 1 / seconds
