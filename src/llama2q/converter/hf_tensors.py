"""Names and row order of a Llama model's tensors in Hugging Face's form.

Source: huggingface/transformers, `convert_llama_weights_to_hf.py` and `modeling_llama.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from llama2q.config import ModelConfig

EMBEDDINGS = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"

_OUTSIDE = {
    "tok_embeddings.weight": EMBEDDINGS,
    "norm.weight": "model.norm.weight",
    "output.weight": OUTPUT,
}
_IN_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_DROPPED = re.compile(r"model\.layers\.\d{1,6}\.self_attn\.rotary_emb\.inv_freq")
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|weight_scale\w*|weight_packed|SCB|absmax|quant_map|"
    r"weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+))$"
)
_ADAPTER = re.compile(r"\.lora_[AB]\.|^base_model\.")


def hf_name(name: str) -> str:
    """Return Hugging Face's name of a tensor, given Meta's."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_IN_LAYER[rest.removesuffix('.weight')]}.weight"


def is_dropped(name: str) -> bool:
    """Whether a tensor of the file is computed anew and need not be read (rotary frequencies)."""
    return _DROPPED.fullmatch(name) is not None


def describe_unsupported(names: Iterable[str]) -> str | None:
    """Say what kind of weights these are, if their names tell that they are no plain ones."""
    for name in sorted(names):
        if _PACKED.search(name):
            return (
                f"{name} belongs to weights that are quantized already (GPTQ, AWQ, bitsandbytes or "
                "the like); convert the unquantized model that they were made from"
            )
        if _ADAPTER.search(name):
            return f"{name} belongs to a LoRA adapter; give its model's folder, and --lora FOLDER"
        if name.endswith(".bias"):
            return f"{name}: this engine does not compute biases; Llama 2 has none"
    return None


def heads_of(name: str, config: ModelConfig) -> int | None:
    """Return how many heads the permuted rows of a tensor belong to; None for those as Meta's.

    Parameters
    ----------
    name : str
        Meta's, such as `layers.0.attention.wq.weight`.
    config : ModelConfig
    """
    return {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])


def unpermute(weights: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Bring the rows of q or k back to Meta's order.

    Hugging Face rotates the halves of a head (element i with i + head_dim / 2, "half-split"), Meta
    neighbours (2i with 2i + 1, "interleaved").

    Parameters
    ----------
    weights : (n_heads * head_dim, dim)
        Rows of each head half-split.
    n_heads : int
        Query heads for q, KV heads for k.

    Returns
    -------
    array of the same dtype and shape
        A copy with each head's rows interleaved, read-only.
    """
    rows, cols = weights.shape
    halves = weights.reshape(n_heads, 2, rows // n_heads // 2, cols)
    interleaved = halves.swapaxes(1, 2).reshape(rows, cols)
    interleaved.flags.writeable = False
    return interleaved
