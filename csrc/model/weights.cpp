#include "model/weights.h"

#include <string>

#include "base/check.h"

namespace llama2q {
namespace {

using std::to_string;

void check_shape(const std::string& name, const MatrixView& m, int64_t rows, int64_t cols) {
  require(m.rows == rows && m.cols == cols, name + " is [" + to_string(m.rows) + ", " +
                                                to_string(m.cols) + "]; expected [" +
                                                to_string(rows) + ", " + to_string(cols) + "]");
}

// Quantized matrices that read one activation share its groups.
void check_group(const std::string& name, const MatrixView& a, const MatrixView& b) {
  require(a.group_size == 0 || b.group_size == 0 || a.group_size == b.group_size,
          name + " has group size " + to_string(b.group_size) +
              "; wq, which reads the same activation, has " + to_string(a.group_size));
}

}  // namespace

void Config::check() const {
  for (const int64_t size : {dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size}) {
    require(size >= 1 && size < (int64_t{1} << 31),
            "a size of the model config is " + to_string(size) + "; expected 1 to 2**31 - 1");
  }
  require(dim % n_heads == 0, "dim is not a multiple of n_heads");
  require(n_heads % n_kv_heads == 0, "n_heads is not a multiple of n_kv_heads");
  require(head_dim() % 2 == 0, "head_dim is odd; RoPE rotates pairs");
  require(norm_eps >= 0.0f && norm_eps < 1e30f, "norm_eps must be finite and not negative");
}

void Weights::check(const Config& config) const {
  require(tok_embeddings.rows == config.vocab_size && tok_embeddings.cols == config.dim,
          "tok_embeddings is [" + to_string(tok_embeddings.rows) + ", " +
              to_string(tok_embeddings.cols) + "]; expected [" + to_string(config.vocab_size) +
              ", " + to_string(config.dim) + "]");
  require(
      static_cast<int64_t>(layers.size()) == config.n_layers,
      "there are " + to_string(layers.size()) + " layers; expected " + to_string(config.n_layers));
  require(static_cast<int64_t>(inv_freq.size()) == config.head_dim() / 2,
          "inv_freq has " + to_string(inv_freq.size()) + " values; expected " +
              to_string(config.head_dim() / 2));
  check_rope(inv_freq, attention_factor);
  const int64_t pair_rows = 2 * kBandRows * ((config.hidden_dim + kBandRows - 1) / kBandRows);
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerView& layer = layers[i];
    const std::string prefix = "layer " + to_string(i) + ": ";
    check_shape(prefix + "wq", layer.wq, config.dim, config.dim);
    check_shape(prefix + "wk", layer.wk, config.kv_dim(), config.dim);
    check_shape(prefix + "wv", layer.wv, config.kv_dim(), config.dim);
    check_shape(prefix + "wo", layer.wo, config.dim, config.dim);
    check_shape(prefix + "w1_w3", layer.w1_w3, pair_rows, config.dim);
    check_shape(prefix + "w2", layer.w2, config.dim, config.hidden_dim);
    check_group(prefix + "wk", layer.wq, layer.wk);
    check_group(prefix + "wv", layer.wq, layer.wv);
    check_group(prefix + "wv", layer.wk, layer.wv);
  }
  check_shape("output", output, config.vocab_size, config.dim);
}

}  // namespace llama2q
