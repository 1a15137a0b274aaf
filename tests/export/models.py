"""Small `.l2q` files for exports: extreme scales, partial bands, pieces of every kind."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llama2q.config import ModelConfig
from llama2q.format import Recipe, Writer
from llama2q.format.layout import MatrixSpec, TensorSpec
from llama2q.format.metadata import Metadata
from llama2q.format.writer import Chunks, write_model
from reference_weights import band_columns, band_int4, band_int8

ODD = ModelConfig(
    dim=96, hidden_dim=160, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=37, norm_eps=1e-5,
    max_seq_len=512, rope_theta=12345.0,
)  # fmt: skip
"""Rows of three and five blocks of 32, so that groups of 64 and 128 are padded; 37 rows."""
WHOLE = replace(ODD, dim=128, hidden_dim=256, n_heads=4, n_kv_heads=2)
"""Rows of whole groups of 128."""

BPE, UNIGRAM = 2, 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

PIECES: list[tuple[str, float, int]] = [
    ("<unk>", 0.0, UNKNOWN),
    ("<s>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    ("<0x0A>", 0.0, BYTE),
    ("▁the", -1.25, NORMAL),
    ("▁é", -2.5, NORMAL),
    ("<tool>", 0.0, USER_DEFINED),
    ("nothing", 0.0, UNUSED),
]


def varint(value: int) -> bytes:
    encoded = b""
    while value >= 0x80:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def message(number: int, content: bytes) -> bytes:
    """Encode a field of Protocol Buffers that holds bytes or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def tokenizer(
    n_pieces: int,
    *,
    kind: int = BPE,
    pieces: Sequence[tuple[str, float, int]] = PIECES,
    normalizer: bytes = b"",
) -> bytes:
    """Serialize a SentencePiece model."""
    data = b""
    for token in range(n_pieces):
        text, score, piece_kind = (
            pieces[token] if token < len(pieces) else (f"p{token}", -float(token), NORMAL)
        )
        body = message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        data += message(1, body + b"\x18" + varint(piece_kind))
    return data + message(2, b"\x18" + varint(kind)) + message(3, normalizer)


def extreme_scales(rng: np.random.Generator, shape: tuple[int, int], largest: float) -> Any:
    """Scales of both signs: zero, the smallest subnormals, ordinary ones, the largest."""
    smallest = 2.0**-24
    kinds = np.array([0.0, smallest, 3 * smallest, 2.0**-14, 0.0123, 1.0, largest])
    return (rng.choice(kinds, shape) * rng.choice([-1.0, 1.0], shape)).astype(np.float16)


def extreme_dense(rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> Any:
    """Every kind of finite number that the type holds, subnormals and signed zeros included."""
    if dtype == "f32":
        bits = rng.integers(0, 2**32, shape, dtype=np.uint32)
        return np.where(bits & 0x7F800000 == 0x7F800000, 0, bits).astype(np.uint32).view(np.float32)
    bits = rng.integers(0, 2**16, shape).astype(np.uint16)
    exponent = 0x7C00 if dtype == "f16" else 0x7F80
    finite = np.where(bits & exponent == exponent, 0x8000, bits).astype(np.uint16)
    return finite.view(np.float16) if dtype == "f16" else finite


def write_extreme(
    path: Path,
    quant: str,
    *,
    config: ModelConfig = ODD,
    group_size: int = 64,
    grid: str = "nonuniform",
    dtype: str = "f32",
    largest: float = 65504.0,
    licences: dict[str, str] | None = None,
    template: str = "base",
    tokenizer_model: bytes | None = None,
) -> Path:
    """Write a model of random codes and extreme scales, or of any finite numbers; return `path`.

    Parameters
    ----------
    largest : float
        The largest scale.
    """
    rng = np.random.default_rng(7)

    def encode(matrix: MatrixSpec) -> list[Chunks]:
        parts = [_stored(rng, matrix, largest) for _ in matrix.sources]
        return [
            [np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])]
            for arrays in zip(*parts, strict=True)
        ]

    def norm(spec: TensorSpec) -> Any:
        return rng.normal(1, 0.1, spec.shape).astype(np.float16).astype(np.float32)

    recipe = Recipe.for_model(config, quant, group_size=group_size, grid=grid, dtype=dtype)
    metadata = Metadata(config, recipe, template, licences or {})
    model = tokenizer(config.vocab_size) if tokenizer_model is None else tokenizer_model
    with Writer(path, metadata, model, overwrite=True) as writer:
        write_model(writer, encode, norm)
        writer.finish()
    return path


def _stored(rng: np.random.Generator, matrix: MatrixSpec, largest: float) -> tuple[Any, ...]:
    shape, stored = (matrix.rows, matrix.cols), matrix.stored
    if stored.group_size is None:
        values = extreme_dense(rng, shape, stored.type)
        return (values if matrix.is_table else band_columns(values),)
    scales = extreme_scales(rng, (matrix.rows, -(-matrix.cols // stored.group_size)), largest)
    if stored.type == "int4":
        codes = rng.integers(0, 16, shape).astype(np.uint8)
        return band_int4(codes, stored.group_size), band_columns(scales)
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    if matrix.is_table:
        return codes, scales
    return band_int8(codes, stored.group_size), band_columns(scales)
