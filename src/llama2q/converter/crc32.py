"""CRC-32 of long runs of zeros, without running over them."""

from __future__ import annotations

_POLYNOMIAL = 0xEDB88320


def crc32_of_zeros(nbytes: int) -> int:
    """Return the CRC-32 (as zlib and zip have it) of `nbytes` zero bytes.

    Appending a zero byte is a linear map of the 32 bits of the state over GF(2), so `nbytes` of
    them are its power (the idea of zlib's crc32_combine).
    """
    bit = [_POLYNOMIAL] + [1 << i for i in range(31)]  # column i: image of state bit i
    power = _square(_square(_square(bit)))
    state = 0xFFFFFFFF
    while nbytes:
        if nbytes & 1:
            state = _apply(power, state)
        power = _square(power)
        nbytes >>= 1
    return state ^ 0xFFFFFFFF


def _apply(columns: list[int], state: int) -> int:
    result = 0
    for column in columns:
        if state & 1:
            result ^= column
        state >>= 1
    return result


def _square(columns: list[int]) -> list[int]:
    return [_apply(columns, column) for column in columns]
