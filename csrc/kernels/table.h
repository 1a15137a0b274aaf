// Fills a KernelTable with the kernels of one vector class; each ISA unit does this once.
#pragma once

#include "kernels/args.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/int4_groups.h"
#include "kernels/ldl.h"
#include "kernels/limits.h"
#include "kernels/math.h"
#include "kernels/matmul.h"
#include "kernels/rows.h"

namespace llama2q {

template <class V>
inline constexpr KernelTable kKernelTable = {
    .name = V::kName,
    .stream_tokens = V::kStreamTokens,
    .most_streamed = V::kStreamTokens * V::kStreamTiles,
    .tile_tokens = V::kPanelTokens,
    .wide_codes = V::kWideCodes,
    .quantize_row = quantize_row<V>,
    .rms_norm = rms_norm<V>,
    .matmul = matmul<V>,
    .rope = rope<V>,
    .append = append<V>,
    .attend = attend<V>,
    .attend_chunks = attend_chunks<V>,
    .fold_chunks = fold_chunks<V>,
    .embed = embed<V>,
    .swiglu = swiglu<V>,
    .exp = exp_array<V>,
    .exp_scaled = exp_scaled<V>,
    .max_finite = max_finite<V>,
    .all_finite = all_finite<V>,
    .extreme_scales = extreme_scales<V>,
    .search_scales = search_scales<V>,
    .round_group = round_group<V>,
    .feed_back = feed_back<V>,
    .gemm = gemm<V>,
    .ldl_block = ldl_block<V>,
    .ldl_strip = ldl_strip<V>,
    .probe_dots = probe_dots<V>,
    .probe_reads = probe_reads<V>,
};

}  // namespace llama2q
