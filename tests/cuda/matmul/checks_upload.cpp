// Where place_bands() puts codes and scales, against cuda/layout.h's formulas.
#include <array>

#include "checks.h"
#include "matrices.h"

namespace checks {

namespace {

using llama2q::kBandRows;

// The file's code of an element, 0 where there is none.
int code_at(const Matrix& m, int64_t row, int64_t col) {
  if (row >= m.rows || col >= m.padded_cols()) return 0;
  return m.codes[static_cast<size_t>(row * m.padded_cols() + col)];
}

// The int4 word of a row's columns [column, column + 8).
uint32_t int4_word(const Matrix& m, int64_t row, int64_t column) {
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) {
    const auto code = static_cast<uint32_t>(code_at(m, row, column + i));
    if (m.kind == Kind::kLookup) {
      word |= code << 4 * i;
    } else {
      word |= (code ^ 8u) << (i < 4 ? 8 * i : 8 * (i - 4) + 4);
    }
  }
  return word;
}

uint32_t int8_word(const Matrix& m, int64_t row, int64_t column) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(code_at(m, row, column + i) & 255) << 8 * i;
  }
  return word;
}

// The four words of lane 4 g + t of a step (int4), or of a half of one (int8).
std::array<uint32_t, 4> words_at(const Matrix& m, int64_t band, int64_t part, int lane) {
  const int64_t g = band * kBandRows + lane / 4, t = lane % 4;
  if (m.kind == Kind::kInt8) {
    const int64_t column = 32 * part + 8 * t;
    return {int8_word(m, g, column), int8_word(m, g + 8, column), int8_word(m, g, column + 4),
            int8_word(m, g + 8, column + 4)};
  }
  const int64_t column = 64 * part + 8 * t;
  return {int4_word(m, g, column), int4_word(m, g + 8, column), int4_word(m, g, column + 32),
          int4_word(m, g + 8, column + 32)};
}

template <typename Check>
void over_shapes(Check check) {
  for (const Kind kind : kQuantized) {
    for (const int64_t group_size : {32, 64, 128}) {
      check(random_matrix(kind, 40, 172, group_size));
      check(random_matrix(kind, 3, 32, group_size));
      check(random_matrix(kind, 64, 256, group_size));
    }
  }
}

}  // namespace

void check_placed_codes() {
  over_shapes([](const Matrix& m) {
    const PlacedMatrix placed(m);
    const std::vector<uint8_t> memory = placed.read();
    const uint8_t* words = memory.data();
    const int64_t n_steps = (m.padded_cols() + 63) / 64;
    const int64_t n_parts = m.kind == Kind::kInt8 ? 2 * n_steps : n_steps;
    expect(llama2q::cuda::code_bytes(m.view()) == m.n_bands() * n_parts * 512, "bytes of codes");
    for (int64_t band = 0; band < m.n_bands(); ++band) {
      for (int64_t part = 0; part < n_parts; ++part) {
        for (int lane = 0; lane < 32; ++lane, words += 16) {
          const std::array<uint32_t, 4> wanted = words_at(m, band, part, lane);
          expect(std::memcmp(words, wanted.data(), 16) == 0,
                 std::string(name_of(m.kind)) + ": band " + std::to_string(band) + ", part " +
                     std::to_string(part) + ", lane " + std::to_string(lane));
        }
      }
    }
  });
}

void check_placed_scales() {
  over_shapes([](const Matrix& m) {
    const PlacedMatrix placed(m);
    const std::vector<uint8_t> memory = placed.read();
    const uint8_t* half = memory.data() + llama2q::cuda::code_bytes(m.view());
    expect(placed.view().scales ==
               static_cast<const void*>(static_cast<const uint8_t*>(placed.view().codes) +
                                        llama2q::cuda::code_bytes(m.view())),
           "scales follow codes");
    const int64_t n_groups = (m.padded_cols() + 63) / 64 * 64 / m.group_size;
    for (int64_t band = 0; band < m.n_bands(); ++band) {
      for (int64_t group = 0; group < n_groups; ++group) {
        for (int64_t i = 0; i < kBandRows; ++i, half += 2) {
          const int64_t row = band * kBandRows + i / 2 + i % 2 * 8;
          const bool present = row < m.rows && group < m.n_groups;
          const size_t at = static_cast<size_t>(row * m.n_groups + group);
          const uint16_t wanted = present ? m.scales[at] : 0;
          expect(std::memcmp(half, &wanted, 2) == 0, "scale of row " + std::to_string(row));
        }
      }
    }
  });
}

void check_grids() {
  llama2q::MatrixView view = random_matrix(Kind::kLookup, 16, 64, 64).view();
  uint32_t memory = 0;
  static_cast<void>(llama2q::cuda::placed_matrix(view, &memory));
  view.grid[7] = 1;
  try {
    static_cast<void>(llama2q::cuda::placed_matrix(view, &memory));
  } catch (const std::invalid_argument& error) {
    return expect_contains(error.what(), "grid");
  }
  throw Failure("a grid whose first half is positive was taken");
}

}  // namespace checks
