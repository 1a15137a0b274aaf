// Single kernels on NumPy arrays.
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "backend/cpu_backend.h"
#include "backend/cpu_features.h"
#include "base/float_env.h"
#include "bindings/bind.h"
#include "bindings/weights.h"
#include "model/kv_cache.h"

namespace llama2q {
namespace {

using Isa = std::optional<std::string>;
using Threads = std::optional<int>;

const KernelTable& table_of(const Isa& isa) { return kernels_named(isa.value_or("")); }

void require_finite(bool finite, const char* what) {
  if (!finite) throw NonFinite(std::string(what) + " holds NaN or an infinite value");
}

py::array_t<float> matmul(const py::array& x, const PyMatrix& matrix, const Isa& isa,
                          Threads n_threads) {
  check_array(x, "x", "float32", {kAny, matrix.view.cols});
  const KernelTable& table = table_of(isa);
  auto y = new_floats({x.shape(0), matrix.view.rows});
  float* data = y.mutable_data();
  const py::gil_scoped_release release;
  const FloatEnv environment;
  CpuBackend backend(table, n_threads.value_or(default_thread_count()));
  require_finite(backend.matmul(matrix.view, x.shape(0), data_of<float>(x), data), "x");
  return y;
}

py::tuple quantize_activations(const py::array& x, int64_t group_size, const Isa& isa) {
  check_array(x, "x", "float32", {kAny, kAny});
  require(group_size == 32 || group_size == 64 || group_size == 128,
          "group_size is " + std::to_string(group_size) + "; expected 32, 64 or 128");
  const KernelTable& table = table_of(isa);
  const int64_t n = x.shape(0), cols = x.shape(1);
  require(cols > 0, "x has no columns");
  const int64_t n_groups = (cols + group_size - 1) / group_size;
  py::array_t<int8_t> codes({n, n_groups * group_size});
  auto scales = new_floats({n, n_groups});
  std::vector<int32_t> corrections(static_cast<size_t>(n_groups));
  const FloatEnv environment;
  bool finite = true;
  for (int64_t t = 0; t < n; ++t) {
    const TileRow row{.codes = codes.mutable_data() + t * n_groups * group_size,
                      .wide_codes = nullptr,
                      .scales = scales.mutable_data() + t * n_groups,
                      .corrections = corrections.data(),
                      .width = 1,
                      .token = 0};
    const float* values = data_of<float>(x) + t * cols;
    finite = table.quantize_row(values, cols, group_size, row) && finite;
  }
  require_finite(finite, "x");
  return py::make_tuple(codes, scales);
}

py::array_t<float> rms_norm(const py::array& x, const py::array& weight, float eps,
                            const Isa& isa) {
  check_array(x, "x", "float32", {kAny, kAny});
  check_array(weight, "weight", "float32", {x.shape(1)});
  require(eps >= 0.0f && eps < 1e30f, "eps must be finite and not negative");
  const KernelTable& table = table_of(isa);
  const int64_t dim = x.shape(1);
  require(dim > 0, "x has no columns");
  auto y = new_floats({x.shape(0), dim});
  const FloatEnv environment;
  for (int64_t t = 0; t < x.shape(0); ++t) {
    table.rms_norm(data_of<float>(x) + t * dim, data_of<float>(weight), dim, eps,
                   y.mutable_data() + t * dim);
  }
  return y;
}

py::array_t<float> rope(const py::array& x, const py::array& positions, const py::array& inv_freq,
                        const Isa& isa, double attention_factor) {
  check_array(x, "x", "float32", {kAny, kAny, kAny});
  check_array(positions, "positions", "int32", {x.shape(0)});
  require(x.shape(2) % 2 == 0, "head_dim is odd; RoPE rotates pairs");
  check_array(inv_freq, "inv_freq", "float64", {x.shape(2) / 2});
  const std::vector<double> frequencies(data_of<double>(inv_freq),
                                        data_of<double>(inv_freq) + inv_freq.size());
  check_rope(frequencies, attention_factor);
  const KernelTable& table = table_of(isa);
  const int64_t n = x.shape(0), n_heads = x.shape(1), head_dim = x.shape(2);
  for (int64_t t = 0; t < n; ++t) {
    require(data_of<int32_t>(positions)[t] >= 0, "positions must not be negative");
  }
  Batch batch{.n_tokens = n,
              .positions = data_of<int32_t>(positions),
              .sequence_of_token = nullptr,
              .block_tables = nullptr,
              .n_sequences = 0,
              .max_blocks = 0,
              .cos = {},
              .sin = {}};
  auto y = new_floats({n, n_heads, head_dim});
  std::copy_n(data_of<float>(x), x.size(), y.mutable_data());
  const FloatEnv environment;
  fill_rope(batch, frequencies, attention_factor);
  for (int64_t t = 0; t < n; ++t) {
    table.rope(y.mutable_data() + t * n_heads * head_dim, batch.cos.data() + t * head_dim / 2,
               batch.sin.data() + t * head_dim / 2, n_heads, head_dim);
  }
  return y;
}

py::array_t<float> like(const py::array& x) {
  return py::array_t<float>(py::array::ShapeContainer(x.shape(), x.shape() + x.ndim()));
}

void check_floats(const py::array& x, const char* name) {
  require(has_dtype(x, "float32") && (x.flags() & py::array::c_style) != 0,
          std::string(name) + " must be a C-contiguous float32 array");
}

py::array_t<float> swiglu(const py::array& gate, const py::array& up, const Isa& isa) {
  check_floats(gate, "gate");
  check_floats(up, "up");
  require(
      gate.ndim() == up.ndim() && std::equal(gate.shape(), gate.shape() + gate.ndim(), up.shape()),
      "gate has shape " + shape_text(gate) + ", up " + shape_text(up) + "; expected equal");
  const KernelTable& table = table_of(isa);
  auto y = like(gate);
  const FloatEnv environment;
  table.swiglu(data_of<float>(gate), data_of<float>(up), gate.size(), y.mutable_data());
  return y;
}

py::array_t<float> exp(const py::array& x, const Isa& isa) {
  check_floats(x, "x");
  const KernelTable& table = table_of(isa);
  auto y = like(x);
  const FloatEnv environment;
  table.exp(data_of<float>(x), x.size(), y.mutable_data());
  return y;
}

// Runs the cache's append and the fused attention on a cache of its own.
py::array_t<float> attention(const py::array& q, const py::array& k, const py::array& v,
                             const py::array& positions, const std::string& kv_dtype,
                             const Isa& isa, Threads n_threads) {
  check_array(q, "q", "float32", {kAny, kAny, kAny});
  const int64_t n = q.shape(0), n_heads = q.shape(1), head_dim = q.shape(2);
  check_array(k, "k", "float32", {kAny, kAny, head_dim});
  const int64_t n_keys = k.shape(0), n_kv_heads = k.shape(1);
  check_array(v, "v", "float32", {n_keys, n_kv_heads, head_dim});
  check_array(positions, "positions", "int32", {n});
  require(n_keys > 0 && head_dim > 0 && n_kv_heads > 0 && n_heads % n_kv_heads == 0,
          "expected keys, and n_heads a multiple of n_kv_heads; q has shape " + shape_text(q) +
              ", k " + shape_text(k));
  for (int64_t t = 0; t < n; ++t) {
    const int32_t position = data_of<int32_t>(positions)[t];
    require(position >= 0 && position < n_keys, "positions[" + std::to_string(t) + "] is " +
                                                    std::to_string(position) + "; there are " +
                                                    std::to_string(n_keys) + " keys");
  }
  const KernelTable& table = table_of(isa);
  auto out = new_floats({n, n_heads, head_dim});
  float* data = out.mutable_data();
  const py::gil_scoped_release release;
  const FloatEnv environment;
  const int64_t n_blocks = (n_keys + kBlockSize - 1) / kBlockSize;
  CpuBackend backend(table, n_threads.value_or(default_thread_count()));
  KvCache cache(backend, kv_type_of(kv_dtype), 1, n_blocks, n_kv_heads, head_dim);
  std::vector<int32_t> blocks(static_cast<size_t>(n_blocks));
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
  std::vector<int32_t> key_positions(static_cast<size_t>(n_keys));
  for (size_t i = 0; i < key_positions.size(); ++i) key_positions[i] = static_cast<int32_t>(i);
  const std::vector<int32_t> sequence(static_cast<size_t>(std::max(n, n_keys)), 0);
  const AppendArgs append{.cache = cache.layer(0),
                          .k = data_of<float>(k),
                          .v = data_of<float>(v),
                          .positions = key_positions.data(),
                          .sequence_of_token = sequence.data(),
                          .block_tables = blocks.data(),
                          .max_blocks = n_blocks};
  bool finite = true;
  for (int64_t t = 0; t < n_keys; ++t) finite = table.append(append, t) && finite;
  require_finite(finite, "k or v, in the cache's type,");
  const Batch batch{.n_tokens = n,
                    .positions = data_of<int32_t>(positions),
                    .sequence_of_token = sequence.data(),
                    .block_tables = blocks.data(),
                    .n_sequences = 1,
                    .max_blocks = n_blocks,
                    .cos = {},
                    .sin = {}};
  backend.attend(batch, cache.layer(0), n_heads, data_of<float>(q), data);
  return out;
}

}  // namespace

void bind_kernels(py::module_& m) {
  using py::arg;
  const auto isa = [] { return arg("isa") = py::none(); };
  const auto n_threads = [] { return arg("n_threads") = py::none(); };
  m.def("matmul", matmul, arg("x").noconvert(), arg("matrix"), isa(), n_threads(),
        "float32 (n, cols) -> float32 (n, rows); quantized matrices quantize x per group.");
  m.def("quantize_activations", quantize_activations, arg("x").noconvert(), arg("group_size"),
        isa(), "float32 (n, cols) -> codes int8 (n, K), scales float32 (n, K / group_size).");
  m.def("rms_norm", rms_norm, arg("x").noconvert(), arg("weight").noconvert(), arg("eps"), isa(),
        "float32 (n, dim), weight float32 (dim,) -> float32 (n, dim).");
  m.def("rope", rope, arg("x").noconvert(), arg("positions").noconvert(),
        arg("inv_freq").noconvert(), isa(), arg("attention_factor") = 1.0,
        "float32 (n, n_heads, head_dim), interleaved pairs, rotated by position * inv_freq and "
        "multiplied by attention_factor.");
  m.def("swiglu", swiglu, arg("gate").noconvert(), arg("up").noconvert(), isa(),
        "silu(gate) * up, float32 of equal shapes.");
  m.def("exp", exp, arg("x").noconvert(), isa(), "exp on float32; +0 for x <= -87.");
  m.def("attention", attention, arg("q").noconvert(), arg("k").noconvert(), arg("v").noconvert(),
        arg("positions").noconvert(), arg("kv_dtype") = "f32", isa(), n_threads(),
        "Causal attention of q float32 (n, n_heads, head_dim) at positions int32 (n,) over k and v "
        "float32 (n_keys, n_kv_heads, head_dim) at positions 0 to n_keys - 1.");
}

}  // namespace llama2q
