"""Builders of LoRA adapters as PEFT saves them, and their merge in float64, for the tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.hf_files import Tensors, hf_tensors, write_file, write_json
from llama2q.config import ModelConfig
from llama2q.converter.hf_tensors import hf_name
from llama2q.converter.meta_tensors import tensor_shapes

PREFIX = "base_model.model."
EMBEDDINGS = "model.embed_tokens"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
STEP = 2.0**-8
"""Elements of the factors are multiples of it in [-1, 1]: products and their sums of few terms are
exact in float64, and each fits into bf16."""


def config_of(**changes: object) -> dict[str, Any]:
    """Return adapter_config.json as PEFT 0.21 writes it."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(ALL),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        **changes,
    }


def module_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return Hugging Face's module name -> shape of its weight."""
    return {
        hf_name(name).removesuffix(".weight"): shape
        for name, shape in tensor_shapes(config).items()
    }


def modules_named(config: ModelConfig, names: Iterable[str]) -> list[str]:
    """Return the modules whose last component is one of `names`."""
    wanted = set(names)
    return [module for module in module_shapes(config) if module.split(".")[-1] in wanted]


def random_factor(rng: np.random.Generator, *shape: int, dtype: str = "f4") -> NDArray[Any]:
    """Return multiples of STEP in [-1, 1] as float32, float16 or bf16 bits ("u2")."""
    values = (rng.integers(-256, 257, shape) * STEP).astype(np.float32)
    if dtype == "u2":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def low_rank(
    config: ModelConfig,
    modules: Iterable[str],
    ranks: int | Mapping[str, int] = 4,
    *,
    seed: int = 1,
    dtype: str = "f4",
    adapter_name: str = "",
) -> Tensors:
    """Return random A and B of modules, under the names of the file."""
    rng = np.random.default_rng(seed)
    shapes = module_shapes(config)
    tensors: Tensors = {}
    for module in modules:
        rows, cols = shapes[module]
        rank = ranks if isinstance(ranks, int) else ranks[module]
        part = "lora_embedding_" if module == EMBEDDINGS else "lora_"
        end = adapter_name if module == EMBEDDINGS else f"{adapter_name}.weight"
        if module == EMBEDDINGS:
            rows, cols = cols, rows
        for letter, shape in (("A", (rank, cols)), ("B", (rows, rank))):
            name = f"{PREFIX}{module}.{part}{letter}{end}"
            tensors[name] = random_factor(rng, *shape, dtype=dtype)
    return tensors


def write_adapter(
    folder: Path, tensors: Tensors, form: str = "safetensors", **config: object
) -> Path:
    """Write an adapter's folder; `form` is the ending of the tensors' file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "adapter_config.json", config_of(**config))
    write_file(folder / f"adapter_model.{form}", tensors)
    return folder


def widened(array: NDArray[Any]) -> NDArray[np.float64]:
    """Return float64 of float32, float16 or bf16 bits."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def merged_in_float64(
    meta: Tensors, config: ModelConfig, adapter: Tensors, scales: float | Mapping[str, float]
) -> dict[str, NDArray[np.float64]]:
    """Return what W + scale * B @ A is, under Hugging Face's names and in its row order."""
    merged = {}
    for name, weights in hf_tensors(meta, config).items():
        module = name.removesuffix(".weight")
        total = widened(weights)
        found = {
            key.removeprefix(PREFIX + module + ".").replace(".default", ""): widened(array)
            for key, array in adapter.items()
            if key.startswith(PREFIX + module + ".")
        }
        for part in ("base_layer.weight", "modules_to_save.weight", "weight"):
            total = found.pop(part, total)
        scale = scales if isinstance(scales, float) else scales.get(module, 0.0)
        if "lora_A.weight" in found:
            total = total + scale * (found.pop("lora_B.weight") @ found.pop("lora_A.weight"))
        if "lora_embedding_A" in found:
            product = found.pop("lora_embedding_B") @ found.pop("lora_embedding_A")
            total = total + scale * product.T
        assert not found
        merged[name] = total
    return merged
