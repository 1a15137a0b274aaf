"""Merging a LoRA adapter: against a float64 merge, and the whole way to logits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from converter.hf_files import Tensors, hf_folder, hf_tensors, read_meta
from converter.lora_files import (
    ALL,
    EMBEDDINGS,
    PREFIX,
    low_rank,
    merged_in_float64,
    module_shapes,
    modules_named,
    random_factor,
    write_adapter,
)
from converter.pth_files import Make
from llama2q.config import ModelConfig
from llama2q.converter.forms import open_checkpoint
from llama2q.converter.lora import MergedCheckpoint
from llama2q.converter.pth_writer import write_pth
from llama2q.errors import QuantizationError, UnsupportedAdapterError


@dataclasses.dataclass(frozen=True)
class Small:
    """The small model in both forms, its tensors and its shape."""

    meta: Path
    hugging_face: Path
    tensors: Tensors
    config: ModelConfig


@pytest.fixture
def small(make: Make, tmp_path: Path) -> Small:
    """Write the small model (4 query heads, 2 KV heads) in bf16."""
    meta = make()
    return Small(meta, hf_folder(tmp_path / "Llama-2-7b-hf", meta), *read_meta(meta))


def read_merged(base: Path, adapter: Path, **arguments: Any) -> tuple[Tensors, tuple[str, ...]]:
    """Return every tensor with the adapter merged into it, in Meta's form, and the notes."""
    with (
        open_checkpoint(base) as checkpoint,
        MergedCheckpoint.open(checkpoint, adapter, **arguments) as merged,
    ):
        tensors = {}
        for name in merged.shapes:
            found = merged.read(name)
            assert not found.flags.writeable
            merged.check_crc(name)
            tensors[name] = found.copy()
            merged.release(name)
        return tensors, merged.notes


def assert_merged(
    small: Small, found: Tensors, adapter: Tensors, scales: float | dict[str, float] = 2.0
) -> None:
    """Compare with the float64 merge, in Hugging Face's order; what is untouched keeps its bits."""
    expected = merged_in_float64(small.tensors, small.config, adapter, scales)
    before = hf_tensors(small.tensors, small.config)
    for name, array in hf_tensors(found, small.config).items():
        module = name.removesuffix(".weight")
        if any(key.startswith(f"{PREFIX}{module}.") for key in adapter):
            assert array.dtype == np.float32
            # The sums are exact in float64 (see STEP), so one rounding to float32 is left.
            np.testing.assert_array_equal(array, expected[name].astype(np.float32), name)
        else:
            np.testing.assert_array_equal(array, before[name], name)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("adapter_name", ["", ".default"])
@pytest.mark.parametrize("dtype", ["f4", "f2", "u2"])
def test_merge_equals_float64(
    small: Small, tmp_path: Path, form: str, adapter_name: str, dtype: str
) -> None:
    """All matrices, on both forms of the model."""
    modules = modules_named(small.config, (*ALL, "lm_head", "embed_tokens"))
    adapter = low_rank(small.config, modules, dtype=dtype, adapter_name=adapter_name)
    targets = [*ALL, "lm_head", "embed_tokens"]
    folder = write_adapter(tmp_path / "adapter", adapter, form, target_modules=targets)
    from_meta, _ = read_merged(small.meta, folder)
    from_hugging_face, _ = read_merged(small.hugging_face, folder, n_threads=3)
    assert_merged(small, from_meta, adapter)
    for name, array in from_meta.items():
        np.testing.assert_array_equal(array, from_hugging_face[name])


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_scales_and_ranks_by_module(small: Small, tmp_path: Path, rank_stabilized: bool) -> None:
    """Patterns: a name's end, a whole name, an anchored one, alternatives; the first counts."""
    rank_pattern = {
        "model.layers.0.self_attn.q_proj": 16,
        "q_proj": 2,
        r"model\.layers\.\d+\.self_attn\.(k|v)_proj": 1,
    }
    alpha_pattern = {"^model.layers.1.self_attn.o_proj": 3, ".*mlp.*": 5.5, "o_proj": -1}
    ranks = {module: 4 for module in modules_named(small.config, ALL)}
    alphas = {module: 8.0 for module in ranks}
    for layer in (0, 1):
        prefix = f"model.layers.{layer}."
        ranks[f"{prefix}self_attn.q_proj"] = 16 if layer == 0 else 2
        ranks[f"{prefix}self_attn.k_proj"] = ranks[f"{prefix}self_attn.v_proj"] = 1
        alphas[f"{prefix}self_attn.o_proj"] = -1 if layer == 0 else 3
        for name in ("gate_proj", "up_proj", "down_proj"):
            alphas[f"{prefix}mlp.{name}"] = 5.5
    divisor = np.sqrt if rank_stabilized else np.float64
    scales = {module: float(alphas[module] / divisor(ranks[module])) for module in ranks}
    adapter = low_rank(small.config, ranks, ranks)
    folder = write_adapter(
        tmp_path / "adapter",
        adapter,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        use_rslora=rank_stabilized,
    )
    found, notes = read_merged(small.meta, folder)
    expected = merged_in_float64(small.tensors, small.config, adapter, scales)
    for name, array in hf_tensors(found, small.config).items():
        if array.dtype == np.float32:
            # An irrational scale makes float64 round: by less than 2^-45 of terms below 64.
            np.testing.assert_allclose(array, expected[name], rtol=2.0**-24, atol=2.0**-39)
    assert sum(array.dtype == np.float32 for array in found.values()) == 14
    assert "14 matrices updated (rank 1, 2, 4, 16, scale " in notes[0]


