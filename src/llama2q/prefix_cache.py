"""Which KV block holds the keys and values of which text, so that equal beginnings are shared.

The key of a block is a SHA-256 chain: the key of the block before it, hashed with its own token
ids; the chain begins with a digest of all that keys and values depend on beside the tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence

import numpy as np

from llama2q.rope_scaling import RopeScaling

BLOCK = 64
"""Positions per block."""


def root_key(model_id: str, kv_dtype: str, rope: RopeScaling) -> bytes:
    """Return where the chain of a model begins.

    Parameters
    ----------
    model_id : str
        Hash of the model file's header, which holds the hashes of all weights.
    kv_dtype : str
        Type of the KV cache.
    rope : RopeScaling
        What acts in this context.
    """
    parts = ("llama2q KV block", model_id, kv_dtype, json.dumps(rope.to_dict(), sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).digest()


class TokenChain:
    """Token ids of a text from its start, and the keys of its full blocks."""

    def __init__(self, root: bytes, ids: Iterable[int] = ()) -> None:
        self._root = root
        self._ids: list[int] = []
        self._keys: list[bytes] = []
        self.append(ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids."""
        return tuple(self._ids)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Keys of the blocks that the ids fill, in their order."""
        return tuple(self._keys)

    def __len__(self) -> int:
        """Return the number of token ids."""
        return len(self._ids)

    def append(self, ids: Iterable[int]) -> None:
        """Add token ids at the end."""
        self._ids += ids
        while (start := len(self._keys) * BLOCK) + BLOCK <= len(self._ids):
            block = np.array(self._ids[start : start + BLOCK], "<i4").tobytes()
            before = self._keys[-1] if self._keys else self._root
            self._keys.append(hashlib.sha256(before + block).digest())

    def truncate(self, n_tokens: int) -> None:
        """Forget all but the first token ids."""
        del self._ids[n_tokens:]
        del self._keys[n_tokens // BLOCK :]

    def continued(self, ids: Iterable[int]) -> AbstractSequence[bytes]:
        """Return the keys of the full blocks that the text has, followed by more ids."""
        longer = TokenChain(self._root)
        longer._ids = self._ids.copy()
        longer._keys = self._keys.copy()
        longer.append(ids)
        return longer._keys


class PrefixIndex:
    """Blocks by key, and the order in which those that nobody holds were last used.

    Its owner, the pool, locks it and says which blocks are held.
    """

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: dict[int, None] = {}  # a dict keeps the order: the longest unused is first

    @property
    def n_idle(self) -> int:
        """Number of blocks that are found here and that nobody holds."""
        return len(self._idle)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Return the blocks of the first keys, up to the first that is unknown."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def add(self, block: int, key: bytes) -> None:
        """Let a held block be found, unless another one has the key already."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget(self, block: int) -> None:
        """Let a block be found no more, as it will be written anew."""
        self._idle.pop(block, None)
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]

    def rest(self, block: int) -> bool:
        """Keep a block that nobody holds any more; False if it cannot be found by a key."""
        if block not in self._key_of:
            return False
        self._idle[block] = None
        return True

    def wake(self, block: int) -> None:
        """Note that a block is held again."""
        del self._idle[block]

    def evict(self) -> int:
        """Forget, and return, the idle block that was used longest ago."""
        block = next(iter(self._idle))
        self.forget(block)
        return block
