"""A `.l2q` file's model as GGUF, for llama.cpp: the same weights where both formats can hold them.

int4 with the uniform grid in groups of 32 is GGUF's Q4_0 and int8 in groups of 32 its Q8_0, value
for value: only the order of the bits changes. In llama.cpp's own Q4_0 files the output matrix is in
Q6_K; `--output q6_k` rounds it to that.

    python3 tools/gguf_file.py MODEL.l2q MODEL.gguf
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

import q6_k
from llama2q.errors import Llama2qError
from llama2q.format.layout import TOKENIZER, MatrixSpec
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import EMBEDDINGS, OUTPUT
from llama2q.quant import BAND_ROWS

ALIGNMENT = 32
GROUP = 32
F32, Q4_0, Q8_0 = 0, 2, 8
"""Tensor types of GGUF."""
_CHUNK_BANDS = 64

_NAMES = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor to be written.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Rows first, as NumPy has it.
    kind : int
        GGUF's number of the type.
    n_bytes : int
    chunks : callable
        Yields its bytes in order.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    n_bytes: int
    chunks: Callable[[], Iterator[NDArray[Any]]]


def write_gguf(path: Path, metadata: dict[str, Any], tensors: list[GgufTensor]) -> None:
    """Write a GGUF file, version 3: header, metadata, list of tensors, aligned data.

    Parameters
    ----------
    path : Path
    metadata : dict
        str, bool, int (uint32), float (float32), or a list of str, of int (int32) or of float.
    tensors : list of GgufTensor
    """
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        header += _text(key) + _value(value)
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        header += _text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", tensor.kind, offset)
        offset += tensor.n_bytes + -tensor.n_bytes % ALIGNMENT
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for tensor in tensors:
            begin = file.tell()
            for chunk in tensor.chunks():
                file.write(np.ascontiguousarray(chunk).data)
            if file.tell() - begin != tensor.n_bytes:
                raise ValueError(f"{tensor.name}: wrote {file.tell() - begin} bytes")
            file.write(bytes(-tensor.n_bytes % ALIGNMENT))
    part.replace(path)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    kind, pack = {
        str: (8, _text),
        int: (5, lambda item: struct.pack("<i", item)),
        float: (6, lambda item: struct.pack("<f", item)),
    }[type(value[0])]
    return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(pack, value))


def export(source: Path, target: Path, output: str = "q8_0") -> None:
    """Write a `.l2q` file's model as GGUF.

    Parameters
    ----------
    source, target : Path
    output : {"q8_0", "q6_k"}
        Type of the output matrix.

    Raises
    ------
    ValueError
        If its types have no equal in GGUF.
    """
    with L2qFile(source) as file:
        tensors = list(_tensors(file, output))
        write_gguf(target, metadata_of(file), tensors)


def metadata_of(file: L2qFile) -> dict[str, Any]:
    """Return what llama.cpp must know: hyperparameters and the tokenizer's pieces."""
    config = file.config
    pieces = sentencepiece.SentencePieceProcessor(model_proto=file.array(TOKENIZER).tobytes())
    ids = range(config.vocab_size)
    return {
        "general.architecture": "llama",
        "general.name": file.path.stem,
        "general.alignment": ALIGNMENT,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_theta),
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [float(pieces.get_score(i)) for i in ids],
        "tokenizer.ggml.token_type": [_token_type(pieces, i) for i in ids],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _token_type(pieces: Any, token: int) -> int:
    """Return GGUF's number: 1 normal, 2 unknown, 3 control, 6 byte."""
    if pieces.is_unknown(token):
        return 2
    if pieces.is_control(token):
        return 3
    return 6 if pieces.is_byte(token) else 1


def _tensors(file: L2qFile, output: str) -> Iterator[GgufTensor]:
    for name in file.recipe.tensors:
        matrix = file.matrix(name)
        stored = matrix.stored
        exact = stored.group_size == GROUP and (stored.type, stored.grid) in (
            ("int4", "uniform"),
            ("int8", None),
        )
        if not exact or matrix.cols % GROUP:
            raise ValueError(
                f"{name} is {stored.type}, group {stored.group_size}, grid {stored.grid}, "
                f"{matrix.cols} columns; only groups of 32, int4 with the uniform grid and int8, "
                "of whole groups, have an equal in GGUF: convert with --group-size 32 "
                "--grid uniform"
            )
        for index, source in enumerate(matrix.sources):
            tensor = _matrix(file, matrix, index, _gguf_name(source))
            yield as_q6_k(tensor) if output == "q6_k" and name == OUTPUT else tensor
    for name, info in file.tensors.items():
        if name.endswith("norm.weight"):
            values = [file.array(name)]
            yield GgufTensor(_gguf_name(name), info.shape, F32, info.nbytes, values.__iter__)


