"""Builders of GGUF files, good and bad, for the tests; the package gguf writes them."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from numpy.typing import NDArray

from converter.hf_files import Tensors, read_meta
from llama2q.config import ModelConfig
from llama2q.format import L2qFile
from llama2q.quant import dense, grid_values, int4, int8
from llama2q.quant.bits import widen

Kind = GGMLQuantizationType
Change = Callable[[GGUFWriter], object]

_NAMES = {
    "tok_embeddings": "token_embd", "norm": "output_norm", "output": "output",
    "attention_norm": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v",
    "wo": "attn_output", "ffn_norm": "ffn_norm", "w1": "ffn_gate", "w2": "ffn_down",
    "w3": "ffn_up",
}  # fmt: skip
BLOCK_BYTES = {Kind.Q4_0: 18, Kind.IQ4_NL: 18, Kind.Q8_0: 34}
GRIDS = {
    Kind.Q4_0: np.arange(-8, 8),
    Kind.IQ4_NL: np.array(
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    ),
}


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a tensor, given Meta's."""
    parts = name.split(".")
    prefix = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{prefix}{_NAMES[parts[-2]]}.weight"


def random_blocks(rng: np.random.Generator, rows: int, cols: int, kind: Kind) -> NDArray[np.uint8]:
    """Return blocks of any codes (but int8's -128) and scales: of both signs, subnormal, zeros."""
    n_blocks = cols // 32
    blocks = rng.integers(0, 256, (rows, n_blocks, BLOCK_BYTES[kind]), np.uint8)
    if kind == Kind.Q8_0:
        codes = blocks[:, :, 2:]
        codes[codes == 128] = 129
    scales = rng.normal(scale=1e-2, size=(rows, n_blocks)).astype(np.float16)
    special = np.array([0.0, -0.0, 2.0**-24, -(2.0**-20), 1.0], np.float16)
    scales.reshape(-1)[: special.size] = special[: scales.size]
    blocks[:, :, :2] = scales.view(np.uint8).reshape(rows, n_blocks, 2)
    return blocks.reshape(rows, -1)


