"""Where the layers of a file are computed: what a plan decides before memory is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llama2q import _core
from llama2q.devices import Device, DeviceRequest
from llama2q.errors import InsufficientMemoryError
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import EMBEDDINGS, LAYER_MATRICES, OUTPUT
from llama2q.kv_blocks import blocks_for
from llama2q.memory import format_size
from llama2q.needs import MAX_SEQUENCES
from llama2q.split import DeviceShare, DeviceSizes, split
from llama2q.weights import matrix_of

_ALIGNMENT = 256
_STREAM_LAYERS = 8
"""Layers of the CPU from which on one layer's room on a GPU is well spent on those that visit."""
_STREAM_TOKENS_PER_THREAD = 5
"""A pass of so many tokens per computing thread takes the CPU as long as the weights' way to a GPU.

A weight has 4.5 bits, and 2 operations a token: at 0.35e12 operations a second and thread (53
tokens of 7B on two cores, docs/performance.md) and 20 GB/s over the bus (assumed), 5 tokens.
"""
_FEWEST_STREAM_TOKENS = 33
"""Fewer are taken by kernels that read the weights once and promise the bits of one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Layers on devices, and the KV cache that this is for.

    Attributes
    ----------
    shares : tuple of DeviceShare
        In the order of their layers; the CPU has those before the first.
    kv_dtype : {"f32", "f16", "int8"}
    n_sequences : int
    whole_bytes : int
        What one device would take for all layers, with this KV cache.
    stream_tokens : int or None
        Passes of so many tokens send the CPU's layers through the first device; None: none do.
    """

    shares: tuple[DeviceShare, ...]
    kv_dtype: _core.KvDtype
    n_sequences: int
    whole_bytes: int
    stream_tokens: int | None = None

    @property
    def n_layers(self) -> int:
        """Layers on devices."""
        return sum(share.n_layers for share in self.shares)


def place(
    file: L2qFile,
    devices: Sequence[Device],
    request: DeviceRequest,
    *,
    n_ctx: int,
    kv_dtypes: Sequence[_core.KvDtype],
    n_sequences: int | None,
    n_threads: int,
) -> Placement:
    """Choose layers, KV type and contexts so that most layers are on devices.

    Parameters
    ----------
    kv_dtypes : sequence
        Types to choose from; an earlier one is better where it costs no layer.
    n_sequences : int or None
        Contexts in the KV cache; None: as many as cost no layer, 1 to 8.

    Raises
    ------
    InsufficientMemoryError
        If more layers were asked for than fit.
    """
    weights = _weight_sizes(file)
    wanted = file.config.n_layers if request.gpu_layers == "auto" else request.gpu_layers

    def sizes(kv_dtype: _core.KvDtype, count: int) -> DeviceSizes:
        return _with_cache(weights, file, devices, n_ctx, kv_dtype, count)

    def fitting(kv_dtype: _core.KvDtype, count: int) -> int:
        shares = split(devices, sizes(kv_dtype, count))
        return min(wanted, sum(share.n_layers for share in shares))

    count = n_sequences or 1
    chosen = max(kv_dtypes, key=lambda kv_dtype: fitting(kv_dtype, count))
    n_layers = fitting(chosen, count)
    if request.gpu_layers != "auto":
        n_layers = wanted  # or an error that says how many fit
    if n_sequences is None and n_layers > 0:
        counts = range(MAX_SEQUENCES, 0, -1)
        count = next((n for n in counts if fitting(chosen, n) >= n_layers), 1)
    shares = split(devices, sizes(chosen, count), n_layers)
    final = sizes(chosen, count)
    placement = Placement(
        shares=shares, kv_dtype=chosen, n_sequences=count, whole_bytes=final.whole
    )
    return _with_visits(placement, devices, final, request, n_threads)


def _with_visits(
    placement: Placement,
    devices: Sequence[Device],
    sizes: DeviceSizes,
    request: DeviceRequest,
    n_threads: int,
) -> Placement:
    """Make room on the first device for layers of the CPU that visit it, where that pays."""
    asked = request.stream_prefill
    n_host = len(sizes.layers) - placement.n_layers
    if asked is None or not placement.shares or n_host == 0:
        return placement
    if asked != "auto":
        n_tokens = asked
    else:
        n_tokens = max(_FEWEST_STREAM_TOKENS, _STREAM_TOKENS_PER_THREAD * n_threads)
        if n_host < _STREAM_LAYERS or n_tokens > _core.STEP_TOKENS:
            return placement
    first = placement.shares[0].index
    smaller = [
        replace(device, room_bytes=device.room_bytes - sizes.visitor)
        if device.index == first
        else device
        for device in devices
    ]
    wanted = placement.n_layers if request.gpu_layers != "auto" else None
    try:
        shares = split(smaller, sizes, wanted)
    except InsufficientMemoryError:
        if asked != "auto":
            raise
        return placement  # the layers that were asked for come first
    if not shares or shares[0].index != first:
        if asked != "auto":
            raise InsufficientMemoryError(
                f"stream_prefill is {asked}: {placement.shares[0].name} has no room for a layer "
                f"that visits ({format_size(sizes.visitor)}) beside one of its own; take "
                "stream_prefill=None"
            )
        return placement
    room = next(device.room_bytes for device in devices if device.index == first)
    visited = replace(shares[0], room_bytes=room, stream_bytes=sizes.visitor)
    return replace(placement, shares=(visited, *shares[1:]), stream_tokens=n_tokens)


def _weight_sizes(file: L2qFile) -> DeviceSizes:
    """Return what weights take on a device, without cache and work space."""
    norm = _aligned(4 * file.config.dim)
    matrices = [
        [_matrix_bytes(file, f"layers.{i}.{name}") for name in LAYER_MATRICES]
        for i in range(file.config.n_layers)
    ]
    tables = file.matrix(EMBEDDINGS).tensors()
    return DeviceSizes(
        embeddings=sum(_aligned(file.tensors[tensor.name].nbytes) for tensor in tables),
        layers=tuple(2 * norm + sum(layer) for layer in matrices),
        output=norm + _matrix_bytes(file, OUTPUT),
        kv_per_layer=0,
        work=0,
        visitor=2 * norm + sum(map(max, zip(*matrices, strict=True))),
    )


def _with_cache(
    weights: DeviceSizes,
    file: L2qFile,
    devices: Sequence[Device],
    n_ctx: int,
    kv_dtype: _core.KvDtype,
    n_sequences: int,
) -> DeviceSizes:
    config = file.config.to_dict()
    n_blocks = blocks_for(n_ctx)
    kv_per_layer = _core.kv_bytes({**config, "n_layers": 1}, kv_dtype, n_blocks * n_sequences)
    return replace(
        weights,
        kv_per_layer=kv_per_layer,
        visitor=weights.visitor + kv_per_layer,
        work=max(
            _core.device_work_bytes(
                config, n_blocks, n_sequences, device.n_multiprocessors, device.shared_bytes
            )
            for device in devices
        ),
    )


def _matrix_bytes(file: L2qFile, name: str) -> int:
    return _aligned(_core.device_matrix_bytes(matrix_of(file, name)))


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
