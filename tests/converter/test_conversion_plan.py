"""`plan_conversion` says beforehand what `convert` then does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import llama2q
import make_synthetic
from converter.hf_files import hf_folder
from converter.lora_files import low_rank, modules_named, write_adapter
from converter.pth_files import Make
from llama2q.converter.costs import METHODS, OVERHEAD_BYTES, Cost, Work, rtn_cost
from llama2q.converter.probe import Rates, kind_of
from llama2q.errors import CorruptShardError, InvalidArgumentError, TensorSetError
from llama2q.format.layout import MatrixSpec, model_parts
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import Recipe
from synthetic_shapes import SHAPES, SyntheticShape

QUANTS = ["int4", "int8", "none"]


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("group_size", [32, 128])
def test_sizes_are_exact(
    mini_checkpoint: Path, tmp_path: Path, quant: str, group_size: int
) -> None:
    path = tmp_path / "x.l2q"
    method = "search" if quant == "int4" else None
    arguments = {"quant": quant, "group_size": group_size, "method": method}
    plan = llama2q.plan_conversion(mini_checkpoint, path, **arguments)
    assert list(tmp_path.iterdir()) == []
    report = llama2q.convert(mini_checkpoint, path, **arguments)
    assert plan.output_bytes == report.output_bytes == path.stat().st_size
    assert plan.input_bytes == report.input_bytes
    assert plan.bits_per_weight == report.bits_per_weight
    assert (plan.config, plan.recipe) == (report.config, report.recipe)
    assert (plan.template, plan.notes) == (report.template, report.notes)
    assert (plan.path, plan.obstacles, plan.exists, plan.fits) == (path, (), False, True)
    assert plan.finished_bytes == 0
    assert 0 < plan.seconds < 60


def test_shards_and_other_forms(
    make: Make, split_small: Callable[[int], Path], tmp_path: Path
) -> None:
    for source in (split_small(2), hf_folder(tmp_path / "hf", make())):
        path = tmp_path / "x.l2q"
        plan = llama2q.plan_conversion(source, path, group_size=32, method="rtn")
        report = llama2q.convert(source, path, group_size=32, method="rtn", overwrite=True)
        assert plan.output_bytes == report.output_bytes
        assert plan.notes == report.notes


def test_name_of_the_file(mini_checkpoint: Path, tmp_path: Path) -> None:
    for quant, kind in (("int4", "int4"), ("none", "bf16")):
        plan = llama2q.plan_conversion(mini_checkpoint, tmp_path, quant=quant)
        assert plan.path == tmp_path / f"mini-{kind}.l2q"


def test_obstacles(mini_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.l2q"
    path.write_bytes(b"kept")
    plan = llama2q.plan_conversion(mini_checkpoint, path)
    assert plan.exists
    assert not plan.fits
    assert plan.obstacles == (f"{path} exists; pass overwrite=True (--force) to replace it",)
    assert plan.obstacles[0] in str(plan)
    assert llama2q.plan_conversion(mini_checkpoint, path, overwrite=True).fits
    assert path.read_bytes() == b"kept"
    plan = llama2q.plan_conversion(mini_checkpoint, tmp_path / "no" / "x.l2q")
    assert "no does not exist" in plan.obstacles[0]
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    plan = llama2q.plan_conversion(mini_checkpoint, tmp_path / "y.l2q")
    assert plan.disk_room_bytes == 50_000
    assert "only 0.00 GB are free" in plan.obstacles[0]


def test_more_memory_than_there_is(
    mini_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama2q.memory.available_bytes", lambda: 10_000_000)
    plan = llama2q.plan_conversion(mini_checkpoint, tmp_path / "x.l2q")
    assert plan.obstacles == ()
    assert not plan.fits
    assert "more memory than is free" in str(plan)


def test_faults_are_those_of_convert(make: Make, mini_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="group_size"):
        llama2q.plan_conversion(mini_checkpoint, tmp_path / "x.l2q", group_size=48)
    folder = make("fewer", tensors={})
    with pytest.raises((TensorSetError, CorruptShardError)):
        llama2q.plan_conversion(folder, tmp_path / "x.l2q")


def test_an_interrupted_conversion(mini_checkpoint: Path, tmp_path: Path) -> None:
    folder, path = tmp_path / "mini", tmp_path / "x.l2q"
    shutil.copytree(mini_checkpoint, folder)
    started: list[tuple[int, str]] = []

    def stop(done: int, total: int, name: str) -> None:
        started.append((done, name))
        if name == "layers.1.attention.wo.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama2q.convert(folder, path, method="rtn", progress=stop)
    files = {child.name: child.stat().st_size for child in tmp_path.iterdir() if child.is_file()}
    plan = llama2q.plan_conversion(folder, path, method="rtn")
    assert plan.finished_bytes == started[-1][0] > 0
    assert "goes on after" in str(plan)
    assert files == {
        child.name: child.stat().st_size for child in tmp_path.iterdir() if child.is_file()
    }
    assert llama2q.plan_conversion(folder, path, resume=False).finished_bytes == 0
    assert llama2q.plan_conversion(folder, path, quant="int8").finished_bytes == 0
    (folder / "params.json").touch()
    assert llama2q.plan_conversion(folder, path).finished_bytes == 0


# Matrices of 8 to 21 MB in bf16, holes on the disk: far above what modules and buffers take.
WIDE = SyntheticShape(dim=2048, n_layers=2, n_heads=16, multiple_of=256, vocab_size=4096)
_MARGIN = 40 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
@pytest.mark.parametrize(
    ("n_shards", "quant", "method", "lora"),
    [
        (1, "int4", "search", False),
        (1, "none", None, False),
        (4, "int8", None, False),
        (1, "int4", "rtn", True),
        pytest.param(1, "int4", "calibrated", False, marks=pytest.mark.slow),
        pytest.param(1, "int4", "gptq", False, marks=pytest.mark.slow),
    ],
)
def test_memory_is_a_bound(
    mini_checkpoint: Path,
    tmp_path: Path,
    n_shards: int,
    quant: str,
    method: str | None,
    lora: bool,
) -> None:
    """The peak of a process that converts: at most the bound, and near to it."""
    source, path, adapter = tmp_path / "wide", tmp_path / "x.l2q", tmp_path / "adapter"
    tokenizer = (mini_checkpoint / "tokenizer.model").read_bytes()
    make_synthetic.write_meta(WIDE, tokenizer, source, n_shards, 0, sparse=True)
    adapters = []
    if lora:
        targets = ["q_proj", "up_proj", "down_proj"]
        modules = modules_named(WIDE.config, targets)
        adapters = [
            write_adapter(adapter, low_rank(WIDE.config, modules, 2), r=2, target_modules=targets)
        ]
    plan = llama2q.plan_conversion(
        source, path, quant=quant, method=method, lora=adapter if lora else None, n_threads=2
    )
    probe = Path(__file__).with_name("memory_of_conversion.py")
    command = [sys.executable, probe, source, path, quant, method or "", *adapters]
    done = subprocess.run(command, capture_output=True, check=True, timeout=600)
    grown = int(done.stdout)
    assert grown <= plan.memory_bytes <= grown + _MARGIN


def work(checkpoint: object, **changes: object) -> Work:
    """Return a conversion to int4 on a machine of round numbers."""
    config = SHAPES["7b"].config
    recipe = Recipe.for_model(config)
    parts = model_parts(config, recipe, 1)
    matrices = tuple(part for part in parts if isinstance(part, MatrixSpec))
    values: dict[str, object] = {
        "checkpoint": checkpoint,
        "matrices": matrices,
        "input_bytes": 13_476_000_000,
        "listed_bytes": 0,
        "file_bytes": 3_700_000_000,
        "share_left": 1.0,
        "n_threads": 2,
        "n_cpus": 2,
        "merged_terms": 0,
        "rates": rates(matrices),
    }
    return Work(**(values | changes))  # type: ignore[arg-type]


def rates(matrices: tuple[MatrixSpec, ...], weights: float = 1e9, **changes: float) -> Rates:
    values = {"sha256": 2e9, "md5": 1e9, "crc32": 4e9, "copy": 4e9, "read": 1e10}
    return Rates(
        weights=dict.fromkeys(map(kind_of, matrices), weights),
        merged_terms=2e9,
        **(values | changes),
    )


class OneShard:
    """A checkpoint in bf16 whose tensors are views."""

    def reading_bytes(self, name: str) -> int:
        rows = {"w2": 4096, "tok_embeddings": 32000, "output": 32000}.get(name.split(".")[-2])
        return 2 * 4096 * 11008 if rows in (None, 4096) else 2 * 32000 * 4096


def test_cost_of_rounding() -> None:
    """By hand: 6.738 G weights, the slowest of what goes on at once."""
    base = work(OneShard())
    cost = rtn_cost(base)
    # 32000 x 4096: bf16 mapped, int8 codes, f16 scales of 64 weights
    assert cost.memory_bytes == OVERHEAD_BYTES + 32000 * 4096 * (2 + 1) + 32000 * 64 * 2
    cpu = 2 * 6.738 + 3.7 * (1 / 2 + 2 / 4) + 13.476 * (1 / 2 + 1 / 4 + 2 / 4)
    assert cost.seconds == pytest.approx(cpu / 2, rel=1e-3)
    slow_disk = work(OneShard(), rates=rates(base.matrices, read=1e8))
    assert rtn_cost(slow_disk).seconds == pytest.approx(134.76)
    many_cpus = work(OneShard(), n_cpus=64, rates=rates(base.matrices, weights=1e11))
    assert rtn_cost(many_cpus).seconds == pytest.approx(13.476 * (1 / 2 + 1 / 4))
    listed = work(
        OneShard(), n_cpus=64, listed_bytes=13_476_000_000, rates=rates(base.matrices, weights=1e11)
    )
    assert rtn_cost(listed).seconds == pytest.approx(13.476 * (1 + 1 / 4))
    merged = work(OneShard(), merged_terms=8 * 10**9)
    assert rtn_cost(merged).seconds == pytest.approx(cost.seconds + 4)
    resumed = work(OneShard(), n_cpus=1, share_left=0.5)
    assert rtn_cost(resumed).seconds < rtn_cost(work(OneShard(), n_cpus=1)).seconds


def test_the_method_decides(
    mini_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "rtn", lambda work: Cost(123, 4567.0))
    plan = llama2q.plan_conversion(mini_checkpoint, tmp_path / "x.l2q", method="rtn")
    assert (plan.memory_bytes, plan.seconds) == (123, 4567.0)
    assert "about 76 minutes" in str(plan)


def test_every_method_of_a_file_has_a_cost(convert_mini: Callable[..., Path]) -> None:
    for quant in QUANTS:
        with L2qFile(convert_mini(quant=quant)) as file:
            assert file.recipe.method in METHODS


def test_to_dict(mini_checkpoint: Path, tmp_path: Path) -> None:
    plan = llama2q.plan_conversion(mini_checkpoint, tmp_path / "x.l2q")
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["path"] == str(tmp_path / "x.l2q")
    assert values["output_bytes"] == plan.output_bytes
    assert values["message"] == str(plan)
    assert values["fits"] is True
