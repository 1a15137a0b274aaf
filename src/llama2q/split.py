"""Which layers a GPU computes and which the CPU: from exact sizes and what memory is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama2q.devices import Device
from llama2q.errors import InsufficientMemoryError, InvalidArgumentError
from llama2q.memory import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSizes:
    """Bytes that parts of a model take on a device.

    Attributes
    ----------
    embeddings : int
        Needed where no layer is left to the CPU.
    layers : tuple of int
        Weights of each.
    output : int
        The last norm and the output matrix, needed on the device of the last layer.
    kv_per_layer : int
    work : int
        Once for each device.
    visitor : int
        Of a layer that visits: its weights, as large as any layer's, and its cache.
    """

    embeddings: int
    layers: tuple[int, ...]
    output: int
    kv_per_layer: int
    work: int
    visitor: int = 0

    @property
    def whole(self) -> int:
        """What a device takes that has all layers."""
        n_layers = len(self.layers)
        weights = self.embeddings + sum(self.layers) + self.output
        return weights + n_layers * self.kv_per_layer + self.work


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """The layers of one device, and what they take of its memory, in bytes.

    stream_bytes are taken where layers of the CPU visit the device; read_bytes is what a step of
    one token reads of the weights; bytes_per_second is the bandwidth of the device's memory, 0 if
    unknown.
    """

    index: int
    name: str
    first_layer: int
    n_layers: int
    weight_bytes: int
    kv_bytes: int
    work_bytes: int
    room_bytes: int
    read_bytes: int
    bytes_per_second: int = 0
    stream_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.kv_bytes + self.work_bytes + self.stream_bytes

    def __str__(self) -> str:
        """Say which layers it has and how full it is."""
        last = self.first_layer + self.n_layers - 1
        total = self.total_bytes
        return (
            f"{self.name}: layers {self.first_layer} to {last}: weights "
            f"{format_size(self.weight_bytes, total)} + KV cache "
            f"{format_size(self.kv_bytes, total)} + work "
            f"{format_size(self.work_bytes + self.stream_bytes, total)} = "
            f"{format_size(total)} of {format_size(self.room_bytes)}"
        )


def split(
    devices: Sequence[Device], sizes: DeviceSizes, n_layers_asked: int | None = None
) -> tuple[DeviceShare, ...]:
    """Deal out the last layers of a model to devices.

    The CPU keeps the first layers, so that the step ends where the output matrix is read fastest.
    The last device is filled first; one that gets no layer is left out, so that a model that fits
    one device is on one.

    Parameters
    ----------
    devices : sequence of Device
        In the order of their layers.
    sizes : DeviceSizes
    n_layers_asked : int or None
        Layers on devices; None takes as many as fit.

    Raises
    ------
    InvalidArgumentError
        If the model has fewer layers.
    InsufficientMemoryError
        If more were asked for than fit.
    """
    n_layers = len(sizes.layers)
    if n_layers_asked is not None and not 0 <= n_layers_asked <= n_layers:
        raise InvalidArgumentError(
            f"gpu_layers is {n_layers_asked}; expected 0 to {n_layers}, the model's layers"
        )
    if n_layers_asked is not None:
        shares = _place(devices, sizes, n_layers_asked)
        if shares is None:
            raise InsufficientMemoryError(_too_many(devices, sizes, n_layers_asked))
        return shares
    found = (_place(devices, sizes, wanted) for wanted in range(n_layers, 0, -1))
    return next((shares for shares in found if shares is not None), ())


def _place(
    devices: Sequence[Device], sizes: DeviceSizes, wanted: int
) -> tuple[DeviceShare, ...] | None:
    """Return shares of the last `wanted` layers, or None if they do not fit."""
    n_layers = len(sizes.layers)
    end, first = n_layers, n_layers - wanted
    shares: list[DeviceShare] = []
    for device in reversed(devices):
        if end == first:
            break
        ends = sizes.output if end == n_layers else 0
        begin = end
        weights = ends
        while begin > first:
            more = weights + sizes.layers[begin - 1] + (sizes.embeddings if begin == 1 else 0)
            kv = sizes.kv_per_layer * (end - begin + 1)
            if more + kv + sizes.work > device.room_bytes:
                break
            weights = more
            begin -= 1
        if begin == end:
            continue
        shares.append(
            DeviceShare(
                index=device.index,
                name=device.name,
                first_layer=begin,
                n_layers=end - begin,
                weight_bytes=weights,
                kv_bytes=sizes.kv_per_layer * (end - begin),
                work_bytes=sizes.work,
                room_bytes=device.room_bytes,
                read_bytes=weights - (sizes.embeddings if begin == 0 else 0),
                bytes_per_second=device.bytes_per_second,
            )
        )
        end = begin
    return tuple(reversed(shares)) if end == first else None


def _too_many(devices: Sequence[Device], sizes: DeviceSizes, asked: int) -> str:
    fitting = sum(share.n_layers for share in split(devices, sizes))
    rooms = ", ".join(f"{device.name} {format_size(device.room_bytes)}" for device in devices)
    return (
        f"gpu_layers is {asked}: they do not fit; there is room for {fitting} ({rooms}). Take "
        'gpu_layers="auto", a shorter context or a narrower KV type'
    )
