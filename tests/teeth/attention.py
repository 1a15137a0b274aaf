"""Faults in attention: csrc/kernels/attention*.h, kv_rows.h, csrc/backend/cpu_attention.cpp."""

from __future__ import annotations

from teeth.mutant import fault

ATTENTION = "kernels/test_attention.py"
BITWISE = "engine/test_bitwise.py"

ATTENTION_FAULTS = (
    fault(
        "mask off by one",
        "csrc/kernels/attention.h",
        "counts[b][r] = present < 0 ? 0 : present < kBlockSize ? present : kBlockSize;",
        "counts[b][r] = present < 0 ? 0 : present < kBlockSize ? present + 1 : kBlockSize;",
        f"{ATTENTION}::test_later_keys_are_never_read",
    ),
    fault(
        "stale K and V after a rewind",
        "csrc/kernels/kv_rows.h",
        "Cache::store(x, cache.head_dim, out, Cache::kScaled ? scales + row : nullptr) && finite;",
        "(out[0] != 0 ||\n"
        "         Cache::store(x, cache.head_dim, out, Cache::kScaled ? scales + row : nullptr))"
        " &&\n"
        "        finite;",
        f"{BITWISE}::test_rewind",
    ),
    fault(
        "block table off by one",
        "csrc/kernels/attention.h",
        "cache_row<V>(cache, rows.table[block], kv_head, 0)",
        "cache_row<V>(cache, rows.table[block == 0 ? 0 : block - 1], kv_head, 0)",
        f"{ATTENTION}::test_float64",
    ),
    fault(
        "another KV head's keys",
        "csrc/kernels/attention.h",
        "cache_row<V>(cache, rows.table[block], kv_head, 0)",
        "cache_row<V>(cache, rows.table[block], cache.n_kv_heads - 1 - kv_head, 0)",
        f"{ATTENTION}::test_float64",
    ),
    fault(
        "chunks combined in another order",
        "csrc/kernels/attention.h",
        "a.l = V::fma_scalar(a.l, ra, b.l * rb);",
        "a.l = V::fma_scalar(b.l, rb, a.l * ra);",
        f"{ATTENTION}::test_contract",
    ),
    fault(
        "softmax without rescaling",
        "csrc/kernels/attention.h",
        "rescale[b] = factors[b];",
        "rescale[b] = 1.0f;",
        f"{ATTENTION}::test_float64",
    ),
    fault(
        "int8 keys without their scale",
        "csrc/kernels/attention_tiles.h",
        "c = V::mul(V::load_f16(k.scales + first), c);",
        "{}",
        f"{ATTENTION}::test_float64",
    ),
    fault(
        "f16 overflow passes",
        "csrc/kernels/kv_rows.h",
        "return magnitude_bits<V>(x, n) <= 0x477fe000u;",
        "return magnitude_bits<V>(x, n) < 0x7f800000u;",
        f"{ATTENTION}::test_overflow_of_an_f16_cache_raises",
    ),
    fault(
        "rows of a tile all stop at the first row's last key",
        "csrc/kernels/attention.h",
        "if (counts[r + i] == counts[r]) continue;",
        "if (counts[r + i] >= counts[r]) continue;",
        f"{ATTENTION}::test_neighbours_in_a_tile_do_not_matter",
    ),
    fault(
        "chunks of another size",
        "csrc/kernels/args.h",
        "kChunkBlocks = 4;",
        "kChunkBlocks = 8;",
        f"{ATTENTION}::test_contract",
    ),
    fault(
        "rows of a tile at the first row's position",
        "csrc/kernels/attention.h",
        "args.positions[(tile.first_row + r) / group]",
        "args.positions[tile.first_row / group]",
        f"{ATTENTION}::test_neighbours_in_a_tile_do_not_matter",
    ),
    fault(
        "slices of a tile without their last chunk",
        "csrc/backend/cpu_attention.cpp",
        "(slice + 1) * n_chunks / n_slices, scratch",
        "(slice + 1) * n_chunks / n_slices - (slice > 0 ? 1 : 0), scratch",
        f"{ATTENTION}::test_threads_share_the_keys_of_a_token",
    ),
)
