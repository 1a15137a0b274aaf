"""Faults in the split and in CUDA's kernels, which the emulation and the stand-in compile."""

from __future__ import annotations

from teeth.mutant import Mutant, fault
from teeth.workbench import Edit

MODEL = "cuda/test_emulated_model.py"
STAND_IN = "cuda/test_stand_in.py"
STEPS = "cuda/test_emulated_steps.py"
SMALL = f"{STEPS}::test_small_steps"
ATTENTION_CHECKS = "cuda/test_attention.py::test_attention"

HOST_FAULTS = (
    # --- csrc/model, csrc/backend: layers on devices
    fault(
        "a hop copies one row",
        "csrc/model/forward.cpp",
        "stage.backend().copy_in(x, floats, stage.x(n));",
        "stage.backend().copy_in(x, config_.dim, stage.x(n));",
        f"{MODEL}::test_layers_in_several_places",
        f"{STAND_IN}::test_the_cpu_s_bits",
    ),
    fault(
        "a later stage embeds anew",
        "csrc/model/forward.cpp",
        "      part.token_ids = nullptr;\n    }\n    part.n_rows",
        "    }\n    part.n_rows",
        f"{MODEL}::test_layers_in_several_places",
    ),
    fault(
        "a device gets the first layers",
        "csrc/model/stage.cpp",
        "weights.layers[static_cast<size_t>(i)]",
        "weights.layers[static_cast<size_t>(i - first)]",
        f"{MODEL}::test_layers_in_several_places",
        f"{STAND_IN}::test_the_cpu_s_bits",
    ),
    fault(
        "KV of the layer before",
        "csrc/model/stage.cpp",
        "const KvLayerView& cache = cache_of(i);",
        "const KvLayerView& cache = cache_of(i == first_ ? i : i - 1);",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "outputs of a long prompt begin at its first row again",
        "csrc/model/stage.cpp",
        "part.output_rows = pass.output_rows + first;",
        "part.output_rows = pass.output_rows;",
        f"{STAND_IN}::test_the_cpu_s_bits",
    ),
    fault(
        "a recording serves any number of outputs",
        "csrc/model/stage.cpp",
        "((n * (kRecordedTokens + 1) + pass.n_rows) * 2",
        "((n * (kRecordedTokens + 1)) * 2",
        f"{STEPS}::test_rows_and_hidden",
    ),
    fault(
        "a recording that was cut short is kept",
        "csrc/model/stage.cpp",
        "backend_.end_record(key_, false);",
        "backend_.end_record(key_, true);",
        f"{MODEL}::test_cancelled",
    ),
    fault(
        "an array left out of the work space's size",
        "csrc/cuda/work.cpp",
        "    add(keys);\n",
        "",
        f"{MODEL}::test_a_device_as_large_as_the_plan",
    ),
    fault(
        "a matrix takes the bytes of the one before",
        "csrc/backend/device_backend.cpp",
        "memory += aligned(cuda::matrix_bytes(host));",
        "memory += aligned(cuda::matrix_bytes(host)) / 2;",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "old drivers are accepted",
        "src/llama2q/devices.py",
        "_OLDEST_CUDA = (13, 0)",
        "_OLDEST_CUDA = (12, 0)",
        "test_devices.py::test_old_drivers",
    ),
)

PASS_FAULTS = (
    # --- csrc/cuda: passes, weights
    fault(
        "a recording serves any length",
        "csrc/cuda/pass.cu",
        "  return key * 64 + static_cast<uint64_t>(",
        "  return key * 64 + 0 * static_cast<uint64_t>(",
        f"{STEPS}::test_recordings_serve_other_positions",
    ),
    fault(
        "every token reads the first sequence's table",
        "csrc/cuda/pass.cu",
        "sequences[t] = static_cast<int32_t>(n - 1);",
        "sequences[t] = 0;",
        f"{STEPS}::test_sequences_beside_each_other",
    ),
    fault(
        "the fault of a pass is seen by the next one",
        "csrc/cuda/pass.cu",
        "std::memset(staging + at.fault, 0, sizeof(int32_t));",
        "",
        f"{MODEL}::test_values_that_are_not_finite",
        f"{MODEL}::test_too_large_for_the_cache",
    ),
    fault(
        "scales of the rows 8 further are forgotten",
        "csrc/cuda/upload.cu",
        "static_cast<uint32_t>(scales[8]) << 16",
        "static_cast<uint32_t>(scales[0]) << 16",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "embeddings take their row's first scale",
        "csrc/cuda/embed.cu",
        "table.scales[row * table.n_groups + group]",
        "table.scales[row * table.n_groups + 0 * group]",
        f"{SMALL}[int4-32-f16]",
    ),
    fault(
        "V left out of a copied block on the device",
        "csrc/cuda/copy_blocks.cu",
        "  copy_piece(args, args.layer.v, args.block_bytes, piece);\n",
        "",
        f"{STEPS}::test_copied_blocks",
    ),
)

