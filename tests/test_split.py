"""Layers dealt out to devices: what fits, in order, as many as possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2q.devices import Device
from llama2q.errors import InsufficientMemoryError, InvalidArgumentError
from llama2q.split import DeviceShare, DeviceSizes, split

SIZES = DeviceSizes(embeddings=50, layers=(100,) * 10, output=60, kv_per_layer=20, work=30)


def gpu(index: int, room: int) -> Device:
    return Device(
        index=index, name=f"GPU {index}", total_bytes=room, free_bytes=room, room_bytes=room
    )


def layers_of(shares: tuple[DeviceShare, ...]) -> list[tuple[int, int, int]]:
    return [(share.index, share.first_layer, share.n_layers) for share in shares]


def test_everything_on_one() -> None:
    """Embeddings are needed once no layer is left to the CPU."""
    whole = 10 * 120 + 60 + 50 + 30
    assert layers_of(split([gpu(0, whole)], SIZES)) == [(0, 0, 10)]
    assert layers_of(split([gpu(0, whole - 1)], SIZES)) == [(0, 1, 9)]
    assert layers_of(split([gpu(0, whole), gpu(1, whole)], SIZES)) == [(1, 0, 10)]


def test_several_devices() -> None:
    """The last one has the output; the CPU keeps the first layers."""
    shares = split([gpu(0, 30 + 240), gpu(1, 30 + 60 + 360)], SIZES)
    assert layers_of(shares) == [(0, 5, 2), (1, 7, 3)]
    assert [share.weight_bytes for share in shares] == [200, 360]
    assert [share.kv_bytes for share in shares] == [40, 60]
    assert [share.total_bytes for share in shares] == [270, 450]


def test_a_device_without_room_is_left_out() -> None:
    assert layers_of(split([gpu(0, 10_000), gpu(1, 10)], SIZES)) == [(0, 0, 10)]
    assert split([gpu(0, 30 + 60 + 119)], SIZES) == ()


def test_layers_that_are_asked_for() -> None:
    assert layers_of(split([gpu(0, 10_000)], SIZES, 3)) == [(0, 7, 3)]
    assert split([gpu(0, 10_000)], SIZES, 0) == ()
    message = "gpu_layers is 10: they do not fit; there is room for 2 "
    with pytest.raises(InsufficientMemoryError, match=message):
        split([gpu(0, 30 + 60 + 240)], SIZES, 10)
    with pytest.raises(InvalidArgumentError, match="gpu_layers is 11; expected 0 to 10"):
        split([gpu(0, 10_000)], SIZES, 11)


def test_a_share_in_words() -> None:
    (share,) = split(
        [gpu(0, 2**20 * 600)],
        DeviceSizes(
            embeddings=0,
            layers=(2**20 * 100,) * 4,
            output=0,
            kv_per_layer=2**20 * 10,
            work=2**20 * 50,
        ),
    )
    assert str(share) == (
        "GPU 0: layers 0 to 3: weights 400.0 MiB + KV cache 40.0 MiB + work 50.0 MiB = 490.0 MiB "
        "of 600.0 MiB"
    )


@given(
    rooms=st.lists(st.integers(0, 2000), min_size=1, max_size=4),
    layers=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    ends=st.tuples(*[st.integers(0, 300)] * 4),
)
def test_no_device_overflows(
    rooms: list[int], layers: list[int], ends: tuple[int, int, int, int]
) -> None:
    embeddings, output, kv, work = ends
    sizes = DeviceSizes(
        embeddings=embeddings, layers=tuple(layers), output=output, kv_per_layer=kv, work=work
    )
    shares = split([gpu(i, room) for i, room in enumerate(rooms)], sizes)
    end = len(layers)
    for share in reversed(shares):
        assert share.first_layer + share.n_layers == end
        end = share.first_layer
        held = sum(layers[end : end + share.n_layers]) + kv * share.n_layers + work
        held += output * (share is shares[-1]) + embeddings * (end == 0)
        assert held == share.total_bytes <= rooms[share.index]
        assert share.n_layers >= 1
    indices = [share.index for share in shares]
    assert indices == sorted(set(indices))
    if end > 0:
        with pytest.raises(InsufficientMemoryError):
            split([gpu(i, room) for i, room in enumerate(rooms)], sizes, len(layers) - end + 1)
