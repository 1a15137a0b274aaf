"""Philox4x32-10 (Salmon et al., SC 2011) in Python integers, and the sampler's draw from it."""

from __future__ import annotations

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Ten rounds; all words are 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & MASK, (left >> 32) ^ c3 ^ k1, left & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def uniform(seed: int, sequence_index: int, position: int) -> float:
    """Return the draw in [0, 1) for the token at `position` of a sequence."""
    key = seed & MASK, seed >> 32
    r0, r1, _, _ = philox4x32((position & MASK, sequence_index & MASK, 0, 0), key)
    return ((r0 | r1 << 32) >> 11) * 2.0**-53
