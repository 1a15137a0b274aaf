"""Sizes in bytes that settings lead to, and settings that fit a size."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

from llama2q import _core
from llama2q.config import ModelConfig
from llama2q.format.layout import TOKENIZER
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import EMBEDDINGS, OUTPUT
from llama2q.kv_blocks import BLOCK, blocks_for
from llama2q.read_ahead import layer_ranges

MAX_SEQUENCES = 8
"""Most full contexts that loading makes room for by itself."""
_SHARE_OF_MEMORY = 0.8
"""How much of the free memory contexts beyond the first may take."""
_KV_DTYPES: tuple[_core.KvDtype, ...] = ("f32", "f16", "int8")

# What loading and the first step add to a process that has imported llama2q, beside cache and work
# space: modules imported late, the tokenizer, stacks of threads. Measured (tests/test_plan.py).
_OVERHEAD_BYTES = 2_250_000
_OVERHEAD_PER_TOKENIZER_BYTE = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Other settings that would fit, and what they need in bytes."""

    n_ctx: int
    kv_dtype: _core.KvDtype
    n_sequences: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Needs:
    """Sizes in bytes that settings lead to."""

    config: ModelConfig
    group_size: int
    n_threads: int
    isa: str | None
    weights: int
    overhead: int
    n_host_layers: int

    @classmethod
    def of(cls, file: L2qFile, n_threads: int, isa: str | None) -> Needs:
        """Read what they depend on from an open file."""
        tokenizer_bytes = file.tensors[TOKENIZER].nbytes
        return cls(
            file.config,
            file.recipe.group_size or 0,
            n_threads,
            isa,
            file.file_bytes,
            _OVERHEAD_BYTES + _OVERHEAD_PER_TOKENIZER_BYTE * tokenizer_bytes,
            file.config.n_layers,
        )

    def beside_devices(self, file: L2qFile, n_layers: int) -> Needs:
        """Return what is left to the host where devices have the last layers."""
        if n_layers == 0:
            return self
        left = self.n_host_layers - n_layers
        gone = sum(end - begin for begin, end in layer_ranges(file)[left:])
        ends = (OUTPUT, EMBEDDINGS) if left == 0 else (OUTPUT,)
        for name in ends:
            gone += sum(file.tensors[t.name].nbytes for t in file.matrix(name).tensors())
        return replace(self, n_host_layers=left, weights=self.weights - gone)

    def step_weights(self, file: L2qFile) -> int:
        """Weights that a step of one token reads on the host: layers, and the output behind all."""
        read = sum(end - begin for begin, end in layer_ranges(file)[: self.n_host_layers])
        if self.n_host_layers == self.config.n_layers:
            read += sum(file.tensors[t.name].nbytes for t in file.matrix(OUTPUT).tensors())
        return read

    def kv(self, n_ctx: int, kv_dtype: _core.KvDtype, n_sequences: int) -> int:
        """KV cache of the host's layers when all contexts are full."""
        if self.n_host_layers == 0:
            return 0
        config = {**self.config.to_dict(), "n_layers": self.n_host_layers}
        return _core.kv_bytes(config, kv_dtype, blocks_for(n_ctx) * n_sequences)

    def work(self, n_ctx: int, n_sequences: int) -> int:
        """Work space of steps that return a row per sequence, and the rows."""
        logits = 4 * n_sequences * self.config.vocab_size
        if self.n_host_layers == 0:
            return logits
        buffers = _core.work_bytes(
            self.config.to_dict(),
            self.group_size,
            self.n_threads,
            n_ctx * n_sequences,
            n_sequences,
            self.isa,
        )
        return buffers + logits

    def anonymous(self, n_ctx: int, kv_dtype: _core.KvDtype, n_sequences: int) -> int:
        """All but the weights."""
        cache = self.kv(n_ctx, kv_dtype, n_sequences)
        return cache + self.work(n_ctx, n_sequences) + self.overhead

    def total(self, n_ctx: int, kv_dtype: _core.KvDtype, n_sequences: int) -> int:
        """All of it."""
        return self.weights + self.anonymous(n_ctx, kv_dtype, n_sequences)


def choose_kv_dtype(needs: Needs, quant: str, n_ctx: int, available: int) -> _core.KvDtype:
    """Apply the rule of `kv_dtype="auto"`.

    f32 for unquantized models, whose baseline it is; else f16 where one context fits beside the
    weights and work space; else int8.
    """
    if quant == "none":
        return "f32"
    return "f16" if needs.total(n_ctx, "f16", 1) <= available else "int8"


def choose_n_sequences(needs: Needs, n_ctx: int, kv_dtype: _core.KvDtype, available: int) -> int:
    """Return how many contexts a share of the memory holds beside the weights, 1 to 8."""
    budget = int(available * _SHARE_OF_MEMORY)
    counts = range(1, MAX_SEQUENCES + 1)
    fitting = bisect_right(counts, budget, key=lambda n: needs.total(n_ctx, kv_dtype, n))
    return max(fitting, 1)


def alternatives(needs: Needs, chosen: Alternative, available: int) -> tuple[Alternative, ...]:
    """Return settings that fit where the chosen ones do not.

    Fewer contexts, a narrower KV type, a smaller context, or the last two together. Where nothing
    fits with the weights, those are returned that fit without them, unless the chosen ones do.
    """
    if chosen.total_bytes <= available:
        return ()
    found = _smaller(needs, chosen, available - needs.weights)
    anonymous = chosen.total_bytes - needs.weights
    if found or anonymous <= available:
        return found
    return _smaller(needs, chosen, available)


def _smaller(needs: Needs, chosen: Alternative, room: int) -> tuple[Alternative, ...]:
    """Return smaller settings whose needs but for the weights are within `room`."""

    def option(n_ctx: int, kv_dtype: _core.KvDtype, n_sequences: int) -> Alternative | None:
        if n_ctx < 1 or needs.anonymous(n_ctx, kv_dtype, n_sequences) > room:
            return None
        total = needs.total(n_ctx, kv_dtype, n_sequences)
        return Alternative(
            n_ctx=n_ctx, kv_dtype=kv_dtype, n_sequences=n_sequences, total_bytes=total
        )

    def largest_context(kv_dtype: _core.KvDtype) -> int:
        """Return whole blocks that fit, and fewer tokens than were asked for; 0 if none fits."""
        sizes = range(BLOCK, chosen.n_ctx, BLOCK)
        return BLOCK * bisect_right(sizes, room, key=lambda n: needs.anonymous(n, kv_dtype, count))

    count = chosen.n_sequences
    fewer = [option(chosen.n_ctx, chosen.kv_dtype, n) for n in range(count - 1, 0, -1)]
    narrower = _KV_DTYPES[_KV_DTYPES.index(chosen.kv_dtype) + 1 :]
    retyped = [option(chosen.n_ctx, kv_dtype, count) for kv_dtype in narrower]
    shorter = [option(largest_context(chosen.kv_dtype), chosen.kv_dtype, count)]
    both = [option(largest_context(kv_dtype), kv_dtype, count) for kv_dtype in narrower]
    groups = [fewer, retyped, shorter]
    if not any(retyped):
        groups.append(both[::-1])
    return tuple(best for group in groups if (best := next(filter(None, group), None)))