def values_of(blocks: NDArray[np.uint8], kind: Kind) -> NDArray[np.float64]:
    """Decode a block after the text of ggml's format, byte by byte, in float64."""
    rows, size = len(blocks), BLOCK_BYTES[kind]
    values = np.empty((rows, blocks.shape[1] // size, 32))
    for row in range(rows):
        for index in range(values.shape[1]):
            block = blocks[row, index * size : (index + 1) * size].tobytes()
            (scale,) = struct.unpack_from("<e", block)
            if kind == Kind.Q8_0:
                codes = np.array(struct.unpack_from("<32b", block, 2))
            else:
                low = [GRIDS[kind][byte & 15] for byte in block[2:]]
                high = [GRIDS[kind][byte >> 4] for byte in block[2:]]
                codes = np.array(low + high)
            values[row, index] = codes * scale
    return values.reshape(rows, -1)


def encode(weights: NDArray[Any], kind: Kind, rng: np.random.Generator) -> NDArray[Any]:
    """Return a matrix as the file holds it; random blocks where gguf cannot quantize."""
    values = np.ascontiguousarray(widen(weights))
    if kind in (Kind.F32, Kind.F16):
        return quants.quantize(values, kind)
    if kind == Kind.BF16:
        return weights if weights.dtype == np.uint16 else quants.quantize(values, kind)
    if kind == Kind.IQ4_NL:
        return random_blocks(rng, *values.shape, kind)
    return (
        random_k_blocks(rng, *values.shape, kind)
        if "_K" in kind.name
        else quants.quantize(values, kind)
    )


def random_k_blocks(
    rng: np.random.Generator, rows: int, cols: int, kind: Kind
) -> NDArray[np.uint8]:
    """Return blocks of Q4_K or Q6_K with scales of ordinary size."""
    size, scales = {Kind.Q4_K: (144, (0, 2)), Kind.Q6_K: (210, (208,))}[kind]
    blocks = rng.integers(0, 256, (rows, cols // 256, size), np.uint8)
    for place in scales:
        values = rng.uniform(1e-3, 2e-3, (rows, cols // 256, 1)).astype(np.float16)
        blocks[:, :, place : place + 2] = values.view(np.uint8)
    return blocks.reshape(rows, -1)


def add_tokenizer(writer: GGUFWriter, path: Path) -> None:
    """Describe a SentencePiece model as llama.cpp's converters do."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(model.vocab_size())

    def kind(token: int) -> int:
        for number, test in (
            (2, model.is_unknown), (3, model.is_control), (5, model.is_unused), (6, model.is_byte),
        ):  # fmt: skip
            if test(token):
                return number
        return 1

    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(token).encode() for token in ids])
    writer.add_token_scores([model.get_score(token) for token in ids])
    writer.add_token_types([kind(token) for token in ids])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_remove_extra_whitespaces(True)  # as the demo model's has it, unlike Llama 2's


def add_config(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


def kind_for(name: str, kinds: Mapping[str, Kind] | Kind) -> Kind:
    """Return the type of a matrix: by the end of its name, else that of ""."""
    if isinstance(kinds, Kind):
        return kinds
    for part, kind in kinds.items():
        if part and part in name:
            return kind
    return kinds[""]


def gguf_file(
    path: Path,
    meta: Path,
    kinds: Mapping[str, Kind] | Kind = Kind.BF16,
    *,
    change: Callable[[Tensors], object] | None = None,
    keys: Change | None = None,
    more: Change | None = None,
    arch: str = "llama",
    split_max_tensors: int = 0,
) -> Path:
    """Write a checkpoint of Meta's form as GGUF.

    `kinds` is a type, or types by a part of Meta's names ("" for all others); `change` changes the
    tensors as they will stand in the file; `keys` adds or changes keys, `more` adds tensors.
    """
    tensors, config = read_meta(meta)
    rng = np.random.default_rng(8)
    writer = GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
    add_config(writer, config)
    add_tokenizer(writer, meta / "tokenizer.model")
    if keys is not None:
        keys(writer)
    stored: dict[str, tuple[NDArray[Any], Kind]] = {}
    for name, weights in tensors.items():
        kind = kind_for(name, kinds) if weights.ndim == 2 else Kind.F32
        data = encode(weights, kind, rng) if weights.ndim == 2 else widen(weights)
        stored[gguf_name(name)] = (data, kind)
    if change is not None:
        arrays = {name: data for name, (data, _) in stored.items()}
        change(arrays)
        stored = {name: (data, stored[name][1]) for name, data in arrays.items()}
    for name, (data, kind) in stored.items():
        if kind == Kind.BF16:
            data = data.view(np.uint8)
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)
    if more is not None:
        more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def decoded(file: L2qFile, source: str) -> NDArray[np.float32]:
    """Return the values of one of Meta's tensors as a file holds them."""
    name = re.sub(r"\.w[13]\.", ".w1_w3.", source)
    if name not in file.recipe.tensors:
        return file.array(name)
    matrix = file.matrix(name)
    stored, shape = matrix.stored, (matrix.rows, matrix.cols)
    bands = slice(matrix.sources.index(source), None, len(matrix.sources))
    if stored.group_size is None:
        values = file.array(name)
        return widen(values) if matrix.is_table else dense.decode(values[bands], *shape)
    codes, scales = file.array(name + ".codes"), file.array(name + ".scales")
    if matrix.is_table:
        return int8.decode_rows(codes, scales, stored.group_size)
    if stored.grid is None:
        return int8.decode(codes[bands], scales[bands], *shape)
    return int4.decode(codes[bands], scales[bands], *shape, grid_values(stored.grid))


def dequantized(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the values of every tensor of a GGUF file, as the package gguf reads them."""
    values = {}
    for entry in GGUFReader(path).tensors:
        with np.errstate(all="ignore"):
            found = quants.dequantize(np.asarray(entry.data), entry.tensor_type)
        values[entry.name] = found.reshape(tuple(reversed(entry.shape.tolist())))
    return values