MATMUL_FAULTS = (
    # --- csrc/cuda: matmul
    fault(
        "gemv: a unit's first scale for all of its groups",
        "csrc/cuda/gemv.cu",
        "w_scales[(i * Unit::kGroups + group) * 8]",
        "w_scales[(i * Unit::kGroups + 0 * group) * 8]",
        f"{SMALL}[int4-32-f16]",
    ),
    fault(
        "gemv: one token adds its slices in another order",
        "csrc/cuda/gemv.cu",
        "value += sums[s * kOutputs + output];",
        "value += sums[(kWidth == 1 ? kSlices - s : s) * kOutputs + output];",
        f"{STEPS}::test_small_steps_of_larger_heads",
    ),
    fault(
        "gemv: sums are read before all warps have written theirs",
        "csrc/cuda/gemv.cu",
        "      store_sums<kWidth>(acc, sums + warp * kOutputs);\n      sync_block();\n",
        "      store_sums<kWidth>(acc, sums + warp * kOutputs);\n",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "gemv: the residual is overwritten",
        "csrc/cuda/gemv.cu",
        "if (args.epilogue == Epilogue::kAdd) value = *y + value;",
        "",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "a head's ticket is not reset",
        "csrc/cuda/append.h",
        "if (*last != 0) tickets[head] = 0;",
        "",
        f"{SMALL}[int4-128-int8]",
    ),
    fault(
        "int8 cache: the scale of another head",
        "csrc/cuda/append.h",
        "(key ? to.cache.k_scales : to.cache.v_scales)[row] = half;",
        "(key ? to.cache.k_scales : to.cache.v_scales)[kv_head == 0 ? row : row - kBlockSize] ="
        " half;",
        f"{SMALL}[int4-128-int8]",
    ),
    fault(
        "RoPE's sign",
        "csrc/cuda/math.h",
        "odd ? fmaf(partner, s, own * c) : fmaf(own, c, -(partner * s))",
        "odd ? fmaf(own, c, -(partner * s)) : fmaf(partner, s, own * c)",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "activations are rounded down",
        "csrc/cuda/quantize.h",
        "const float code = v[i] * inverse + 12582912.0f;",
        "const float code = floorf(v[i] * inverse) + 12582912.0f;",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "the sum of a group's codes leaves the last four out",
        "csrc/cuda/quantize.h",
        "dot4(0x01010101u, words[0], dot4(0x01010101u, words[1], 0))",
        "dot4(0x01010101u, words[0], 0)",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "gemm: the second band takes the first one's scales",
        "csrc/cuda/gemm.cu",
        "add_group<kCodes>(acc[band][tile], c[band], w.scales[band][group], a_scales.x,",
        "add_group<kCodes>(acc[band][tile], c[band], w.scales[0][group], a_scales.x,",
        f"{MODEL}::test_prefill[int4-64-f32]",
    ),
    fault(
        "gemm: a part of K is added twice",
        "csrc/cuda/gemm.cu",
        "const float4 part = parts[split * kTileQuads + i * kTileThreads];",
        "const float4 part = parts[(split | 1) * kTileQuads + i * kTileThreads];",
        "cuda/test_matmul.py::test_matmul[splits-9.0-1]",
    ),
    fault(
        "gemm: activations are read before their copies have come",
        "csrc/cuda/gemm.cu",
        "    wait_copies<kRing<kGroup> - 2>();\n    sync_block();\n",
        "    sync_block();\n",
        f"{MODEL}::test_prefill[int4-64-f32]",
    ),
)

