"""Names of a Llama model's tensors in a GGUF file, and what else such a file may hold.

Rows of q and k are in Meta's order: those who convert Hugging Face's form bring them back to it,
and architecture "llama" rotates neighbours (ggml-org/llama.cpp, `convert_hf_to_gguf.py`, `permute`;
`llama-model.cpp`, LLAMA_ROPE_TYPE_NORM).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from llama2q.converter.checkpoint import some
from llama2q.converter.gguf_file import GgufTensor
from llama2q.errors import TensorSetError, UnsupportedModelError

EMBEDDINGS = "token_embd.weight"
OUTPUT = "output.weight"
ROPE_FREQS = "rope_freqs.weight"

_OUTSIDE = {
    "tok_embeddings.weight": EMBEDDINGS,
    "norm.weight": "output_norm.weight",
    "output.weight": OUTPUT,
}
_IN_LAYER = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
_EXPERTS = re.compile(r"ffn_gate_inp|_exps\.|ffn_(gate|down|up)\.\d")
_MAX_FACTORS = 1 << 12


def gguf_name(name: str) -> str:
    """Return GGUF's name of a tensor, given Meta's."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_IN_LAYER[rest.removesuffix('.weight')]}.weight"


def check_tensors(
    where: str, tensors: Mapping[str, GgufTensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare names, shapes and types with what the model has.

    Parameters
    ----------
    where : str
        What messages call the file.
    tensors : mapping
        Those of the file by GGUF's names.
    shapes : mapping
        Those of the model by Meta's names.

    Raises
    ------
    TensorSetError, UnsupportedModelError
    """
    expected = {gguf_name(name): shape for name, shape in shapes.items()}
    if OUTPUT not in tensors:
        del expected[OUTPUT]
    extra = sorted(set(tensors) - set(expected) - {ROPE_FREQS})
    for name in extra:
        if name.endswith(".bias"):
            raise UnsupportedModelError(
                f"{where}: {name}: this engine does not compute biases; Llama 2 has none"
            )
        if _EXPERTS.search(name):
            raise UnsupportedModelError(f"{where}: {name}: this engine does not compute experts")
    missing = [name for name in expected if name not in tensors]
    if missing or extra:
        faults = [
            f"{label} {len(names)} ({some(names)})"
            for label, names in (("missing", missing), ("unexpected", extra))
            if names
        ]
        raise TensorSetError(
            f"{where} does not hold the {len(expected)} tensors of a Llama model: "
            + "; ".join(faults)
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise TensorSetError(
                f"{where}: {name} has the shape {tensor.shape}; its keys make it {shape}"
            )
        if len(shape) == 1 and tensor.type.dense is None:
            raise TensorSetError(
                f"{where}: {name} has the type {tensor.type.name}; expected plain numbers"
            )
    _check_factors(where, tensors)


def _check_factors(where: str, tensors: Mapping[str, GgufTensor]) -> None:
    """Refuse factors of the rotary frequencies other than 1."""
    factors = tensors.get(ROPE_FREQS)
    if factors is None:
        return
    if factors.type.dense != "f32" or factors.nbytes > 4 * _MAX_FACTORS:
        raise TensorSetError(
            f"{where}: {ROPE_FREQS} is {factors.type.name} {factors.shape}; expected a few F32"
        )
    if (factors.rows().view(np.float32) != 1).any():
        raise UnsupportedModelError(
            f"{where}: {ROPE_FREQS} scales the rotary frequencies, as Llama 3.1's does; this "
            "engine does not compute that"
        )
