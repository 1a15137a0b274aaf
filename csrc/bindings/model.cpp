// class Model: the ragged step and the five ops on NumPy arrays.
#include <pybind11/stl.h>

#include <atomic>
#include <mutex>
#include <optional>

#include "backend/cpu_backend.h"
#include "backend/cpu_features.h"
#include "base/float_env.h"
#include "bindings/bind.h"
#include "bindings/config.h"
#include "bindings/devices.h"
#include "bindings/layers.h"
#include "bindings/signals.h"
#include "bindings/weights.h"
#include "model/forward.h"

namespace llama2q {
namespace {

using std::to_string;

class CancelFlag {
 public:
  void set() { set_.store(true, std::memory_order_relaxed); }
  bool is_set() const { return set_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> set_{false};
};

Output output_of(std::string_view name) {
  if (name == "logits") return Output::kLogits;
  if (name == "hidden") return Output::kHidden;
  throw InvalidArgument("output is \"" + std::string(name) + "\"; expected logits or hidden");
}

// Calls of one model are serialized: they share the KV cache, the work space and the threads.
class PyModel {
 public:
  PyModel(const py::dict& config, const PyEmbedding& embedding, const py::list& layers,
          const py::array& norm, const PyMatrix& output, const py::array& inv_freq,
          const std::string& kv_dtype, int64_t n_blocks, std::optional<int> n_threads,
          const std::string& isa, const py::list& devices, std::optional<int64_t> n_ctx_blocks,
          double attention_factor) {
    const Config shape = config_of(config);
    shape.check();
    Weights weights{.tok_embeddings = embedding.view,
                    .layers = {},
                    .norm = kept_vector(norm, "norm", shape.dim, kept_),
                    .output = output.view,
                    .inv_freq = {},
                    .attention_factor = attention_factor};
    for (const py::array* array :
         {&embedding.codes, &embedding.scales, &output.codes, &output.scales}) {
      kept_.append(*array);
    }
    for (const py::handle& layer : layers) {
      weights.layers.push_back(layer_of(layer, std::ssize(weights.layers), shape, kept_));
    }
    check_array(inv_freq, "inv_freq", "float64", {shape.head_dim() / 2});
    weights.inv_freq.assign(data_of<double>(inv_freq), data_of<double>(inv_freq) + inv_freq.size());
    auto backend = std::make_unique<CpuBackend>(kernels_named(isa),
                                                n_threads.value_or(default_thread_count()));
    isa_ = backend->kernels().name;
    n_threads_ = backend->n_threads();
    const KvType kv_type = kv_type_of(kv_dtype);
    const int64_t longest = n_ctx_blocks.value_or(n_blocks);
    require(longest >= 1 && longest <= n_blocks,
            "n_ctx_blocks is " + to_string(longest) + "; expected 1 to " + to_string(n_blocks));
    const DeviceShape sizes = device_shape(shape, longest, n_blocks / longest);
    const std::vector<DeviceEntry> entries = device_entries(devices);
    const py::gil_scoped_release release;
    forward_ = std::make_unique<Forward>(
        shape, std::move(weights), shares_of(entries, sizes, shape.n_layers, std::move(backend)),
        kv_type, n_blocks);
  }

  int64_t n_blocks() const { return forward_->n_blocks(); }
  int n_threads() const { return n_threads_; }
  int64_t work_bytes() const { return forward_->work_bytes(); }
  int64_t block_bytes() const { return forward_->block_bytes(); }
  const std::string& isa() const { return isa_; }
  std::vector<std::string> notes() const { return forward_->notes(); }
  const char* kv_dtype() const { return name_of(forward_->kv_type()); }

  py::array_t<float> step(const py::array& token_ids, const py::array& positions,
                          const py::array& sequence_of_token, const py::array& block_tables,
                          const py::array& output_rows, const std::string& output,
                          const CancelFlag* cancel) {
    StepArgs args = step_args(token_ids, positions, sequence_of_token, block_tables);
    check_array(output_rows, "output_rows", "int32", {kAny});
    args.output_rows = data_of<int32_t>(output_rows);
    args.n_rows = output_rows.size();
    args.answer.output = output_of(output);
    auto out = new_floats({args.n_rows, forward_->output_width(args.answer.output)});
    args.answer.values = out.mutable_data();
    locked([&] { forward_->step(args, interruption(cancel)); });
    return out;
  }

