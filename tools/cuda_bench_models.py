"""Model files for bench_cuda.py, made quickly on the machine that is measured.

All layers of a file have the same bytes, drawn once, and the tokenizer is filled up with pieces
that no text has. The `.l2q` files are sound: hashes included. A program of its own, which runs
beside measurements of the GPU and prints a line of JSON for each file:

    python3 tools/cuda_bench_models.py --folder DIR --shapes 7b,13b [--forms l2q,gguf]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q.config import ModelConfig
from llama2q.converter.gguf_tensors import gguf_name
from llama2q.export import gguf_container as container
from llama2q.export.gguf_metadata import metadata_of
from llama2q.export.pieces import read_pieces
from llama2q.format import Recipe
from llama2q.format.header import build_header, model_id_of
from llama2q.format.layout import INV_FREQ, TOKENIZER, MatrixSpec, TensorSpec, model_parts
from llama2q.format.metadata import Metadata
from llama2q.format.outline import Outline
from llama2q.format.reader import L2qFile
from llama2q.format.rope import inv_freq
from synthetic_l2q import RandomTensors
from synthetic_shapes import SHAPES, SyntheticShape

ROOT = Path(__file__).resolve().parents[1]
MINI_TOKENIZER = ROOT / "tests" / "data" / "mini" / "tokenizer.model"
Bytes: TypeAlias = bytes | memoryview
_LAYER = re.compile(r"^layers\.\d+\.")
_PIECE_BYTES = 32 << 20
_THREADS = 8
_Q6_K = container.GgufType(14, 18, 256, 210)
_LEAST_LAYERS = 8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shapes", default="7b")
    parser.add_argument("--forms", default="l2q", help="l2q, and gguf: Q4_0 for llama.cpp")
    parser.add_argument(
        "--seconds", type=float, default=90, help="for a file; one that would take longer gets "
        "fewer layers, and the row says how many",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    rate = 0.0
    for form in chosen.forms.split(","):
        for name in chosen.shapes.split(","):
            started = time.perf_counter()
            row: dict[str, object] = {"file": f"{name}.{form}", "shape": name}
            try:
                shape = affordable(SHAPES[name], rate * chosen.seconds, chosen.folder)
                path = chosen.folder / f"{name}.{form}"
                if form == "l2q":
                    write_l2q(shape.config, tokenizer_of(shape.vocab_size), path)
                else:
                    write_gguf(shape, path)
                seconds = time.perf_counter() - started
                size = path.stat().st_size
                rate = size / seconds
                row |= {
                    "path": str(path),
                    "bytes": size,
                    "seconds": seconds,
                    "layers": shape.n_layers,
                    "whole_layers": SHAPES[name].n_layers,
                }
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(row), flush=True)
    return 0


def affordable(shape: SyntheticShape, writable: float, folder: Path) -> SyntheticShape:
    """Return the shape with as many layers as can be written in time and have room.

    Parameters
    ----------
    writable : float
        Bytes that can be written in time; 0 if not known.
    """
    whole = Outline.of(metadata_for(shape.config), 500_000).file_bytes
    one = replace(shape, n_layers=1)
    outside = Outline.of(metadata_for(one.config), 500_000).file_bytes
    per_layer = (whole - outside) / max(shape.n_layers - 1, 1)
    room = 0.95 * shutil.disk_usage(folder).free
    limit = min(room, writable) if writable else room
    if whole <= limit:
        return shape
    n_layers = int((limit - outside) / per_layer)
    if outside + _LEAST_LAYERS * per_layer > room:
        raise OSError(f"no room for {_LEAST_LAYERS} layers: {room / 1e9:.1f} GB are free")
    return replace(shape, n_layers=max(_LEAST_LAYERS, n_layers))


def metadata_for(config: ModelConfig) -> Metadata:
    """Return the header's content for random int4 weights."""
    recipe = Recipe.for_model(config, "int4", group_size=64, grid="nonuniform")
    return Metadata(config=config, recipe=recipe, template="base")


def tokenizer_of(n_pieces: int) -> bytes:
    """Return the demo model's tokenizer with more pieces, all of which are unlikely texts.

    Source of the encoding: google/sentencepiece, `sentencepiece_model.proto`.
    """
    data = MINI_TOKENIZER.read_bytes()
    n_there = len(read_pieces(data).pieces)
    if n_pieces < n_there:
        raise ValueError(f"a tokenizer of {n_pieces} pieces; the demo model's has {n_there}")
    more = bytearray()
    for index in range(n_there, n_pieces):
        text = f"\ue000{index}".encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -1e6 - index)
        more += b"\x0a" + bytes([len(piece)]) + piece
    return data + bytes(more)


