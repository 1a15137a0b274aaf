// The fuzz target of the core: the first byte of an input chooses what is called, the others the
// arguments. Kernels of every instruction set must equal the scalar ones bit for bit.
#include <cstdio>

#include "backend/batch.h"
#include "backend/cpu_backend.h"
#include "backend/cpu_features.h"
#include "base/check.h"
#include "base/types.h"
#include "input.h"
#include "model/kv_cache.h"
#include "quant/quantize.h"

namespace llama2q::fuzz {

void fail(const char* what, const char* isa) {
  std::fprintf(stderr, "llama2q fuzz: %s (%s)\n", what, isa);
  std::abort();
}

void fuzz_batch(Input& input) {
  const int64_t n = input.between(0, 20), n_sequences = input.between(0, 5);
  const int64_t max_blocks = input.between(0, 5), n_blocks = input.between(1, 9);
  Exact<int32_t> positions(n), sequences(n), tables(n_sequences * max_blocks);
  const bool wild = input.byte() % 4 == 0;
  const auto any = [&](int64_t low, int64_t high) {
    return wild ? input.raw<int32_t>() : static_cast<int32_t>(input.between(low, high));
  };
  for (int32_t& sequence : sequences) sequence = any(-1, n_sequences);
  for (int64_t t = 0; t < n; ++t) {
    const bool follows = t > 0 && sequences[t] == sequences[t - 1] && positions[t - 1] < INT32_MAX;
    positions[t] = follows && input.byte() < 250 ? positions[t - 1] + 1 : any(-1, 64 * max_blocks);
  }
  for (int32_t& block : tables) block = any(-1, n_blocks);
  Batch batch{.n_tokens = n,
              .positions = positions.data(),
              .sequence_of_token = sequences.data(),
              .block_tables = tables.data(),
              .n_sequences = n_sequences,
              .max_blocks = max_blocks,
              .cos = {},
              .sin = {}};
  check_batch(batch, n_blocks);
  for (int64_t t = 0; t < n; ++t) {  // what the kernels rely on
    const int64_t last = positions[t] / kBlockSize;
    if (sequences[t] < 0 || sequences[t] >= n_sequences || positions[t] < 0 || last >= max_blocks) {
      fail("check_batch let a wrong token pass", "");
    }
    for (int64_t i = 0; i <= last; ++i) {
      const int32_t block = tables[sequences[t] * max_blocks + i];
      if (block < 0 || block >= n_blocks) fail("check_batch let a wrong table pass", "");
    }
  }
  fill_rope(batch, {1.0, 0.5, static_cast<double>(input.byte()) / 255.0}, 1.0 + input.byte());
  for (const std::vector<float>* values : {&batch.cos, &batch.sin}) {
    for (const float value : *values) {
      if (!(value >= -1.0f && value <= 1.0f)) fail("a cosine or sine beyond 1", "");
    }
  }
}

void fuzz_copy_blocks(Input& input) {
  const KvType type = input.pick({KvType::kF32, KvType::kF16, KvType::kInt8});
  const int64_t n_blocks = input.between(1, 8);
  CpuBackend backend(*available_kernels().front(), 1);
  KvCache cache(backend, type, input.between(1, 2), n_blocks, input.between(1, 2),
                input.between(1, 20));
  const int64_t n = input.between(0, 6);
  Exact<int32_t> source(n), destination(n);
  const bool wild = input.byte() % 4 == 0;
  for (Exact<int32_t>* ids : {&source, &destination}) {
    for (int32_t& id : *ids) {
      id = wild ? input.raw<int32_t>() : static_cast<int32_t>(input.between(-1, n_blocks));
    }
  }
  cache.copy_blocks(source.data(), destination.data(), n);
}

void fuzz_quantizers(Input& input) {
  const SourceType type = input.pick({SourceType::kF32, SourceType::kF16, SourceType::kBf16});
  const int64_t rows = input.between(1, 34), cols = input.between(1, 140);
  const int64_t group_size = input.pick<int64_t>({32, 64, 128});
  const int64_t width = type == SourceType::kF32 ? 4 : 2;
  Exact<uint8_t> data(rows * cols * width);
  Noise noise(input.byte());
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float plain = noise.real();
    if (type == SourceType::kF32) {
      std::memcpy(data.data() + 4 * i, &plain, 4);
    } else {
      const uint16_t half = f32_to_f16(plain);
      const auto bits = static_cast<uint16_t>(type == SourceType::kF16 ? half : half / 2);
      std::memcpy(data.data() + 2 * i, &bits, 2);
    }
  }
  for (int64_t n = input.between(0, 40); n > 0 && !input.empty(); --n) {
    const int64_t place = input.between(0, rows * cols - 1);
    const auto bits = input.raw<uint32_t>();
    const float value = input.byte() % 2 == 0 ? bits_float(bits) : input.real();
    std::memcpy(data.data() + width * place, &value, static_cast<size_t>(width));
  }
  const WeightSource source{type, data.data(), rows, cols};
  const int64_t n_bands = (rows + kBandRows - 1) / kBandRows;
  const int64_t n_groups = (cols + group_size - 1) / group_size, k = n_groups * group_size;
  Exact<int8_t> grid(16);
  int64_t value = input.between(-127, -20);
  for (int8_t& entry : grid) {
    entry = static_cast<int8_t>(value);
    value += input.between(1, 8);
  }
  const auto check_scales = [](Exact<uint16_t>& scales) {
    for (const uint16_t scale : scales) {
      if ((scale & 0x7c00) == 0x7c00) fail("a quantizer wrote a scale that is not finite", "");
    }
  };
  const auto check_codes = [](Exact<int8_t>& codes) {
    for (const int8_t code : codes) {
      if (code == -128) fail("a quantizer wrote -128", "");
    }
  };
  Exact<uint8_t> nibbles(n_bands * k * 8);
  Exact<int8_t> bytes(n_bands * k * kBandRows), table(rows * cols);
  Exact<uint16_t> scales4(n_bands * n_groups * kBandRows), scales8(n_bands * n_groups * kBandRows);
  Exact<uint16_t> row_scales(rows * n_groups);
  const bool faults[] = {
      quantize_int4(source, group_size, grid.data(), 0, n_bands, nibbles.data(), scales4.data())
          .none(),
      quantize_int8(source, group_size, 0, n_bands, bytes.data(), scales8.data()).none(),
      quantize_rows_int8(source, group_size, 0, rows, table.data(), row_scales.data()).none()};
  check_scales(scales4);
  check_scales(scales8);
  check_scales(row_scales);
  check_codes(bytes);
  check_codes(table);
  if (faults[1] != faults[2]) fail("int8 by bands and by rows disagree on faults", "");
  Exact<uint8_t> packed(n_bands * cols * kBandRows * width);
  pack_dense(source, 0, n_bands, packed.data());
}

}  // namespace llama2q::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace llama2q;
  using namespace llama2q::fuzz;
  static constexpr void (*kTargets[])(Input&) = {fuzz_batch,      fuzz_step,     fuzz_copy_blocks,
                                                 fuzz_quantizers, fuzz_sampling, fuzz_attention,
                                                 fuzz_rows,       fuzz_matmul,   fuzz_calibrate};
  Input input(data, size);
  try {
    const uint8_t choice = input.byte();
    // The last values alone, so that the inputs found before it was there keep their targets.
    kTargets[choice >= 248 ? 8 : choice % 8](input);
  } catch (const InvalidArgument&) {
    return 0;  // refused, as promised
  } catch (const NonFinite&) {
    return 0;
  }
  return 0;
}
