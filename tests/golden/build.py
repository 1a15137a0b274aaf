"""Builds of the golden driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LIMIT_S = 560


def build_driver(folder: Path, *options: str) -> Path:
    """Build the driver with these CMake options, warnings as errors.

    Parameters
    ----------
    folder : Path
        The build folder.
    *options : str
        Such as a compiler.

    Returns
    -------
    Path
        The program.
    """
    # cmake and ninja may be installed beside Python and nowhere else.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for command in (
        ["cmake", "-S", PROJECT, "-B", folder, "-G", "Ninja", "-DLLAMA2Q_GOLDEN=ON",
         "-DLLAMA2Q_WERROR=ON", *options],
        ["cmake", "--build", folder, "--parallel", "2"],
    ):  # fmt: skip
        done = subprocess.run(
            [str(part) for part in command], env={**os.environ, "PATH": path},
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (driver,) = folder.glob("tests/golden/cpp/golden*")
    return driver
