"""What a measurement must name: the machine, its system, the compiler and the date."""

from __future__ import annotations

import os
import platform
import time

import psutil

from llama2q import _core
from llama2q.host import cpu_name


def describe_machine() -> dict[str, str]:
    """Return facts that a reader needs to judge a figure; no host names or paths."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "CPU": cpu_name(),
        "cores": f"{_core.default_threads()} used of {psutil.cpu_count(logical=False)}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "compiler": _core.COMPILER,
        "llama2q": _core.__version__ or "not installed",
        "load before": f"{load:.1f}",
    }
