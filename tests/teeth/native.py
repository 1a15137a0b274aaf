"""Faults in C++: what is changed where, and which tests must notice.

A test is a pytest target relative to the tests folder; at least one of those named must fail. An
old text stands exactly once in its file. Where every ISA shares the changed text, only the NumPy
references can notice; where one ISA is changed, the comparison with the scalar kernel does, too.
"""

from __future__ import annotations

from teeth.arm import ARM_FAULTS
from teeth.attention import ATTENTION, ATTENTION_FAULTS
from teeth.calibrate import CALIBRATE_FAULTS
from teeth.mutant import Mutant, fault
from teeth.workbench import Edit

MATMUL = "kernels/test_matmul.py"
SAMPLE = "kernels/test_sample.py"
EDITS = "kernels/test_logit_edits.py"
LOGPROBS = "kernels/test_logprobs.py"
DISTRIBUTION = "kernels/test_distribution.py"
CONTRACT = "engine/test_contract.py"
BITWISE = "engine/test_bitwise.py"
CHECKS = "engine/test_step_checks.py"
ENVIRONMENT = "engine/test_float_environment.py"
QUANTIZERS = "quant/test_core_quantizers.py"

# Grouped by file, so that what must be compiled again stays small.
NATIVE = (
    # --- csrc/quant, csrc/base
    fault(
        "nibble swap",
        "csrc/quant/int4.h",
        "V::dot(dots[t], low, high, x + 4 * t, x + 4 * (kTokens + t))",
        "V::dot(dots[t], high, low, x + 4 * t, x + 4 * (kTokens + t))",
        f"{MATMUL}::test_each_element_has_its_place",
    ),
    fault(
        "panels: nibble swap",
        "csrc/quant/int4.h",
        "P::store(high, P::store(low, out, stride), stride)",
        "P::store(low, P::store(high, out, stride), stride)",
        f"{MATMUL}::test_each_element_has_its_place",
    ),
    fault(
        "int4 quantizer: ties go up",
        "csrc/quant/groups.h",
        "grid[m] + grid[m + 1] < twice",
        "grid[m] + grid[m + 1] <= twice",
        f"{QUANTIZERS}::test_int4",
        f"{QUANTIZERS}::test_any_floats",
    ),
    fault(
        "int4 quantizer: the extreme loses its sign",
        "csrc/quant/quantize.cpp",
        "group.negative_amax >= group.amax ? -largest : largest",
        "group.negative_amax > group.amax ? -largest : largest",
        f"{QUANTIZERS}::test_int4",
        f"{QUANTIZERS}::test_any_floats",
    ),
    fault(
        "small scales rounded down",
        "csrc/base/types.h",
        "if (static_cast<float>(whole) < steps) ++whole;",
        "",
        f"{ATTENTION}::test_int8_cache_of_tiny_values",
        f"{QUANTIZERS}::test_int4",
    ),
    fault(
        "RoPE angle in float32",
        "csrc/backend/batch.cpp",
        "sin_cos(batch.positions[t] * frequency)",
        "sin_cos(static_cast<float>(batch.positions[t] * frequency))",
        "kernels/test_rope.py::test_float64",
    ),
    fault(
        "sin without YaRN's factor",
        "csrc/backend/batch.cpp",
        "static_cast<float>(value.sin * attention_factor)",
        "static_cast<float>(value.sin)",
        "kernels/test_rope.py::test_attention_factor",
        "engine/test_rope_scaling.py::test_step_is_the_contract",
    ),
    fault(
        "caller's rounding and denormal modes kept",
        "csrc/base/float_env.h",
        "{ _mm_setcsr(0x1F80); }",
        "{}",
        f"{ENVIRONMENT}::test_kernels",
        isa="avx2",
    ),
    # --- csrc/kernels/matmul.h
    fault(
        "neighbour's scale",
        "csrc/kernels/matmul.h",
        "V::load_f16(w_scales + g * kBandRows)",
        "V::load_f16(w_scales + (g > 0 ? g - 1 : g) * kBandRows)",
        f"{MATMUL}::test_contract",
    ),
    fault(
        "mul and add in place of fma",
        "csrc/kernels/matmul.h",
        "acc[t] = V::fma(V::to_float(V::finish_dot(dots[t])), scale, acc[t]);",
        "acc[t] = V::add(V::mul(V::to_float(V::finish_dot(dots[t])), scale), acc[t]);",
        f"{MATMUL}::test_contract",
    ),
    fault(
        "the second tile of a stream takes the first one's scales",
        "csrc/kernels/matmul.h",
        "const float* scales = x.scales + t0 * w.n_groups;",
        "const float* scales = x.scales;",
        f"{MATMUL}::test_every_width_of_a_tile",
        isa="avx512vnni",
    ),
    Mutant(
        "K in another order",
        (
            Edit(
                "csrc/kernels/matmul.h",
                "const typename V::F value = Dense::load(p);",
                "const typename V::F value = Dense::load(p + (cols - 1 - 2 * k) * kBandRows);",
            ),
            Edit(
                "csrc/kernels/matmul.h",
                "V::broadcast(row[t * cols + k])",
                "V::broadcast(row[t * cols + cols - 1 - k])",
            ),
        ),
        (f"{MATMUL}::test_contract",),
    ),
    fault(
        "tail rows dropped",
        "csrc/kernels/matmul.h",
        "const int64_t present = args.y_rows - row;",
        "const int64_t present = (args.y_rows - row) / 16 * 16;",
        f"{MATMUL}::test_contract",
    ),
    fault(
        "w1 and w3 swapped",
        "csrc/kernels/matmul.h",
        "swiglu_lanes<V>(acc, up)",
        "swiglu_lanes<V>(up, acc)",
        f"{CONTRACT}::test_short_prompt",
    ),
    fault(
        "residual forgotten",
        "csrc/kernels/matmul.h",
        "acc = V::add(V::load_partial(y, present), acc);",
        "{}",
        f"{CONTRACT}::test_short_prompt",
    ),
    # --- csrc/kernels/matmul_panel.h
    fault(
        "panels: neighbour's scale",
        "csrc/kernels/matmul_panel.h",
        "x.scales += kTokens;",
        "x.scales += g > 0 ? kTokens : 0;",
        f"{MATMUL}::test_every_width_of_a_tile",
    ),
    fault(
        "panels: mul and add in place of fma",
        "csrc/kernels/matmul_panel.h",
        "V::fma(dot, scale, V::load(place(t, b)))",
        "V::add(V::mul(dot, scale), V::load(place(t, b)))",
        f"{MATMUL}::test_every_width_of_a_tile",
    ),
    fault(
        "panels: sums in registers forgotten between panels",
        "csrc/kernels/matmul_panel.h",
        "kept[t][b] = V::load(place(t, b));",
        "kept[t][b] = V::broadcast(0.0f);",
        f"{MATMUL}::test_several_panels",
        isa="avx512vnni",
    ),
    fault(
        "panels: the second one starts anew",
        "csrc/kernels/matmul_panel.h",
        "const int64_t skipped = t * w_.n_groups + g * width;",
        "const int64_t skipped = t * w_.n_groups;",
        f"{MATMUL}::test_several_panels",
    ),
    fault(
        "panels: the last tile keeps the full width",
        "csrc/kernels/matmul_panel.h",
        "const int64_t width = t1_ - t < V::kPanelTokens ? t1_ - t : V::kPanelTokens;",
        "const int64_t width = t1_ - t + 1 < V::kPanelTokens ? t1_ - t + 1 : V::kPanelTokens;",
        f"{MATMUL}::test_every_width_of_a_tile",
    ),
    # --- csrc/kernels/rows.h
    fault(
        "no eps",
        "csrc/kernels/rows.h",
        "__builtin_sqrtf(mean + eps)",
        "__builtin_sqrtf(mean)",
        "kernels/test_rms_norm.py::test_contract",
        "kernels/test_rms_norm.py::test_float64",
    ),
    fault(
        "half-split RoPE",
        "csrc/kernels/rows.h",
        "  for (int64_t d = 0; d < head_dim; d += 16) {\n    const int64_t n = head_dim - d;\n",
        """\
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < n_heads * half; ++i) {
    float *x0 = x + i / half * head_dim + i % half, *x1 = x0 + half;
    const float c = cos[i % half], s = sin[i % half], y0 = *x0 * c - *x1 * s;
    *x1 = *x0 * s + *x1 * c;
    *x0 = y0;
  }
  for (int64_t d = head_dim; d < head_dim; d += 16) {
    const int64_t n = head_dim - d;
""",
        "kernels/test_rope.py",
    ),
    fault(
        "non-finite activations pass",
        "csrc/kernels/rows.h",
        "finite = finite && amax_bits < 0x7f800000u;",
        "",
        "kernels/test_quantize_activations.py::test_non_finite_raises",
    ),
    fault(
        "activations: other threshold for a zero group",
        "csrc/kernels/rows.h",
        "amax_bits < 0x0d800000u",
        "amax_bits <= 0x0d800000u",
        "kernels/test_quantize_activations.py::test_threshold_is_two_to_minus_100",
    ),
    # --- csrc/kernels/math.h
    fault(
        "SwiGLU's argument not clamped",
        "csrc/kernels/math.h",
        "V::min(V::broadcast(87.0f), V::max(low, x))",
        "V::max(low, x)",
        "kernels/test_exp.py",
    ),
    fault(
        "exp without its smallest coefficient",
        "csrc/kernels/math.h",
        "F p = V::broadcast(0x1.a1520cp-13f);",
        "F p = V::broadcast(0.0f);",
        "kernels/test_exp.py::test_error_is_what_the_tolerances_assume",
    ),
    *ATTENTION_FAULTS,
    *CALIBRATE_FAULTS,
    # --- csrc/isa
    *ARM_FAULTS,
    fault(
        "ties away from zero",
        "csrc/isa/scalar.cpp",
        "static float rint_scalar(float x) { return (x + 12582912.0f) - 12582912.0f; }",
        "static float rint_scalar(float x) {\n"
        "    return static_cast<float>(static_cast<int32_t>(x < 0 ? x - 0.5f : x + 0.5f));\n  }",
        "kernels/test_quantize_activations.py::test_ties_go_to_even",
    ),
    fault(
        "sum of lanes in another order",
        "csrc/isa/scalar.cpp",
        "for (int i = 0; i < half; ++i) x.lane[i] += x.lane[i + half];",
        "for (int i = 0; i < half; ++i) x.lane[i] = x.lane[2 * i] + x.lane[2 * i + 1];",
        "kernels/test_rms_norm.py::test_contract",
    ),
    Mutant(
        "saturating multiply",
        (
            Edit(
                "csrc/isa/avx2.cpp",
                "static Dot start_dot(int32_t) { return zero_int(); }",
                "static Dot start_dot(int32_t c) "
                "{ return {_mm256_set1_epi32(c), _mm256_set1_epi32(c)}; }",
            ),
            Edit(
                "csrc/isa/avx2.cpp",
                "_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, a))",
                "_mm256_maddubs_epi16(_mm256_xor_si256(w, _mm256_set1_epi8(-128)), a)",
            ),
        ),
        (f"{MATMUL}::test_extreme_integers_are_exact",),
        "avx2",
    ),
    fault(
        "no -128 correction",
        "csrc/isa/avx512vnni.cpp",
        "return {Lanes32{} + correction, Lanes32{}};",
        "return {Lanes32{} + 0 * correction, Lanes32{}};",
        f"{MATMUL}::test_contract",
        isa="avx512vnni",
    ),
    fault(
        "uniform grid: 16-bit sums over too many columns",
        "csrc/isa/avx2.cpp",
        "kUnitCodes = 4, kRunLines = 8;",
        "kUnitCodes = 4, kRunLines = 16;",
        f"{MATMUL}::test_extreme_integers_are_exact",
        isa="avx2",
    ),
    # --- csrc/model, csrc/backend
    fault(
        "top-p off by one",
        "csrc/model/sampler.cpp",
        "kept <= cut && has_token(kept_count)",
        "kept < cut && has_token(kept_count)",
        f"{SAMPLE}::test_top_p_keeps_while_the_sum_before_is_not_above_p",
    ),
    fault(
        "position off by one in the draw",
        "csrc/model/sampler.cpp",
        "static_cast<uint32_t>(args.position)",
        "static_cast<uint32_t>(args.position) + 1u",
        f"{SAMPLE}::test_draw_is_philox",
    ),
    fault(
        "ties in descending order of id",
        "csrc/model/sampler.cpp",
        "uint64_t{std::bit_cast<uint32_t>(mass)} << 32 | ~static_cast<uint32_t>(id);",
        "uint64_t{std::bit_cast<uint32_t>(mass)} << 32 | static_cast<uint32_t>(id);",
        f"{SAMPLE}::test_draw_is_philox",
    ),
    fault(
        "large bands sorted in another order of ids",
        "csrc/model/sampler.cpp",
        "for (const uint64_t key : from) to[starts[digit_of(key)]++] = key;",
        "for (size_t i = from.size(); i-- > 0;) to[starts[digit_of(from[i])]++] = from[i];",
        "kernels/test_sample_contract.py",
        "generate/test_same_text.py::test_large_vocabulary",
    ),
    fault(
        "repetition penalty divides negative logits too",
        "csrc/model/logit_edits.cpp",
        "x = x > 0.0f ? x / repetition : x * repetition;",
        "x = x / repetition;",
        f"{EDITS}::test_meanings",
    ),
    fault(
        "presence penalty on the prompt",
        "csrc/model/logit_edits.cpp",
        "if (edits.counts[i] > 0) {",
        "if (edits.counts[i] >= 0) {",
        f"{EDITS}::test_meanings",
        DISTRIBUTION,
    ),
    fault(
        "frequency penalty once per token",
        "csrc/model/logit_edits.cpp",
        "frequency * static_cast<float>(edits.counts[i])",
        "frequency * static_cast<float>(edits.counts[i] > 0 ? 1 : 0)",
        f"{EDITS}::test_meanings",
    ),
    fault(
        "a term left out of the logarithm",
        "csrc/base/log.cpp",
        "for (int power = 23; power >= 3; power -= 2) {",
        "for (int power = 23; power >= 5; power -= 2) {",
        f"{LOGPROBS}::test_float64",
    ),
    fault(
        "rank among equal logits by the higher id",
        "csrc/model/logprobs.cpp",
        "for (int64_t i = 0; i < chosen; ++i) before += logits[i] == value ? 1 : 0;",
        "for (int64_t i = chosen + 1; i < n; ++i) before += logits[i] == value ? 1 : 0;",
        f"{LOGPROBS}::test_order_and_rank",
    ),
    fault(
        "nine rounds of Philox",
        "csrc/model/philox.h",
        "round < 10",
        "round < 9",
        f"{SAMPLE}::test_draw_is_philox",
    ),
    fault(
        "V left out of a copied block",
        "csrc/backend/cpu_memory.cpp",
        "      copy(layer.v, bytes, i);\n",
        "",
        f"{CHECKS}::test_copy_blocks_copies_k_and_v",
    ),
    fault(
        "a written block in two tables accepted",
        "csrc/backend/batch.cpp",
        "require(holders[static_cast<size_t>(block)] == 1,",
        "require(holders[static_cast<size_t>(block)] >= 1,",
        f"{CHECKS}::test_written_block_in_two_tables",
    ),
    fault(
        "second pass over the layers starts at the first token",
        "csrc/model/forward.cpp",
        ".token_ids = args.token_ids + begin,",
        ".token_ids = args.token_ids,",
        f"{BITWISE}::test_longer_than_the_work_space",
    ),
)
