// exp and SwiGLU on 16 lanes: our own polynomial, the same bits on every machine.
#pragma once

#include <stdint.h>

namespace llama2q {

// exp(x): exp(0) = 1, +0 for x <= -87, exp(87) above 87. x = n ln2 + r with |r| <= ln2 / 2, then
// 1 + r + r^2 p(r), p of degree 5 fitted by least squares on Chebyshev points; about 1 ulp.
// Always inlined: an F of two registers would be passed through memory.
template <class V>
[[gnu::always_inline]] inline typename V::F exp_lanes(typename V::F x) {
  using F = typename V::F;
  const F low = V::broadcast(-87.0f);
  // min and max return their second operand if one is NaN, so NaN stays NaN.
  const F bounded = V::min(V::broadcast(87.0f), V::max(low, x));
  const F n = V::rint(V::mul(bounded, V::broadcast(0x1.715476p+0f)));
  F r = V::fma(n, V::broadcast(-0x1.62e4p-1f), bounded);
  r = V::fma(n, V::broadcast(-0x1.7f7d1cp-20f), r);
  F p = V::broadcast(0x1.a1520cp-13f);
  p = V::fma(p, r, V::broadcast(0x1.6d43b4p-10f));
  p = V::fma(p, r, V::broadcast(0x1.1110c6p-7f));
  p = V::fma(p, r, V::broadcast(0x1.5554e8p-5f));
  p = V::fma(p, r, V::broadcast(0x1.555556p-3f));
  p = V::fma(p, r, V::broadcast(0x1p-1f));
  const F y = V::fma(V::mul(r, r), p, r);
  const F result = V::scale_by_power_of_two(V::add(V::broadcast(1.0f), y), n);
  return V::zero_unless_greater(x, low, result);
}

// silu(g) * u = (g / (1 + exp(-g))) * u, exp's argument clamped to +-87 (exp_lanes does that).
template <class V>
typename V::F swiglu_lanes(typename V::F gate, typename V::F up) {
  const typename V::F e = exp_lanes<V>(V::sub(V::broadcast(-0.0f), gate));
  return V::mul(V::div(gate, V::add(V::broadcast(1.0f), e)), up);
}

template <class V>
void swiglu(const float* gate, const float* up, int64_t n, float* y) noexcept {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t m = n - i;
    V::store_partial(y + i,
                     swiglu_lanes<V>(V::load_partial(gate + i, m), V::load_partial(up + i, m)), m);
  }
}

template <class V>
void exp_array(const float* x, int64_t n, float* y) noexcept {
  for (int64_t i = 0; i < n; i += 16) {
    V::store_partial(y + i, exp_lanes<V>(V::load_partial(x + i, n - i)), n - i);
  }
}

template <class V>
void exp_scaled(const float* x, int64_t n, float shift, float divisor, float* y) noexcept {
  const typename V::F s = V::broadcast(shift);
  const typename V::F d = V::broadcast(divisor);
  for (int64_t i = 0; i < n; i += 16) {
    const typename V::F z = V::div(V::sub(V::load_partial(x + i, n - i), s), d);
    V::store_partial(y + i, exp_lanes<V>(z), n - i);
  }
}

// Integer maximum of the magnitudes' bits: above every finite value exactly if one is not finite.
template <class V>
uint32_t magnitude_bits(const float* x, int64_t n) {
  typename V::I largest = V::zero_int();
  for (int64_t i = 0; i < n; i += 16) {
    largest = V::max_int(largest, V::magnitude_bits(V::load_partial(x + i, n - i)));
  }
  return V::max_lanes(largest);
}

template <class V>
bool all_finite(const float* x, int64_t n) noexcept {
  return magnitude_bits<V>(x, n) < 0x7f800000u;
}

// -inf is allowed (a masked token); +inf and NaN are not.
template <class V>
float max_finite(const float* x, int64_t n) noexcept {
  typename V::F largest = V::broadcast(-__builtin_inff());
  typename V::I odd = V::zero_int();
  for (int64_t i = 0; i < n; i += 16) {
    const typename V::F value = V::load_partial(x + i, n - i);
    odd = V::or_int(odd, V::nan_or_plus_inf(value));
    largest = V::max(largest, n - i < 16 ? V::fill_absent(value, n - i, -__builtin_inff()) : value);
  }
  return V::max_lanes(odd) != 0 ? __builtin_nanf("") : V::max_lanes(largest);
}

}  // namespace llama2q