KERNEL_FAULTS = (
    # --- csrc/cuda: attention, select
    fault(
        "V takes K's scale",
        "csrc/cuda/decode_split.h",
        "v_scale = half_to_float(cache.v_scales[row + key]);",
        "v_scale = half_to_float(cache.k_scales[row + key]);",
        f"{SMALL}[int4-128-int8]",
    ),
    fault(
        "decode: a token does not see itself",
        "csrc/cuda/decode_split.h",
        "const bool sees = position + key < queries.keys(h);",
        "const bool sees = position + key + 1 < queries.keys(h) || position + key == 0;",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "decode: a split's ticket is not reset",
        "csrc/cuda/attend_decode.cu",
        "    if (shared.is_last) *ticket = 0;\n",
        "",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "decode: splits are added as if they had one maximum",
        "csrc/cuda/attend_decode.cu",
        "softmax.x == -INFINITY ? 0.0f : exp_of(softmax.x - largest)",
        "softmax.x == -INFINITY ? 0.0f : 1.0f",
        f"{SMALL}[int4-64-f32]",
    ),
    fault(
        "decode: a kernel that does not wait for the one before",
        "csrc/cuda/attend_decode.cu",
        "  __shared__ SharedState<Shape> shared;\n  wait_for_previous();\n",
        "  __shared__ SharedState<Shape> shared;\n",
        f"{STEPS}::test_order_of_threads_and_overlapping_launches",
    ),
    fault(
        "prefill: mask off by one",
        "csrc/cuda/attend_prefill.cu",
        "if (key + 8 * n + i > rows.position[half]) score = -INFINITY;",
        "if (key + 8 * n + i > rows.position[half] + 1) score = -INFINITY;",
        f"{MODEL}::test_prefill_on_tensor_cores[33-f16]",
    ),
    fault(
        "prefill: the sum is not brought to the new maximum",
        "csrc/cuda/attend_prefill.cu",
        "rows.sum[half] = fmaf(rows.sum[half], factor, sum);",
        "rows.sum[half] += sum;",
        f"{MODEL}::test_prefill_on_tensor_cores[300-f16]",
    ),
    fault(
        "prefill: K is overwritten while it is read",
        "csrc/cuda/attend_prefill.cu",
        "      wait_copies<0>();\n      sync_block();  // V is here, and K has been read\n",
        "      wait_copies<0>();\n",
        f"{MODEL}::test_prefill_on_tensor_cores[300-f16]",
    ),
    Mutant(
        "select: ties go to the higher id",
        (
            Edit(
                "csrc/cuda/select.cu",
                "<< 32 | (0xffffffffu - static_cast<uint32_t>(id))",
                "<< 32 | static_cast<uint32_t>(id)",
            ),
            Edit(
                "csrc/cuda/select.cu",
                "static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key & 0xffffffffu))",
                "static_cast<int32_t>(static_cast<uint32_t>(key & 0xffffffffu))",
            ),
        ),
        (f"{ATTENTION_CHECKS}[select_ties-7.5-0]",),
    ),
    fault(
        "select: tickets are not reset",
        "csrc/cuda/select.cu",
        "      if (is_last) args.tickets[row] = 0;\n",
        "",
        f"{ATTENTION_CHECKS}[select_large_vocabulary-7.5-0]",
        f"{ATTENTION_CHECKS}[select_sizes-7.5-0]",
    ),
)

VISITS = "cuda/test_emulated_visits.py"
VISIT_FAULTS = (
    # --- layers that visit a device; what is chosen there
    fault(
        "a visit: what it appended stays on the device",
        "csrc/model/layer_stream.cpp",
        "    take_cache_back(host.cache_of(i), blocks.touched);\n",
        "",
        f"{VISITS}::test_the_cache_comes_back",
    ),
    fault(
        "a visit: a block that is not full stays behind",
        "csrc/model/layer_stream.cpp",
        "const int64_t n_past = (position + kBlockSize - 1) / kBlockSize;",
        "const int64_t n_past = position / kBlockSize;",
        f"{VISITS}::test_the_cache_comes_back",
    ),
    fault(
        "a visit: w2 where w1 and w3 lie",
        "csrc/model/layer_stream.cpp",
        "put(view.w2, layer.w2, 5);",
        "put(view.w2, layer.w2, 4);",
        f"{STAND_IN}::test_layers_that_visit[1-f16]",
    ),
    fault(
        "the library is unmapped after its last user",
        "csrc/base/os/posix/library.cpp",
        "RTLD_LOCAL | RTLD_NODELETE",
        "RTLD_LOCAL",
        "cuda/test_library.py::test_it_outlives_its_last_user",
    ),
    fault(
        "a visit: launches overlap what is still being copied",
        "csrc/cuda/place.cu",
        "  device.stream.programmatic = false;\n",
        "",
        f"{VISITS}::test_text",
    ),
    fault(
        "a visit's room is not planned",
        "src/llama2q/placement.py",
        "stream_bytes=sizes.visitor",
        "stream_bytes=1",
        f"{STAND_IN}::test_room_for_layers_that_visit",
    ),
    fault(
        "the largest logits: ties go to the higher id",
        "csrc/backend/cpu_select.cpp",
        "(from[a] == from[b] && a < b)",
        "(from[a] == from[b] && a > b)",
        "engine/test_step_largest.py::test_largest",
    ),
    fault(
        "the largest logits: too few of them",
        "src/llama2q/generate/request.py",
        "return 1 if params.temperature == 0 else params.top_k or None",
        "return 1 if params.temperature == 0 else params.top_k - 1 or None",
        f"{STAND_IN}::test_the_largest_alone",
    ),
)

CUDA = HOST_FAULTS + VISIT_FAULTS + PASS_FAULTS + MATMUL_FAULTS + KERNEL_FAULTS
