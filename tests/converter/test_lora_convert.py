"""A LoRA adapter the whole way: to bytes, logits, reports; interrupted; foreseen."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
import make_synthetic
from cli.test_commands import assert_one_error_line, run_convert
from converter.hf_files import hf_folder, read_meta
from converter.lora_files import (
    ALL,
    ATTENTION,
    PREFIX,
    low_rank,
    merged_in_float64,
    modules_named,
    write_adapter,
)
from faults import At, hooked
from llama2q.converter.pth_writer import write_pth
from llama2q.errors import CorruptShardError
from llama2q.format import L2qFile
from reference import Forward
from reference_weights import Dense, load_meta
from synthetic_shapes import SyntheticShape
from tolerances import end_to_end


@pytest.fixture(scope="module")
def mini_adapter(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the demo model's attention that changes its logits."""
    _, config = read_meta(mini_checkpoint)
    tensors = low_rank(config, modules_named(config, ATTENTION), 8)
    folder = tmp_path_factory.mktemp("adapters") / "tales"
    return write_adapter(folder, tensors, target_modules=list(ATTENTION), r=8, lora_alpha=0.5)


@pytest.fixture(scope="module")
def merged_mini(
    mini_checkpoint: Path, mini_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The demo model with the adapter merged in float64, in Meta's form, float32."""
    tensors, config = read_meta(mini_checkpoint)
    adapter = low_rank(config, modules_named(config, ATTENTION), 8)
    merged = merged_in_float64(tensors, config, adapter, 0.5 / 8)
    as_meta = {}
    for name, array in zip(tensors, merged.values(), strict=True):
        n_heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])
        if n_heads is not None:
            head_dim = config.head_dim
            order = np.arange(len(array)).reshape(n_heads, 2, head_dim // 2)
            array = array[order.transpose(0, 2, 1).reshape(-1)]
        as_meta[name] = array.astype(np.float32)
    folder = tmp_path_factory.mktemp("merged")
    write_pth(folder / "consolidated.00.pth", as_meta, "f32")
    for name in ("params.json", "tokenizer.model"):
        shutil.copyfile(mini_checkpoint / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("quant", "method"),
    [("int4", "rtn"), ("int8", "rtn"), pytest.param("int4", "gptq", marks=pytest.mark.slow)],
)
def test_same_bytes_as_a_merged_checkpoint(
    mini_checkpoint: Path,
    mini_adapter: Path,
    merged_mini: Path,
    tmp_path: Path,
    quant: str,
    method: str,
) -> None:
    """Whatever the form of the model and the number of threads; the source is all that differs."""
    how: dict[str, Any] = {"quant": quant, "method": method}
    reference = llama2q.convert(merged_mini, tmp_path / "reference.l2q", **how)
    folder = hf_folder(tmp_path / "mini", mini_checkpoint)
    plain = llama2q.convert(mini_checkpoint, tmp_path / "plain.l2q", **how)
    with L2qFile(reference.path) as file, L2qFile(plain.path) as before:
        expected = file.metadata.sha256
        assert expected != before.metadata.sha256
    ids = {reference.model_id, plain.model_id}
    for number, (base, n_threads) in enumerate(((mini_checkpoint, 1), (folder, 3))):
        path = tmp_path / f"{number}.l2q"
        report = llama2q.convert(base, path, **how, lora=mini_adapter, n_threads=n_threads)
        ids.add(report.model_id)
        with L2qFile(path) as file:
            file.verify()
            assert file.metadata.sha256 == expected
    assert len(ids) == 4


def test_logits(
    mini_checkpoint: Path, mini_adapter: Path, merged_mini: Path, tmp_path: Path
) -> None:
    """The engine's, against the float64 model over the merged weights, rounded to bf16 once."""
    path = tmp_path / "x.l2q"
    llama2q.convert(mini_checkpoint, path, quant="none", lora=mini_adapter)
    ids = [1, *np.random.default_rng(4).integers(3, 4096, 15).tolist()]
    weights, before = load_meta(merged_mini), load_meta(mini_checkpoint)
    dtypes = {m.dtype for m in before.matrices.values() if isinstance(m, Dense)}
    assert dtypes == {"bf16"}
    for name, matrix in weights.matrices.items():
        assert isinstance(matrix, Dense)
        bits = matrix.values.view(np.uint32).astype(np.uint64)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
        weights.matrices[name] = Dense(nearest.astype(np.uint32).view(np.float32), "bf16")
    exact, tolerance = end_to_end(weights, np.array(ids))
    with llama2q.load(path, n_ctx=64, kv_dtype="f32") as llm:
        logits = llm.logits(ids)
    assert np.abs(logits - exact).max() <= tolerance
    unmerged = Forward(before).step(np.array(ids))
    assert np.abs(unmerged - exact).max() > 1000 * tolerance


def test_report_and_sources(mini_checkpoint: Path, mini_adapter: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(mini_adapter, tmp_path / "Tales")
    for name in ("tokenizer_config.json", "LICENSE"):
        (adapter / name).write_text("{}")
    (tmp_path / "LICENSE").write_text("of something else")
    report = llama2q.convert(mini_checkpoint, tmp_path, quant="none", lora=adapter)
    assert report.path == tmp_path / "mini-Tales-bf16.l2q"
    with L2qFile(report.path) as file:
        entries = {entry.name: entry for entry in file.metadata.source}
        assert file.metadata.licences == {"Tales/LICENSE": "{}"}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content = (adapter / name).read_bytes()
        assert entries[name].sha256 == hashlib.sha256(content).hexdigest()
    assert len(entries) == 5
    n_matrices = 4 * report.config.n_layers
    assert report.notes == (
        f"LoRA adapter Tales merged: {n_matrices} matrices updated (rank 8, scale 0.0625)",
        "the adapter was trained on 'meta-llama/Llama-2-7b-hf'; this model is mini: they must be "
        "the same",
        "merged matrices are rounded to the checkpoint's bf16, as PEFT's merge_and_unload does; "
        "int8 and int4 are made from float32",
        "the adapter's tokenizer files are not read: the model's own tokenizer and chat template "
        "are kept (--chat-template overrides the latter)",
    )


def test_command(mini_checkpoint: Path, mini_adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    done = run_convert(mini_checkpoint, "-o", path, "--method", "rtn", "--lora", mini_adapter)
    assert done.returncode == 0, done.stderr
    assert "LoRA adapter tales merged: " in done.stderr
    expected = llama2q.convert(
        mini_checkpoint, tmp_path / "y.l2q", method="rtn", lora=str(mini_adapter)
    )
    assert path.read_bytes() == expected.path.read_bytes()
    refused = run_convert(mini_checkpoint, "-o", path, "--lora", tmp_path, "--force")
    assert_one_error_line(refused, "holds no LoRA adapter")
    assert_one_error_line(run_convert(mini_adapter), f"llama2q-convert MODEL --lora {mini_adapter}")


class Stop:
    """A progress callback that interrupts at the n-th call."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, done: int, total: int, name: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_interruption_resumes(mini_checkpoint: Path, mini_adapter: Path, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.l2q", tmp_path / "x.l2q"
    llama2q.convert(mini_checkpoint, whole, method="rtn", lora=mini_adapter)
    for number in (5, 30):
        with pytest.raises(KeyboardInterrupt):
            llama2q.convert(
                mini_checkpoint, path, method="rtn", lora=mini_adapter, progress=Stop(number)
            )
    again = At(0, lambda: None)
    with hooked(again):
        llama2q.convert(mini_checkpoint, path, method="rtn", lora=mini_adapter)
    assert path.read_bytes() == whole.read_bytes()
    with L2qFile(path) as file:
        assert again.operations.count("write journal") < len(file.tensors) - 15


def test_another_adapter_starts_anew(
    mini_checkpoint: Path, mini_adapter: Path, tmp_path: Path
) -> None:
    path, fresh = tmp_path / "x.l2q", tmp_path / "fresh.l2q"
    other = shutil.copytree(mini_adapter, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0.6}))
    llama2q.convert(mini_checkpoint, fresh, method="rtn", lora=other)
    for first in (mini_adapter, None):
        with pytest.raises(KeyboardInterrupt):
            llama2q.convert(mini_checkpoint, path, method="rtn", lora=first, progress=Stop(30))
        llama2q.convert(mini_checkpoint, path, method="rtn", lora=other)
        assert path.read_bytes() == fresh.read_bytes()
        path.unlink()


def test_a_damaged_adapter(mini_checkpoint: Path, tmp_path: Path) -> None:
    """The CRC-32 inside adapter_model.bin is compared."""
    _, config = read_meta(mini_checkpoint)
    tensors = low_rank(config, modules_named(config, ATTENTION))
    folder = write_adapter(tmp_path / "a", tensors, "bin", target_modules=list(ATTENTION))
    path = folder / "adapter_model.bin"
    name = f"{PREFIX}model.layers.1.self_attn.o_proj.lora_B.weight"
    needle = tensors[name].tobytes()
    content = path.read_bytes()
    assert content.count(needle) == 1
    at = content.index(needle) + 12
    path.write_bytes(content[:at] + b"\0\0\0\x3e" + content[at + 4 :])
    with pytest.raises(CorruptShardError, match=r"layers\.1\.self_attn\.o_proj\.lora_B"):
        llama2q.convert(mini_checkpoint, tmp_path / "x.l2q", method="rtn", lora=folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


WIDE = SyntheticShape(dim=2048, n_layers=1, n_heads=16, multiple_of=256, vocab_size=4096)
MARGIN = 48 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
@pytest.mark.parametrize("quant", ["int8", "none"])
def test_memory_is_a_bound(mini_checkpoint: Path, tmp_path: Path, quant: str) -> None:
    """What `plan_conversion` says holds with an adapter too."""
    source, path = tmp_path / "wide", tmp_path / "x.l2q"
    tokenizer = (mini_checkpoint / "tokenizer.model").read_bytes()
    make_synthetic.write_meta(WIDE, tokenizer, source, 1, 0, sparse=True)
    targets = list(ALL)
    tensors = low_rank(WIDE.config, modules_named(WIDE.config, targets), 64, dtype="u2")
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=targets, r=64)
    arguments = {"quant": quant, "lora": str(adapter), "n_threads": 2}
    plan = llama2q.plan_conversion(source, path, quant=quant, lora=adapter, n_threads=2)
    probe = Path(__file__).with_name("memory_of_conversion.py")
    grown = int(
        subprocess.run(
            [sys.executable, str(probe), str(source), str(path), json.dumps(arguments)],
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
    )
    evened_out = 0 if quant == "none" else 4 * WIDE.config.dim * WIDE.config.hidden_dim
    assert grown <= plan.memory_bytes <= grown + evened_out + MARGIN
