"""Rounding to nearest gives the same file on any machine, for any instruction set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama2q import _core
from llama2q.format import L2qFile

# SHA-256 over the hex digits of the hashes of all tensors of the demo model, in the file's order.
KNOWN = {
    "int4": "81e7c6f47adf08382d3893e0d2544656320826c2c8827edbaf506a2f2308887b",
    "int8": "ad366062e1930a6f9973abb8fa265ac6abb4db923bea7aca7a6071756e35d739",
    "none": "1ffb94f09e19b4a6c4af0ca29205b5db6f430569eede43af8f4111b774cb7c21",
}


@pytest.mark.parametrize("quant", KNOWN)
def test_known_bytes(convert_mini: Callable[..., Path], quant: str) -> None:
    """Computed once, on x86-64 with AVX-512: no CPU, compiler or system may change them."""
    with L2qFile(convert_mini(quant=quant)) as file:
        digits = "".join(file.metadata.sha256[name] for name in file.tensors)
    assert hashlib.sha256(digits.encode()).hexdigest() == KNOWN[quant]


@pytest.mark.parametrize("isa", _core.isas())
def test_instruction_sets(
    convert_mini: Callable[..., Path], mini_checkpoint: Path, tmp_path: Path, isa: str
) -> None:
    path = tmp_path / "x.l2q"
    code = f"import llama2q; llama2q.convert({str(mini_checkpoint)!r}, {str(path)!r}, n_threads=1)"
    environment = {**os.environ, "LLAMA2Q_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert path.read_bytes() == convert_mini().read_bytes()
