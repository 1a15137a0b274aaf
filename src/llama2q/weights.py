"""Builds the C++ core's model from an open `.l2q` file: arrays of the map, nothing copied."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.devices import library
from llama2q.format.layout import INV_FREQ
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import EMBEDDINGS, LAYER_MATRICES, OUTPUT
from llama2q.format.rope import attention_factor, inv_freq
from llama2q.quant import GRIDS
from llama2q.read_ahead import LOADING, ReadAhead, is_worth_loading, layer_ranges
from llama2q.rope_scaling import RopeScaling
from llama2q.split import DeviceShare


def build_model(
    file: L2qFile,
    *,
    kv_dtype: _core.KvDtype,
    n_blocks: int,
    n_threads: int | None = None,
    isa: str | None = None,
    read_ahead: ReadAhead | None = None,
    devices: Sequence[DeviceShare] = (),
    n_ctx_blocks: int | None = None,
    stream_tokens: int | None = None,
    rope: RopeScaling | None = None,
) -> _core.Model:
    """Hand every tensor of a file to the core.

    Parameters
    ----------
    file : L2qFile
        Stays open while the model lives.
    kv_dtype : {"f32", "f16", "int8"}
        Type of the KV cache.
    n_blocks : int
        Blocks of the KV cache.
    n_threads : int or None
        Computing threads; None takes the physical cores that this process may use.
    isa : str or None
        Instruction set; None takes LLAMA2Q_ISA or the fastest.
    read_ahead : ReadAhead or None
        Layers that do not stay in memory.
    devices : sequence of DeviceShare
        The last layers, on GPUs; their pages are released once they are there.
    n_ctx_blocks : int or None
        Blocks of the longest sequence; None: all.
    stream_tokens : int or None
        Passes of so many tokens send the CPU's layers through the first device.
    rope : RopeScaling or None
        What acts in this context; None: the file's own.
    """
    config = file.config
    if rope is None or rope == file.metadata.rope:
        rope, frequencies = file.metadata.rope, file.array(INV_FREQ)
    else:
        frequencies = inv_freq(config.rope_theta, config.head_dim, rope)
    layers: list[dict[str, _core.Matrix | NDArray[np.float32]]] = []
    for i in range(config.n_layers):
        layer: dict[str, _core.Matrix | NDArray[np.float32]] = {
            norm: file.array(f"layers.{i}.{norm}.weight") for norm in ("attention_norm", "ffn_norm")
        }
        for name in LAYER_MATRICES:
            layer[name.split(".")[1]] = matrix_of(file, f"layers.{i}.{name}")
        layers.append(layer)
    model = _core.Model(
        config=config.to_dict(),
        tok_embeddings=_embedding(file),
        layers=layers,
        norm=file.array("norm.weight"),
        output=matrix_of(file, OUTPUT),
        inv_freq=frequencies,
        kv_dtype=kv_dtype,
        n_blocks=n_blocks,
        n_threads=n_threads,
        isa=isa,
        devices=[(library(), share.index, share.n_layers) for share in devices],
        n_ctx_blocks=n_ctx_blocks,
        attention_factor=attention_factor(rope),
    )
    if stream_tokens is not None:
        model.set_layer_stream(stream_tokens)
    n_host_layers = config.n_layers - sum(share.n_layers for share in devices)
    if devices:
        _release(file, n_host_layers)
    if n_host_layers == 0 or not is_worth_loading(file):
        return model
    streamed: tuple[int, ...] = ()
    window_bytes = 0
    if read_ahead is not None:
        streamed, window_bytes = read_ahead.streamed, read_ahead.window_bytes
    ranges = enumerate(layer_ranges(file)[:n_host_layers])
    places = [(begin, end, i in streamed) for i, (begin, end) in ranges]
    with file.path.open("rb") as descriptor:
        model.read_ahead(descriptor.fileno(), file.map, places, window_bytes, LOADING)
    return model


def _release(file: L2qFile, n_host_layers: int) -> None:
    """Give the memory of pages back that only devices read; what they hold is in the file."""
    begin, end = layer_ranges(file)[n_host_layers][0], file.file_bytes
    begin = 0 if n_host_layers == 0 else -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    if hasattr(file.map, "madvise") and begin < end:
        file.map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def matrix_of(file: L2qFile, name: str) -> _core.Matrix:
    """Return a matrix in bands; w1 and w3 together are one of twice the bands."""
    spec = file.matrix(name)
    arrays = [file.array(tensor.name) for tensor in spec.tensors()]
    rows = spec.rows if len(spec.sources) == 1 else arrays[0].shape[0] * _core.BAND_ROWS
    if len(arrays) == 1:
        return _core.Matrix.dense(arrays[0], rows, spec.cols)
    codes, scales = arrays
    if spec.stored.grid is not None:
        grid = np.array(GRIDS[spec.stored.grid], np.int8)
        return _core.Matrix.int4(codes, scales, grid, rows, spec.cols)
    return _core.Matrix.int8(codes, scales, rows, spec.cols)


def _embedding(file: L2qFile) -> _core.Embedding:
    """Return the embedding table, row by row."""
    arrays = [file.array(tensor.name) for tensor in file.matrix(EMBEDDINGS).tensors()]
    if len(arrays) == 1:
        return _core.Embedding.dense(arrays[0])
    return _core.Embedding.int8(arrays[0], arrays[1])
