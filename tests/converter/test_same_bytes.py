"""Every method gives the same file on any machine, for any instruction set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import llama2q
from llama2q import _core
from llama2q.calibrate import calibration
from llama2q.format import L2qFile

# SHA-256 over the hex digits of the hashes of all tensors of the demo model, in the file's order.
KNOWN = {
    ("int4", "rtn"): "81e7c6f47adf08382d3893e0d2544656320826c2c8827edbaf506a2f2308887b",
    ("int4", "search"): "44d864500f4b69aa824c3b4299d2976a2de0665a2a6d0484869818fdeeea989e",
    ("int4", "calibrated"): "f26a6456a56d3396c0099806e1e645de8ca39f5d8a1130dd351d191b7ca87894",
    ("int4", "gptq"): "fd9a2bf230b052536987f751e2c6a65464706ae906a15eea34c47a4760e128f7",
    ("int8", "rtn"): "ad366062e1930a6f9973abb8fa265ac6abb4db923bea7aca7a6071756e35d739",
    ("none", None): "1ffb94f09e19b4a6c4af0ca29205b5db6f430569eede43af8f4111b774cb7c21",
}
N_TOKENS = 1024
"""Of the calibration: few, for the scalar kernels' sake."""
CONVERT = """
import sys, llama2q
from llama2q.calibrate import calibration
calibration.N_TOKENS = int(sys.argv[4])
llama2q.convert(*sys.argv[1:3], method=sys.argv[3], n_threads=1)
"""


@pytest.fixture(scope="module")
def convert(
    mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str | None], Path]]:
    """Convert the demo model with few tokens, once per method."""
    folder = tmp_path_factory.mktemp("same")

    def once(quant: str, method: str | None) -> Path:
        path = folder / f"{quant}-{method}.l2q"
        if not path.exists():
            llama2q.convert(mini_checkpoint, path, quant=quant, method=method)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "N_TOKENS", N_TOKENS)
        yield once


@pytest.mark.parametrize(("quant", "method"), KNOWN)
def test_known_bytes(
    convert: Callable[[str, str | None], Path], quant: str, method: str | None
) -> None:
    """Computed once, on x86-64 with AVX-512: no CPU, compiler or system may change them."""
    with L2qFile(convert(quant, method)) as file:
        digits = "".join(file.metadata.sha256[name] for name in file.tensors)
    assert hashlib.sha256(digits.encode()).hexdigest() == KNOWN[quant, method]


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize(
    "method",
    [
        "rtn",
        "search",
        pytest.param("calibrated", marks=pytest.mark.slow),
        pytest.param("gptq", marks=pytest.mark.slow),
    ],
)
def test_instruction_sets(
    convert: Callable[[str, str | None], Path],
    mini_checkpoint: Path,
    tmp_path: Path,
    method: str,
    isa: str,
) -> None:
    path = tmp_path / "x.l2q"
    command = [sys.executable, "-c", CONVERT, mini_checkpoint, path, method, str(N_TOKENS)]
    environment = {**os.environ, "LLAMA2Q_ISA": isa}
    subprocess.run(command, env=environment, check=True, timeout=600)
    assert path.read_bytes() == convert("int4", method).read_bytes()
