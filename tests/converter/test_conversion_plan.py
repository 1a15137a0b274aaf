"""`plan_conversion` says beforehand what `convert` then does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama2q
import make_synthetic
from converter.hf_files import hf_folder
from converter.lora_files import low_rank, modules_named, write_adapter
from converter.pth_files import Make
from llama2q.calibrate.text import default_text
from llama2q.converter.calibration_cost import KEPT_BYTES, Speeds, calibrated_cost, gptq_cost
from llama2q.converter.conversion_plan import METHODS
from llama2q.converter.costs import OVERHEAD_BYTES, Cost, Work, rtn_cost
from llama2q.converter.probe import Rates, kind_of
from llama2q.errors import CorruptShardError, InvalidArgumentError, TensorSetError
from llama2q.format.layout import MatrixSpec, model_parts
from llama2q.format.recipe import METHODS as recipe_methods
from llama2q.format.recipe import Recipe
from synthetic_shapes import SHAPES, SyntheticShape

QUANTS = ["int4", "int8", "none"]


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("group_size", [32, 128])
def test_sizes_are_exact(
    mini_checkpoint: Path, tmp_path: Path, quant: str, group_size: int
) -> None:
    path = tmp_path / "x.l2q"
    arguments: dict[str, Any] = {"quant": quant, "group_size": group_size}
    arguments["method"] = "rtn" if quant == "int4" else None
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
        arguments: dict[str, Any] = {"group_size": 32, "method": "rtn"}
        plan = llama2q.plan_conversion(source, tmp_path / "x.l2q", **arguments)
        report = llama2q.convert(source, tmp_path / "x.l2q", **arguments, overwrite=True)
        assert plan.output_bytes == report.output_bytes
        assert plan.notes == report.notes[: len(plan.notes)]  # then, which channels were moved


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
        llama2q.convert(folder, path, progress=stop)
    files = {child.name: child.stat().st_size for child in tmp_path.iterdir() if child.is_file()}
    plan = llama2q.plan_conversion(folder, path)
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
WIDE = SyntheticShape(dim=2048, n_layers=1, n_heads=16, multiple_of=256, vocab_size=4096)
_COPY = 4 * 2048 * 5632
"""Of w2 in float32, should its channels have to be evened out; here there are none."""
_MARGIN = 64 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
@pytest.mark.parametrize(
    ("n_shards", "arguments"),
    [
        (1, {"quant": "none"}),
        (4, {"quant": "int8"}),
        (1, {"method": "rtn"}),
        (1, {"method": "rtn", "lora": "adapter"}),
        (1, {"method": "search"}),
        (1, {"method": "calibrated", "calibration_text": "text"}),
        pytest.param(1, {"method": "gptq", "calibration_text": "text"}, marks=pytest.mark.slow),
        pytest.param(2, {"method": "gptq", "calibration_text": "text"}, marks=pytest.mark.slow),
    ],
)
def test_memory_is_a_bound(
    mini_checkpoint: Path, tmp_path: Path, n_shards: int, arguments: dict[str, Any]
) -> None:
    """The peak of a process that converts: at most the bound, and near to it."""
    source, path, adapter = tmp_path / "wide", tmp_path / "x.l2q", tmp_path / "adapter"
    tokenizer = (mini_checkpoint / "tokenizer.model").read_bytes()
    make_synthetic.write_meta(WIDE, tokenizer, source, n_shards, 0, sparse=True)
    (tmp_path / "text").write_text(default_text()[:8000], encoding="utf-8")
    targets = ["q_proj", "up_proj", "down_proj"]
    factors = low_rank(WIDE.config, modules_named(WIDE.config, targets), 2)
    write_adapter(adapter, factors, r=2, target_modules=targets)
    for name in {"lora", "calibration_text"} & arguments.keys():
        arguments = {**arguments, name: str(tmp_path / arguments[name])}
    arguments["n_threads"] = 2
    plan = llama2q.plan_conversion(source, path, **arguments)
    probe = Path(__file__).with_name("memory_of_conversion.py")
    command = [sys.executable, probe, source, path, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=300)
    grown = int(done.stdout)
    kept = KEPT_BYTES + _COPY if "calibration_text" in arguments else 0
    kept += 0 if arguments.get("quant") == "none" else _COPY
    assert grown <= plan.memory_bytes <= grown + kept + _MARGIN


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
        "method": "rtn",
        "n_tokens": 0,
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

    config = SHAPES["7b"].config
    dtype = "bf16"

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


def test_costs_of_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the operations of 7B's 32 layers on 10,240 tokens."""
    speeds = Speeds(dense=1e11, int4=4e11, gemm=2e11, weights=1e8)
    monkeypatch.setattr(Speeds, "measured", classmethod(lambda cls, *arguments: speeds))
    n, d, h, layers = 10_240, 4096, 11_008, 32
    weights = layers * d * (4 * d + 3 * h)
    calibrated = work(OneShard(), method="calibrated", n_tokens=n)
    rest = rtn_cost(calibrated)
    cost = calibrated_cost(calibrated)
    assert cost.seconds == pytest.approx(rest.seconds + 2 * n * weights / 4e11 + weights / 1e8)
    gptq = work(OneShard(), method="gptq", n_tokens=n)
    products = n * (3 * d * d + h * h) + 2 * n * (d + h) * d
    factors = (3 * d**3 + h**3) / 3
    feedback = d * d * (3 * d + 2 * h) + 2 * (d * d * d + d * h * h)
    expected = (
        2 * n * weights * (1 / 4e11 + 1 / 1e11)
        + layers * 2 * n * (d + h) * d / 1e11
        + layers * (products + factors + feedback) / 2e11
        + weights / 1e8
    )
    cost = gptq_cost(gptq)
    assert cost.seconds == pytest.approx(rest.seconds + expected)
    # w2: two streams, inputs of all tokens, H and its blocks, correction, w2 twice, feedback, codes
    bound = 8 * n * d + 4 * (n * h + h * h + h * d) + 2 * 2 * h * d
    assert bound < cost.memory_bytes < 1.3 * bound
    half = gptq_cost(work(OneShard(), method="gptq", n_tokens=n, share_left=0.5))
    assert cost.seconds / 2 < half.seconds < cost.seconds


def test_the_method_decides(
    mini_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "rtn", lambda work: Cost(123, 4567.0))
    plan = llama2q.plan_conversion(mini_checkpoint, tmp_path / "x.l2q", method="rtn")
    assert (plan.memory_bytes, plan.seconds) == (123, 4567.0)
    assert "about 76 minutes" in str(plan)


def test_every_method_has_a_cost() -> None:
    assert set(METHODS) == {*recipe_methods, "none"}


def test_to_dict(mini_checkpoint: Path, tmp_path: Path) -> None:
    plan = llama2q.plan_conversion(mini_checkpoint, tmp_path / "x.l2q")
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["path"] == str(tmp_path / "x.l2q")
    assert values["output_bytes"] == plan.output_bytes
    assert values["message"] == str(plan)
    assert values["fits"] is True