  py::tuple step_largest(const py::array& token_ids, const py::array& positions,
                         const py::array& sequence_of_token, const py::array& block_tables,
                         const py::array& output_rows, int64_t k, const CancelFlag* cancel) {
    StepArgs args = step_args(token_ids, positions, sequence_of_token, block_tables);
    check_array(output_rows, "output_rows", "int32", {kAny});
    args.output_rows = data_of<int32_t>(output_rows);
    args.n_rows = output_rows.size();
    const int64_t most = std::min(kMostLargest, forward_->config().vocab_size);
    require(k >= 1 && k <= most, "k is " + to_string(k) + "; expected 1 to " + to_string(most));
    auto values = new_floats({args.n_rows, k});
    py::array_t<int32_t> ids(std::vector<py::ssize_t>{args.n_rows, k});
    args.answer = {Output::kLogits, values.mutable_data(), k, ids.mutable_data()};
    locked([&] { forward_->step(args, interruption(cancel)); });
    return py::make_tuple(values, ids);
  }

  void set_layer_stream(int64_t from_tokens) {
    locked([&] { forward_->set_layer_stream(from_tokens); });
  }

  void copy_blocks(const py::array& source, const py::array& destination) {
    check_array(source, "source", "int32", {kAny});
    check_array(destination, "destination", "int32", {source.size()});
    locked([&] {
      forward_->copy_blocks(data_of<int32_t>(source), data_of<int32_t>(destination), source.size());
    });
  }

  py::array_t<uint8_t> read_blocks(const py::array& blocks) {
    check_array(blocks, "blocks", "int32", {kAny});
    py::array_t<uint8_t> out({blocks.size(), static_cast<py::ssize_t>(forward_->block_bytes())});
    auto* data = reinterpret_cast<char*>(out.mutable_data());
    locked([&] { forward_->read_blocks(data_of<int32_t>(blocks), blocks.size(), data); });
    return out;
  }

  void write_blocks(const py::array& blocks, const py::array& data) {
    check_array(blocks, "blocks", "int32", {kAny});
    check_array(data, "data", "uint8", {blocks.size(), forward_->block_bytes()});
    const auto* bytes = reinterpret_cast<const char*>(data_of<uint8_t>(data));
    locked([&] { forward_->write_blocks(data_of<int32_t>(blocks), blocks.size(), bytes); });
  }

  // Only a read-only map: its pages may be dropped, as what they hold can be read again.
  void read_ahead(int file, const py::object& map,
                  const std::vector<std::tuple<int64_t, int64_t, bool>>& layers,
                  int64_t window_bytes, const std::string& loading) {
    require(py::isinstance(map, py::module_::import("mmap").attr("mmap")),
            std::string("read_ahead: map is a ") + Py_TYPE(map.ptr())->tp_name +
                "; expected an mmap.mmap");
    const py::buffer_info info = py::reinterpret_borrow<py::buffer>(map).request();
    require(info.readonly, "read_ahead: map is writable; expected access=ACCESS_READ");
    const int64_t size = info.size;
    require(std::ssize(layers) == forward_->n_host_layers(),
            "read_ahead: " + to_string(layers.size()) + " layers; the host has " +
                to_string(forward_->n_host_layers()));
    std::vector<LayerBytes> bytes;
    for (const auto& [begin, end, streamed] : layers) {
      require(0 <= begin && begin < end && end <= size,
              "read_ahead: a layer at bytes " + to_string(begin) + " to " + to_string(end) +
                  "; the map has " + to_string(size));
      bytes.push_back({begin, end, streamed});
    }
    require(window_bytes >= 0, "read_ahead: window_bytes is " + to_string(window_bytes));
    kept_.append(map);
    const std::span file_bytes(static_cast<const std::byte*>(info.ptr), static_cast<size_t>(size));
    auto reader = std::make_unique<ReadAhead>(file, file_bytes, std::move(bytes), window_bytes,
                                              loading_of(loading));
    locked([&] { forward_->set_read_ahead(std::move(reader)); });
  }