def write_l2q(config: ModelConfig, tokenizer: bytes, path: Path) -> None:
    """Write a `.l2q` file whose layers are alike."""
    metadata = metadata_for(config)
    outline = Outline.of(metadata, len(tokenizer))
    contents: dict[str, Bytes] = {}
    source = RandomTensors(0)
    for part in model_parts(config, metadata.recipe, len(tokenizer)):
        if isinstance(part, MatrixSpec):
            specs = part.tensors()
            if _alike(specs[0].name) not in contents:
                for spec, chunks in zip(specs, source.matrix(part), strict=True):
                    contents[_alike(spec.name)] = _joined(chunks, spec.nbytes)
        elif _alike(part.name) not in contents:
            contents[_alike(part.name)] = _outside(config, part, tokenizer, source)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    finished = {t.spec.name: hashes[_alike(t.spec.name)] for t in outline.tensors}
    strings = metadata.with_hashes((), finished).to_strings()
    model_id = model_id_of(outline.placed, strings)
    header = build_header(outline.placed, {**strings, "model_id": model_id})
    pieces = [
        (outline.data_start + tensor.begin, contents[_alike(tensor.spec.name)])
        for tensor in outline.tensors
    ]
    _write(path, outline.file_bytes, [(0, header), *pieces])


def _alike(name: str) -> str:
    return _LAYER.sub("layers.", name)


def _joined(chunks: Iterable[NDArray[np.generic]], n_bytes: int) -> memoryview:
    data = np.empty(n_bytes, np.uint8)
    at = 0
    for chunk in chunks:
        view = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
        data[at : at + len(view)] = view
        at += len(view)
    if at != n_bytes:
        raise ValueError(f"{at} bytes of a tensor of {n_bytes}")
    return data.data


def _outside(
    config: ModelConfig, part: TensorSpec, tokenizer: bytes, source: RandomTensors
) -> bytes:
    if part.name == INV_FREQ:
        return inv_freq(config.rope_theta, config.head_dim).tobytes()
    return tokenizer if part.name == TOKENIZER else source.norm(part).tobytes()


def _write(path: Path, size: int, pieces: list[tuple[int, Bytes]]) -> None:
    """Write pieces at their places, several at a time; what lies between is zero."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.ftruncate(descriptor, size)

        def put(begin: int, data: memoryview) -> None:
            done = 0
            while done < len(data):
                done += os.pwrite(descriptor, data[done:], begin + done)

        with ThreadPoolExecutor(_THREADS) as pool:
            running = [
                pool.submit(put, begin + at, memoryview(data)[at : at + _PIECE_BYTES])
                for begin, data in pieces
                for at in range(0, len(data), _PIECE_BYTES)
            ]
            for future in running:
                future.result()
    finally:
        os.close(descriptor)
    part.replace(path)


def write_gguf(shape: SyntheticShape, path: Path) -> None:
    """Write random weights in Q4_0, the output matrix in Q6_K, as llama.cpp's own files have it."""
    # The metadata are those of a file of one layer, but for the number of layers.
    small = replace(shape, n_layers=1)
    stub = path.with_suffix(".stub.l2q")
    write_l2q(small.config, tokenizer_of(shape.vocab_size), stub)
    with L2qFile(stub) as file:
        metadata, _ = metadata_of(file, container.Q4_0)
    stub.unlink()
    metadata["llama.block_count"] = shape.n_layers
    entries: list[container.GgufTensor] = []
    contents: dict[str, Bytes] = {}
    config = shape.config
    for part in model_parts(config, metadata_for(config).recipe, 0):
        if part.name in (INV_FREQ, TOKENIZER):
            continue
        if isinstance(part, TensorSpec):
            name, kind, dims = gguf_name(part.name), container.F32, part.shape
            entries.append(container.GgufTensor(name, dims, kind, part.nbytes))
            contents.setdefault(_kind_of(name), np.ones(part.shape, np.float32).tobytes())
            continue
        for source in part.sources:
            name = gguf_name(source)
            kind = _Q6_K if name == "output.weight" else container.Q4_0
            n_bytes = kind.n_bytes(part.rows, part.cols)
            entries.append(container.GgufTensor(name, (part.rows, part.cols), kind, n_bytes))
            if _kind_of(name) not in contents:
                contents[_kind_of(name)] = _random_blocks(kind, n_bytes)
    header = container.build_header(metadata, entries)
    at = len(header)
    placed: list[tuple[int, Bytes]] = [(0, header)]
    for entry in entries:
        placed.append((at, contents[_kind_of(entry.name)]))
        at += entry.n_bytes + -entry.n_bytes % container.ALIGNMENT
    _write(path, at, placed)


def _kind_of(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "blk.", name)


def _random_blocks(kind: container.GgufType, n_bytes: int) -> memoryview:
    """Return blocks of random codes whose f16 scale is small."""
    blocks = np.random.default_rng(0).integers(0, 256, n_bytes, dtype=np.uint8)
    rows = blocks.reshape(-1, kind.block_bytes)
    at = kind.block_bytes - 2 if kind is _Q6_K else 0
    rows[:, at : at + 2] = np.array([2.0**-12 if kind is _Q6_K else 2.0**-8], "<f2").view(np.uint8)
    return blocks.data


if __name__ == "__main__":
    sys.exit(main())
