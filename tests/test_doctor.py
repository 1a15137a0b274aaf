"""The doctor: the self-test has teeth, the facts are right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from llama2q import _core, doctor, self_test
from llama2q.cli.doctor import markdown, rows
from llama2q.devices import Device
from llama2q.errors import DeviceError
from llama2q.format import L2qFile

CUDA_ERROR = "there is no GPU, says this test"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the bench short."""
    monkeypatch.setattr(doctor, "_BENCH_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "_BANDWIDTH_BYTES", 10**6)


def test_every_instruction_set_gives_the_published_bits() -> None:
    runs = self_test.run_self_test()
    assert [run for run in runs if not run.ok] == []
    found = {(run.quant, run.kv_dtype, run.isa, run.n_threads) for run in runs}
    assert len(found) == len(runs) == 3 * len(_core.isas()) * 2


@pytest.mark.parametrize("quant", ["int4", "int8", "none"])
def test_the_tiny_model_is_sound_and_says_something(tmp_path: Path, quant: str) -> None:
    path = tmp_path / "x.l2q"
    self_test.write_tiny_model(path, quant)
    first = path.read_bytes()
    with L2qFile(path) as file:
        file.verify()
        model = self_test.build_model(file, kv_dtype="f16", n_blocks=5)
        logits = np.concatenate(list(self_test._steps(model)))
    assert logits.shape == (8 + 4, self_test.CONFIG.vocab_size)
    assert 0.5 < logits.std() < 5
    self_test.write_tiny_model(path, quant)
    assert path.read_bytes() == first


def test_one_changed_code_changes_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    self_test.write_tiny_model(path, "int4")
    with L2qFile(path) as file:
        info = file.tensors["layers.1.feed_forward.w2.weight.codes"]
    data = bytearray(path.read_bytes())
    data[info.offset] ^= 1
    path.write_bytes(data)
    with L2qFile(path) as file:
        found = self_test.logits_hash(file, "f16", "scalar", 1)
    assert found != self_test.EXPECTED["int4", "f16"]


@pytest.mark.usefixtures("quick")
def test_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> list[Device]:
        raise DeviceError(CUDA_ERROR)

    monkeypatch.setattr(doctor.devices, "find", find)
    health = doctor.examine()
    assert health.ok
    assert health.isa["chosen"] == _core.default_isa()
    assert set(health.isa["available"]) <= set(health.isa["compiled"])
    assert health.cpu["threads"] == _core.default_threads()
    assert health.versions["compiler"] == _core.COMPILER != ""
    assert health.cuda == CUDA_ERROR
    assert set(health.bench) == {
        "read_gb_per_second",
        "int8_matmul_gops_per_second",
        "tiny_model_tokens_per_second",
    }
    assert all(value > 0 for value in health.bench.values())


@pytest.mark.usefixtures("quick")
def test_no_path_of_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A report names none, not even that of a library which cannot be loaded."""
    path = tmp_path / "no_library.so"
    path.write_bytes(b"no library")
    monkeypatch.setenv("LLAMA2Q_CUDA_LIBRARY", str(path))
    found = doctor.examine().cuda
    assert str(tmp_path) not in found
    assert "$LLAMA2Q_CUDA_LIBRARY" in found


@pytest.mark.usefixtures("quick")
def test_forced_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2Q_ISA", "scalar")
    health = doctor.examine()
    assert (health.isa["chosen"], health.isa["why"]) == ("scalar", "LLAMA2Q_ISA=scalar")
    assert len(health.warnings) == 1
    monkeypatch.setenv("LLAMA2Q_ISA", "sse9")
    health = doctor.examine()
    assert health.isa["chosen"] is None
    assert "sse9" in health.warnings[0]
    assert health.ok
    assert health.bench == {}


@pytest.mark.usefixtures("quick")
def test_a_failed_self_test_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(self_test.EXPECTED, ("int8", "int8"), "0" * 64)
    health = doctor.examine()
    assert not health.ok
    assert health.bench == {}
    text = dict(rows(health))["self-test"]
    assert text.startswith(f"FAILED in {2 * len(_core.isas())} of {6 * len(_core.isas())} runs: ")
    assert "int8, KV int8, scalar" in text


@pytest.mark.usefixtures("quick")
def test_report_names_no_place_and_no_user() -> None:
    report = markdown(doctor.examine())
    lines = report.splitlines()
    assert lines[0] == "### llama2q doctor"
    assert all(line.startswith("|") and line.count("|") == 3 for line in lines[2:])
    assert str(Path.home()) not in report
    assert str(Path.cwd()) not in report
    assert "/tmp" not in report


def test_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "Path", lambda _: tmp_path)
    assert doctor._quota_cores() is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert doctor._quota_cores() is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    assert doctor._quota_cores() == 1.5
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    assert doctor._quota_cores() == 3.0
    shutil.rmtree(tmp_path / "cpu")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor._quota_cores() is None