  py::array_t<float> embed(const py::array& token_ids) {
    check_array(token_ids, "token_ids", "int32", {kAny});
    forward_->check_tokens(data_of<int32_t>(token_ids), token_ids.size());
    auto x = new_floats({token_ids.size(), dim()});
    float* data = x.mutable_data();
    locked([&] { forward_->embed(data_of<int32_t>(token_ids), token_ids.size(), data); });
    return x;
  }

  py::array_t<float> qkv(int64_t layer, const py::array& x, const py::array& positions,
                         const py::array& sequence_of_token, const py::array& block_tables) {
    const StepArgs args = step_args(positions, positions, sequence_of_token, block_tables);
    check_array(x, "x", "float32", {args.n_tokens, dim()});
    auto q = new_floats({args.n_tokens, dim()});
    float* data = q.mutable_data();
    locked([&] {
      const Batch batch = forward_->make_batch(args, 0, args.n_tokens);
      forward_->qkv(layer, batch, data_of<float>(x), data);
    });
    return q;
  }

  py::array_t<float> attend(int64_t layer, const py::array& q, const py::array& positions,
                            const py::array& sequence_of_token, const py::array& block_tables) {
    const StepArgs args = step_args(positions, positions, sequence_of_token, block_tables);
    check_array(q, "q", "float32", {args.n_tokens, dim()});
    auto attended = new_floats({args.n_tokens, dim()});
    float* data = attended.mutable_data();
    locked([&] {
      const Batch batch = forward_->make_batch(args, 0, args.n_tokens);
      forward_->attend(layer, batch, data_of<float>(q), data);
    });
    return attended;
  }

  py::array_t<float> project(int64_t layer, const py::array& attended, const py::array& x) {
    check_array(attended, "attended", "float32", {kAny, dim()});
    auto out = copy_of(x, "x", attended.shape(0));
    float* data = out.mutable_data();
    locked([&] { forward_->project(layer, out.shape(0), data_of<float>(attended), data); });
    return out;
  }

  py::array_t<float> gate_up(int64_t layer, const py::array& x) {
    check_array(x, "x", "float32", {kAny, dim()});
    auto hidden = new_floats({x.shape(0), forward_->config().hidden_dim});
    float* data = hidden.mutable_data();
    locked([&] { forward_->gate_up(layer, x.shape(0), data_of<float>(x), data); });
    return hidden;
  }

  py::array_t<float> down(int64_t layer, const py::array& hidden, const py::array& x) {
    check_array(hidden, "hidden", "float32", {kAny, forward_->config().hidden_dim});
    auto out = copy_of(x, "x", hidden.shape(0));
    float* data = out.mutable_data();
    locked([&] { forward_->down(layer, out.shape(0), data_of<float>(hidden), data); });
    return out;
  }

  py::array_t<float> output(const py::array& x, const std::string& output) {
    check_array(x, "x", "float32", {kAny, dim()});
    const Output kind = output_of(output);
    auto out = new_floats({x.shape(0), forward_->output_width(kind)});
    float* data = out.mutable_data();
    locked([&] { forward_->output(kind, x.shape(0), data_of<float>(x), data); });
    return out;
  }

 private:
  int64_t dim() const { return forward_->config().dim; }

  static StepArgs step_args(const py::array& token_ids, const py::array& positions,
                            const py::array& sequence_of_token, const py::array& block_tables) {
    check_array(token_ids, "token_ids", "int32", {kAny});
    const int64_t n = token_ids.size();
    check_array(positions, "positions", "int32", {n});
    check_array(sequence_of_token, "sequence_of_token", "int32", {n});
    check_array(block_tables, "block_tables", "int32", {kAny, kAny});
    return {.token_ids = data_of<int32_t>(token_ids),
            .positions = data_of<int32_t>(positions),
            .sequence_of_token = data_of<int32_t>(sequence_of_token),
            .n_tokens = n,
            .block_tables = data_of<int32_t>(block_tables),
            .n_sequences = block_tables.shape(0),
            .max_blocks = block_tables.shape(1),
            .output_rows = nullptr,
            .n_rows = 0,
            .answer = {}};
  }

