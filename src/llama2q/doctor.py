"""What this machine offers and whether llama2q computes right on it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama2q import _core, devices, host, memory, self_test
from llama2q.errors import DeviceError, UnsupportedIsaError
from llama2q.memory import format_size

_BANDWIDTH_BYTES = 256 * 10**6
_MATMUL_ROWS, _MATMUL_TOKENS = 2048, 64
_BENCH_SECONDS = 0.5
_DECODED_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What `examine` found.

    Attributes
    ----------
    versions : dict
        Of llama2q, Python, NumPy, the compiler and the system.
    cpu : dict
        Name, features, cores and threads.
    isa : dict
        Instruction sets compiled in, available, and chosen, and why.
    memory : dict
        Bytes in all, free, and what the cgroup allows (None: no limit).
    cuda : str
        The GPUs that can be used, or why none can.
    warnings : list of str
    self_test : list of SelfTestRun
    bench : dict
        Measured rates; empty where the self-test failed.
    """

    versions: dict[str, str]
    cpu: dict[str, Any]
    isa: dict[str, Any]
    memory: dict[str, int | None]
    cuda: str
    warnings: list[str]
    self_test: list[self_test.SelfTestRun]
    bench: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether the self-test passed."""
        return bool(self.self_test) and all(run.ok for run in self.self_test)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `ok`, for JSON."""
        return {**asdict(self), "ok": self.ok}


def examine() -> Health:
    """Look at the machine, run the self-test and a short bench (some seconds)."""
    isa = _isa()
    runs = self_test.run_self_test()
    passed = all(run.ok for run in runs)
    return Health(
        versions=_versions(),
        cpu=_cpu(),
        isa=isa,
        memory=_memory(),
        cuda=_cuda(),
        warnings=_warnings(isa),
        self_test=runs,
        bench=_bench() if passed and isa["chosen"] is not None else {},
    )


def _versions() -> dict[str, str]:
    return {
        "llama2q": _core.__version__,
        "compiler": _core.COMPILER,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu() -> dict[str, Any]:
    import psutil

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "name": host.cpu_name(),
        "features": _core.cpu_features(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "affinity_cores": affinity,
        "cgroup_quota_cores": _quota_cores(),
        "threads": _core.default_threads(),
    }


def _quota_cores() -> float | None:
    """Return the cores that the cgroup's CPU quota allows, or None."""
    folder = Path("/sys/fs/cgroup")
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            text = " ".join((folder / name).read_text(encoding="ascii") for name in names)
        except OSError:
            continue
        quota, period = text.split()[:2]
        if quota.isdigit() and int(period) > 0:
            return int(quota) / int(period)
    return None


def _isa() -> dict[str, Any]:
    available = _core.isas()
    forced = os.environ.get("LLAMA2Q_ISA", "")
    try:
        chosen: str | None = _core.default_isa()
        why = f"LLAMA2Q_ISA={forced}" if forced else "the fastest that is compiled in and available"
    except UnsupportedIsaError as error:
        chosen, why = None, str(error)
    return {
        "compiled": _core.compiled_isas(),
        "available": available,
        "chosen": chosen,
        "why": why,
    }


def _memory() -> dict[str, int | None]:
    import psutil

    return {
        "total_bytes": int(psutil.virtual_memory().total),
        "available_bytes": memory.available_bytes(),
        "cgroup_limit_bytes": memory.cgroup_limit_bytes(),
    }


def _cuda() -> str:
    try:
        found = devices.find()
    except DeviceError as error:
        named = os.environ.get(devices.LIBRARY_VARIABLE)
        return str(error).replace(named, f"${devices.LIBRARY_VARIABLE}") if named else str(error)
    gpus = "; ".join(
        f"{gpu.name}, compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}, "
        f"{format_size(gpu.free_bytes)} free of {format_size(gpu.total_bytes)}"
        for gpu in found
    )
    return f"{gpus} (kernels for {devices.library().targets})"


def _warnings(isa: dict[str, Any]) -> list[str]:
    found = []
    if isa["chosen"] is None:
        found.append(isa["why"])
    elif isa["chosen"] != isa["available"][-1]:
        found.append(f"a faster instruction set is available: {isa['available'][-1]}")
    elif isa["chosen"] == "scalar":
        found.append("only the scalar kernels are used: correct, and slow")
    if sys.maxsize < 2**32:
        found.append("this Python is a 32-bit program; models need a 64-bit one")
    if host.is_translated():
        found.append(host.ROSETTA)
    return found


def _bench() -> dict[str, float]:
    return {
        "read_gb_per_second": round(_read_rate() / 1e9, 2),
        "int8_matmul_gops_per_second": round(_matmul_rate() / 1e9, 1),
        "tiny_model_tokens_per_second": round(_decode_rate(), 1),
    }


def _best_seconds(call: Callable[[], object]) -> float:
    """Return the shortest time of a call, over about half a second."""
    best, end = float("inf"), time.perf_counter() + _BENCH_SECONDS
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def _read_rate() -> float:
    """Return the bytes per second at which all threads together read memory."""
    n_threads = _core.default_threads()
    data = np.ones(_BANDWIDTH_BYTES // 8, np.uint64)
    parts = np.array_split(data, n_threads)
    with ThreadPoolExecutor(n_threads) as pool:
        return data.nbytes / _best_seconds(lambda: list(pool.map(np.bitwise_or.reduce, parts)))


def _matmul_rate() -> float:
    """Return integer operations (a multiplication and an addition each) per second."""
    rows = _MATMUL_ROWS
    weights = np.ones((rows, rows), np.float32)
    matrix = _core.Matrix.int8(*_core.quantize_int8(weights, 64), rows, rows)
    x = np.ones((_MATMUL_TOKENS, rows), np.float32)
    return 2 * rows * rows * _MATMUL_TOKENS / _best_seconds(lambda: _core.matmul(x, matrix))


def _decode_rate() -> float:
    """Return tokens per second of the self-test's model, one by one."""
    return _DECODED_TOKENS / self_test.decode_seconds(_DECODED_TOKENS)