def _gguf_name(name: str) -> str:
    """Translate Meta's name."""
    known = {EMBEDDINGS: "token_embd", OUTPUT: "output", "norm.weight": "output_norm"}
    if name in known:
        return f"{known[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _matrix(file: L2qFile, matrix: MatrixSpec, index: int, name: str) -> GgufTensor:
    """Describe source `index` of a matrix, whose bands alternate with those of the others."""
    is_int4 = matrix.stored.type == "int4"
    codes = file.array(f"{matrix.name}.codes")
    scales = file.array(f"{matrix.name}.scales")
    if not matrix.is_table:
        step = len(matrix.sources)
        codes, scales = codes[index::step], scales[index::step]

    def chunks() -> Iterator[NDArray[Any]]:
        size = _CHUNK_BANDS * (BAND_ROWS if matrix.is_table else 1)
        for first in range(0, len(codes), size):
            part, scale = codes[first : first + size], scales[first : first + size]
            if not matrix.is_table:
                first_row = first * BAND_ROWS
                part = rows_of_int4(part) if is_int4 else rows_of_int8(part)
                part = part[: matrix.rows - first_row]
                scale = scale.transpose(0, 2, 1).reshape(-1, scale.shape[1])[: len(part)]
            yield q4_0_blocks(part, scale) if is_int4 else q8_0_blocks(part, scale)

    n_bytes = matrix.rows * matrix.cols // GROUP * (18 if is_int4 else 34)
    kind = Q4_0 if is_int4 else Q8_0
    return GgufTensor(name, (matrix.rows, matrix.cols), kind, n_bytes, chunks)


def as_q6_k(tensor: GgufTensor) -> GgufTensor:
    """Round a Q8_0 matrix to Q6_K.

    Raises
    ------
    ValueError
        If its rows are not whole blocks of 256.
    """
    rows, cols = tensor.shape
    if tensor.kind != Q8_0 or cols % q6_k.SUPER_BLOCK:
        raise ValueError(
            f"{tensor.name} of {cols} columns cannot be Q6_K; its blocks have {q6_k.SUPER_BLOCK}"
        )

    def chunks() -> Iterator[NDArray[Any]]:
        for blocks in tensor.chunks():
            scales = blocks[..., :2].copy().view(np.float16).astype(np.float32)
            values = scales * blocks[..., 2:].copy().view(np.int8)
            yield q6_k.encode(values.reshape(-1, cols))

    n_bytes = rows * cols // q6_k.SUPER_BLOCK * q6_k.BLOCK_BYTES
    return GgufTensor(tensor.name, tensor.shape, q6_k.Q6_K, n_bytes, chunks)


def rows_of_int4(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes uint8 (n_bands, K/8, 64) of the file to one code per element, uint8 (16*n_bands, K)."""
    n_bands, n_lines, _ = codes.shape
    packed = codes.reshape(n_bands, n_lines, BAND_ROWS, 4).transpose(0, 2, 1, 3)
    halves = np.stack([packed & 15, packed >> 4], axis=3)
    return halves.reshape(n_bands * BAND_ROWS, n_lines * 8)


def rows_of_int8(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Codes int8 (n_bands, K/4, 64) of the file to rows, int8 (16*n_bands, K)."""
    n_bands, n_lines, _ = codes.shape
    rows = codes.reshape(n_bands, n_lines, BAND_ROWS, 4).transpose(0, 2, 1, 3)
    return rows.reshape(n_bands * BAND_ROWS, n_lines * 4)


def q4_0_blocks(codes: NDArray[np.uint8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Codes uint8 (rows, K) and scales (rows, K/32) to Q4_0: f16 scale, then 16 bytes.

    Byte i holds element i in its low nibble and element i + 16 in its high one.
    """
    groups = codes.reshape(*scales.shape, GROUP)
    blocks = np.empty((*scales.shape, 18), np.uint8)
    blocks[..., :2] = np.ascontiguousarray(scales)[..., None].view(np.uint8)
    np.bitwise_or(groups[..., :16], groups[..., 16:] << 4, out=blocks[..., 2:])
    return blocks


def q8_0_blocks(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Codes int8 (rows, K) and scales (rows, K/32) to Q8_0: f16 scale, then 32 bytes."""
    blocks = np.empty((*scales.shape, 34), np.uint8)
    blocks[..., :2] = np.ascontiguousarray(scales)[..., None].view(np.uint8)
    blocks[..., 2:] = np.ascontiguousarray(codes).view(np.uint8).reshape(*scales.shape, GROUP)
    return blocks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, metavar="MODEL.l2q")
    parser.add_argument("target", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--output", choices=["q8_0", "q6_k"], default="q8_0")
    chosen = parser.parse_args(arguments)
    try:
        export(chosen.source, chosen.target, chosen.output)
    except (Llama2qError, ValueError, OSError) as error:
        print(f"gguf_file: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