  py::array_t<float> copy_of(const py::array& x, const char* name, int64_t n) const {
    check_array(x, name, "float32", {n, dim()});
    auto copy = new_floats({n, dim()});
    std::copy_n(data_of<float>(x), x.size(), copy.mutable_data());
    return copy;
  }

  // Runs f without the GIL, alone.
  template <class Function>
  void locked(Function f) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    f();
  }

  // Called between layers.
  static std::function<void()> interruption(const CancelFlag* cancel) {
    return [cancel, check = SignalCheck()]() mutable {
      if (cancel != nullptr && cancel->is_set()) throw Cancelled("the step was cancelled");
      check();
    };
  }

  py::list kept_;
  std::string isa_;
  int n_threads_ = 1;
  std::mutex mutex_;
  std::unique_ptr<Forward> forward_;
};

}  // namespace

void bind_model(py::module_& m) {
  using py::arg;
  py::class_<CancelFlag>(m, "CancelFlag",
                         "An atomic flag that a running step reads between layers.")
      .def(py::init<>())
      .def("set", &CancelFlag::set, "Ask the step to stop; safe from any thread.")
      .def("is_set", &CancelFlag::is_set);
  py::class_<PyModel>(m, "Model",
                      "Weights, KV cache and thread pool; step is the one forward call.")
      .def(py::init([](const py::dict& config, const PyEmbedding& tok_embeddings,
                       const py::list& layers, const py::array& norm, const PyMatrix& output,
                       const py::array& inv_freq, const std::string& kv_dtype, int64_t n_blocks,
                       std::optional<int> n_threads, const std::optional<std::string>& isa,
                       const py::list& devices, std::optional<int64_t> n_ctx_blocks,
                       double attention_factor) {
             return std::make_unique<PyModel>(
                 config, tok_embeddings, layers, norm, output, inv_freq, kv_dtype, n_blocks,
                 n_threads, isa.value_or(""), devices, n_ctx_blocks, attention_factor);
           }),
           py::kw_only(), arg("config"), arg("tok_embeddings"), arg("layers"), arg("norm"),
           arg("output"), arg("inv_freq"), arg("kv_dtype"), arg("n_blocks"),
           arg("n_threads") = py::none(), arg("isa") = py::none(), arg("devices") = py::list(),
           arg("n_ctx_blocks") = py::none(), arg("attention_factor") = 1.0)
      .def_property_readonly("n_blocks", &PyModel::n_blocks)
      .def_property_readonly("n_threads", &PyModel::n_threads)
      .def_property_readonly("isa", &PyModel::isa)
      .def_property_readonly("work_bytes", &PyModel::work_bytes,
                             "Bytes of work space held now; it grows with the first steps.")
      .def_property_readonly("kv_dtype", &PyModel::kv_dtype)
      .def_property_readonly("notes", &PyModel::notes, "What devices had to do without.")
      .def("step", &PyModel::step, arg("token_ids"), arg("positions"), arg("sequence_of_token"),
           arg("block_tables"), arg("output_rows"), arg("output") = "logits",
           arg("cancel") = py::none(),
           "The ragged step. token_ids, positions, sequence_of_token int32 (n,); block_tables "
           "int32 (n_sequences, max_blocks); output_rows int32 (m,), strictly ascending. Returns "
           "float32 (m, vocab_size), or (m, dim) after the final norm for output=\"hidden\".")
      .def("step_largest", &PyModel::step_largest, arg("token_ids"), arg("positions"),
           arg("sequence_of_token"), arg("block_tables"), arg("output_rows"), arg("k"),
           arg("cancel") = py::none(),
           "A step that returns, of each output row, the k largest logits alone (k <= 64), chosen "
           "where they are computed: float32 (m, k), descending, and their ids, int32 (m, k); of "
           "equal logits the lower id comes first.")
      .def("set_layer_stream", &PyModel::set_layer_stream, arg("from_tokens"),
           "From now on, the first device computes the host's layers, too, in passes of that many "
           "tokens or more: their weights visit it one layer after the other.")
      .def("copy_blocks", &PyModel::copy_blocks, arg("source"), arg("destination"),
           "Copy K and V of block source[i] to destination[i] in every layer; int32 (n,) each.")
      .def("read_blocks", &PyModel::read_blocks, arg("blocks"),
           "K and V of blocks int32 (n,) in every layer, as they lie in the cache: uint8 "
           "(n, block_bytes).")
      .def("write_blocks", &PyModel::write_blocks, arg("blocks"), arg("data"),
           "Put what read_blocks returned, uint8 (n, block_bytes), into blocks int32 (n,).")
      .def_property_readonly("block_bytes", &PyModel::block_bytes,
                             "Bytes of a block in all layers.")
      .def("read_ahead", &PyModel::read_ahead, arg("file"), arg("map"), arg("layers"),
           arg("window_bytes"), arg("loading") = "map",
           "From now on, steps read the weights of layers ahead of their use. file: a "
           "descriptor of the mapped file, duplicated; map: the read-only map that the weights lie "
           "in; layers: for each its first byte, the byte after its last, and whether it is "
           "dropped after use (Linux); window_bytes: how much of these may be in memory at once; "
           "loading: \"map\", or \"read\" to read the file in several threads.")
      .def("embed", &PyModel::embed, arg("token_ids"), "int32 (n,) -> float32 (n, dim).")
      .def("qkv", &PyModel::qkv, arg("layer"), arg("x"), arg("positions"), arg("sequence_of_token"),
           arg("block_tables"),
           "RMSNorm, wq/wk/wv, RoPE; appends K and V. float32 (n, dim) -> q float32 (n, dim).")
      .def("attend", &PyModel::attend, arg("layer"), arg("q"), arg("positions"),
           arg("sequence_of_token"), arg("block_tables"),
           "Attention over the cache. float32 (n, dim) -> float32 (n, dim).")
      .def("project", &PyModel::project, arg("layer"), arg("attended"), arg("x"),
           "x + wo @ attended, float32 (n, dim).")
      .def("gate_up", &PyModel::gate_up, arg("layer"), arg("x"),
           "RMSNorm, w1/w3, SwiGLU. float32 (n, dim) -> float32 (n, hidden_dim).")
      .def("down", &PyModel::down, arg("layer"), arg("hidden"), arg("x"),
           "x + w2 @ hidden, float32 (n, dim).")
      .def("output", &PyModel::output, arg("x"), arg("output") = "logits",
           "Final norm, then the output matrix unless output=\"hidden\".");
  m.def(
      "work_bytes",
      [](const py::dict& config, int64_t group_size, int n_threads, int64_t n_tokens,
         int64_t n_rows, const std::optional<std::string>& isa) {
        return Forward::work_bytes(kernels_named(isa.value_or("")), config_of(config), group_size,
                                   n_threads, n_tokens, n_rows);
      },
      arg("config"), arg("group_size"), arg("n_threads"), arg("n_tokens"), arg("n_rows"),
      arg("isa") = py::none(),
      "Bytes that a model's work space grows to by steps of n_tokens tokens and n_rows rows at "
      "most; group_size 0 if all matrices are dense. Model.work_bytes is what it holds now.");
  m.def(
      "kv_bytes",
      [](const py::dict& config, const std::string& kv_dtype, int64_t n_blocks) {
        const Config shape = config_of(config);
        shape.check();
        return KvCache::bytes_for(kv_type_of(kv_dtype), shape.n_layers, n_blocks, shape.n_kv_heads,
                                  shape.head_dim());
      },
      arg("config"), arg("kv_dtype"), arg("n_blocks"),
      "Bytes of a KV cache whose blocks have all been written.");
}

}  // namespace llama2q