def test_only_some_layers(small: Small, tmp_path: Path) -> None:
    modules = ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    adapter = low_rank(small.config, modules)
    folder = write_adapter(
        tmp_path / "adapter",
        adapter,
        target_modules=["q_proj", "v_proj", "W_pack"],
        layers_to_transform=[1, 99],
        layers_pattern="layers",
    )
    found, notes = read_merged(small.meta, folder)
    assert_merged(small, found, adapter)
    assert notes == (
        "LoRA adapter adapter merged: 2 matrices updated (rank 4, scale 2)",
        "the adapter was trained on 'meta-llama/Llama-2-7b-hf'; this model is small: they must be "
        "the same",
    )


@pytest.mark.parametrize(
    "targets",
    ["all-linear", r".*\.(q|k|v|o|gate|up|down)_proj", r"(?:.*?(?=_proj)_proj)|(?:x+)+y", None],
)
def test_targets_as_text(small: Small, tmp_path: Path, targets: str | None) -> None:
    adapter = low_rank(small.config, modules_named(small.config, ALL))
    folder = write_adapter(tmp_path / "adapter", adapter, target_modules=targets)
    found, notes = read_merged(small.meta, folder)
    assert_merged(small, found, adapter)
    untold = targets is None or "x+" in targets
    assert any("own tensors say" in note for note in notes) is untold


def test_replaced_tensors(small: Small, tmp_path: Path) -> None:
    """modules_to_save: norms and matrices, also one whose rows are permuted."""
    shapes = module_shapes(small.config)
    replaced = ["lm_head", "model.norm", "model.layers.0.self_attn.k_proj", *(
        f"model.layers.{layer}.{name}_layernorm"
        for layer in (0, 1) for name in ("input", "post_attention")
    )]  # fmt: skip
    rng = np.random.default_rng(8)
    adapter = low_rank(small.config, modules_named(small.config, ["v_proj"]))
    for module in replaced:
        part = ".modules_to_save.default" if module == "lm_head" else ""
        adapter[f"{PREFIX}{module}{part}.weight"] = random_factor(rng, *shapes[module])
    folder = write_adapter(
        tmp_path / "adapter",
        adapter,
        target_modules=["v_proj"],
        modules_to_save=["lm_head", "norm", "layers.0.self_attn.k_proj", "score"],
    )
    for base in (small.meta, small.hugging_face):
        found, notes = read_merged(base, folder)
        assert_merged(small, found, {k.replace(".default", ""): v for k, v in adapter.items()})
    assert any("2 matrices updated" in n and ", 7 tensors replaced" in n for n in notes)


def test_tables_saved_beside_their_updates(small: Small, tmp_path: Path) -> None:
    """PEFT's save_embedding_layers: the table beneath an update, and the output matrix."""
    adapter = low_rank(small.config, [EMBEDDINGS])
    shape = module_shapes(small.config)[EMBEDDINGS]
    rng = np.random.default_rng(9)
    adapter[f"{PREFIX}{EMBEDDINGS}.base_layer.weight"] = random_factor(rng, *shape)
    adapter[f"{PREFIX}lm_head.weight"] = random_factor(rng, *shape)
    folder = write_adapter(tmp_path / "adapter", adapter, target_modules=["embed_tokens"])
    found, _ = read_merged(small.meta, folder)
    assert_merged(small, found, adapter)


def test_one_table_for_both(small: Small, tmp_path: Path) -> None:
    tied = {**small.tensors, "output.weight": small.tensors["tok_embeddings.weight"]}
    write_pth(small.meta / "consolidated.00.pth", tied, "bf16")
    adapter = low_rank(small.config, ["lm_head"])
    folder = write_adapter(tmp_path / "one", adapter, target_modules=["lm_head"])
    with pytest.raises(UnsupportedAdapterError, match=r"changes output\.weight, but .* are one"):
        read_merged(small.meta, folder)
    shape = module_shapes(small.config)["lm_head"]
    rng = np.random.default_rng(1)
    both = {f"{PREFIX}{m}.weight": random_factor(rng, *shape) for m in (EMBEDDINGS, "lm_head")}
    folder = write_adapter(
        tmp_path / "both", both, target_modules=[], modules_to_save=["embed_tokens", "lm_head"]
    )
    read_merged(small.meta, folder)
    attention = low_rank(small.config, modules_named(small.config, ALL))
    read_merged(small.meta, write_adapter(tmp_path / "attention", attention))


def test_the_models_name_is_recognised(small: Small, tmp_path: Path) -> None:
    adapter = low_rank(small.config, modules_named(small.config, ALL))
    meta = small.meta.rename(small.meta.with_name("llama-2-7b"))
    for base in (meta, small.hugging_face):
        for trained_on in ("meta-llama/Llama-2-7b-hf", "C:\\models\\llama-2-7b\\"):
            folder = write_adapter(
                tmp_path / "adapter", adapter, base_model_name_or_path=trained_on
            )
            notes = read_merged(base, folder)[1]
            assert f"the adapter was trained on {trained_on!a}" in notes


def test_beyond_float16(small: Small, tmp_path: Path) -> None:
    """Only a file that keeps float16 refuses; the others are made from float32."""
    halves = {n: np.full(a.shape, 60000, np.float16) for n, a in small.tensors.items()}
    write_pth(small.meta / "consolidated.00.pth", halves, "f16")
    adapter = low_rank(small.config, modules_named(small.config, ["v_proj"]))
    for name in adapter:
        adapter[name][:] = 1
    folder = write_adapter(
        tmp_path / "adapter", adapter, target_modules=["v_proj"], lora_alpha=8000
    )
    path = tmp_path / "x.l2q"
    with pytest.raises(QuantizationError, match=r"layers\.0\.attention\.wv\.weight: .* 68000"):
        llama2q.convert(small.meta, path, quant="none", lora=folder)
    llama2q.convert(small.meta, path, quant="int8", lora=folder)
