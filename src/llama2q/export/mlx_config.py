"""The small files of a folder for MLX: config.json, tokenizer_config.json."""

from __future__ import annotations

from typing import Any

from llama2q.converter.hf_tensors import hf_name
from llama2q.export.chat_templates import CHAT_TEMPLATES
from llama2q.export.pieces import PieceModel
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import OUTER_MATRICES, TensorType
from llama2q.tokenizer import Tokenizer

_TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_BITS = {"int4": 4, "int8": 8}


def config_json(file: L2qFile) -> dict[str, Any]:
    """Return config.json: Hugging Face's of a Llama model, and how MLX finds the weights packed.

    Types of matrices that differ from those of the layers are listed by module.
    """
    config = file.config
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": Tokenizer.bos_id,
        "eos_token_id": Tokenizer.eos_id,
        "torch_dtype": _torch_dtype(file),
    }
    if packed := _packed(file):
        values["quantization"] = packed
    return values


def _torch_dtype(file: L2qFile) -> str:
    """Return the type of the activations: that of the scales, or of the weights."""
    kinds = {stored.type for stored in file.recipe.tensors.values()}
    return "float16" if kinds & set(_BITS) else _TORCH_DTYPES[kinds.pop()]


def _packed(file: L2qFile) -> dict[str, Any] | None:
    modules = {
        hf_name(source).removesuffix(".weight"): _packing(stored)
        for name, stored in file.recipe.tensors.items()
        if not stored.kind.is_dense
        for source in file.matrix(name).sources
    }
    if not modules:
        return None
    inner = [name for name in modules if name not in map(_module, OUTER_MATRICES)]
    common = modules[inner[0] if inner else next(iter(modules))]
    return {**common, **{name: how for name, how in modules.items() if how != common}}


def _module(name: str) -> str:
    return hf_name(name).removesuffix(".weight")


def _packing(stored: TensorType) -> dict[str, Any]:
    return {"group_size": stored.group_size, "bits": _BITS[stored.type]}


def tokenizer_config_json(file: L2qFile, model: PieceModel) -> dict[str, Any]:
    """Return tokenizer_config.json for a SentencePiece model that lies beside it."""
    names = [model.pieces[token].text for token in (Tokenizer.bos_id, Tokenizer.eos_id)]
    values = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": names[0],
        "eos_token": names[1],
        "unk_token": model.pieces[Tokenizer.unk_id].text,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": model.adds_prefix,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.config.max_seq_len,
    }
    if file.template in CHAT_TEMPLATES:
        values["chat_template"] = CHAT_TEMPLATES[file.template]
    return values
