"""The golden driver on this machine: every instruction set replays the scalar kernels' results."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from golden import kernels
from golden.build import build_driver
from golden.container import Case, write_golden
from llama2q import _core


def replay(driver: Path, *arguments: str | Path, isa: str = "") -> tuple[int, list[str]]:
    """Return the driver's exit code and what it says."""
    done = subprocess.run(
        [str(part) for part in (driver, *arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "LLAMA2Q_ISA": isa},
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_names_are_unique(tmp_path: Path) -> None:
    case = Case("one", "exp", {})
    with pytest.raises(ValueError, match="two cases are named one"):
        write_golden(tmp_path / "file", [case, case])


def test_every_kernel_has_cases() -> None:
    """The generator runs, its results are results, and each op of the driver occurs."""
    ops = set()
    for case in kernels.cases():
        ops.add(case.op)
        assert "refused" in case.fields or len(case.fields) > 1, case.name
    assert ops == {
        "quantize_rows", "rms_norm", "rope", "exp", "swiglu", "matmul", "gate_up", "embed",
        "attention", "sample", "logprobs", "quantize_weights",
    }  # fmt: skip


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, built for this machine."""
    return build_driver(tmp_path_factory.mktemp("native"))


@pytest.mark.slow
def test_native(driver: Path, golden_kernels: Path, golden_steps: Path) -> None:
    code, lines = replay(driver, golden_kernels, golden_steps)
    assert code == 0, lines
    assert lines[1] == " ".join(["available:", *_core.isas()])
    assert lines[2] == " ".join(["features:", *_core.cpu_features()])
    equal = [line.split(": ") for line in lines[3:]]
    assert [name for name, _ in equal] == _core.isas()
    assert len({said for _, said in equal}) == 1


@pytest.mark.slow
def test_one_isa(driver: Path, golden_kernels: Path) -> None:
    code, lines = replay(driver, golden_kernels, isa="scalar")
    assert (code, lines[0], len(lines)) == (0, "default: scalar", 4)
    code, lines = replay(driver, "--isa", "scalar", golden_kernels)
    assert (code, lines[3][:8], len(lines)) == (0, "scalar: ", 4)
    code, lines = replay(driver, golden_kernels, isa="sse9")
    assert code == 2
    assert '"sse9" is not available' in lines[0]


@pytest.mark.slow
def test_a_difference_is_named(driver: Path, tmp_path: Path) -> None:
    """One bit of one recorded result."""
    path = tmp_path / "changed"
    x = np.linspace(-3, 3, 40, dtype=np.float32)
    y = _core.exp(x, "scalar")
    y[33:34].view(np.uint32)[0] ^= 1
    write_golden(path, [Case("the exp", "exp", {"x": x, "y": y})])
    code, lines = replay(driver, path)
    assert code == 1
    assert lines[-1].startswith("scalar: the exp: y[33] has bits 0x")


@pytest.mark.slow
def test_other_files(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, said in ((b"no golden file", "is no golden file"), (b"l2qgold1\x01", "ends too")):
        path.write_bytes(content)
        code, lines = replay(driver, path)
        assert code == 2
        assert said in lines[-1]
    write_golden(path, [Case("one", "no such op", {})])
    code, lines = replay(driver, path)
    assert code == 2
    assert "there is no op no such op" in lines[-1]
