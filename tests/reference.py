"""The float64 oracle: a Llama 2 forward pass in NumPy, independent of the package.

`Forward` is the model's text, written once over an `Ops`; `Float64Ops` is the oracle's arithmetic,
`contract.ContractOps` the engine's float32 arithmetic bit for bit. K and V are rounded as the KV
cache rounds them, activations of quantized matrices as DESIGN.md section 5 point 1 says.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reference_weights import Matrix, Quantized, Weights

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Cached:
    """Keys or values as the cache holds them.

    values : float32, float16 or int8, (n, n_kv_heads, head_dim)
    scales : float16, (n, n_kv_heads) for int8, else None
    """

    values: Array
    scales: Array | None = None

    @property
    def float64(self) -> Array:
        wide = self.values.astype(np.float64)
        return wide if self.scales is None else wide * self.scales.astype(np.float64)[..., None]

    def append(self, other: Cached) -> Cached:
        values = np.concatenate([self.values, other.values])
        if self.scales is None or other.scales is None:
            return Cached(values)
        return Cached(values, np.concatenate([self.scales, other.scales]))


class Ops(Protocol):
    """What a layer is made of."""

    def embed(self, table: Matrix, ids: Array) -> Array: ...
    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array: ...
    def matmul(self, x: Array, matrix: Matrix) -> Array: ...
    def rope(self, x: Array, positions: Array, inv_freq: Array, factor: float) -> Array: ...
    def attention(self, q: Array, k: Cached, v: Cached, positions: Array) -> Array: ...
    def swiglu(self, gate: Array, up: Array) -> Array: ...
    def add(self, x: Array, y: Array) -> Array: ...


class Noise(Protocol):
    """Stands for rounding: returns y moved by at most about n roundings of `magnitude`."""

    def __call__(self, y: Array, magnitude: Array, n: int) -> Array: ...


# --- rounding rules that both arithmetics share -----------------------------------------------


def scale_to_f16(scale: Array) -> Array:
    """float32 to float16: to nearest even, but up in magnitude below 2^-14."""
    scale = np.asarray(scale, np.float32)
    nearest = scale.astype(np.float16)
    magnitude = np.abs(nearest)
    up = np.nextafter(magnitude, np.float16(np.inf))
    too_small = (np.abs(scale) < 2.0**-14) & (magnitude.astype(np.float32) < np.abs(scale))
    return np.where(too_small, np.copysign(up, scale).astype(np.float16), nearest)


def cache_rounding(x: Array, kv_dtype: str) -> Cached:
    """Round keys or values (n, n_kv_heads, head_dim) as the cache of that type does."""
    x = x.astype(np.float32)
    if kv_dtype == "f32":
        return Cached(x)
    if kv_dtype == "f16":
        return Cached(x.astype(np.float16))
    d = scale_to_f16(np.abs(x).max(axis=2) / np.float32(127))
    wide = d.astype(np.float32)[..., None]
    ratio = np.divide(x, wide, out=np.zeros_like(x), where=wide != 0)
    return Cached(np.clip(np.rint(ratio), -127, 127).astype(np.int8), d)


def quantize_activations(x: Array, group_size: int) -> tuple[Array, Array]:
    """DESIGN.md section 5 point 1 in float32.

    Returns q : int8 (n, K) with K padded to whole groups, and d : float32 (n, K / group_size).
    """
    x = np.pad(x.astype(np.float32), ((0, 0), (0, -x.shape[1] % group_size)))
    groups = x.reshape(len(x), -1, group_size)
    amax = (groups.view(np.uint32) & 0x7FFFFFFF).max(axis=2).view(np.float32)
    live = amax >= np.float32(2.0**-100)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=live)
    d = np.where(live, amax / np.float32(127), np.float32(0))
    return np.rint(groups * inverse[..., None]).astype(np.int8).reshape(len(x), -1), d


def inv_freq(head_dim: int, theta: float) -> Array:
    """theta^(-2i / head_dim), correctly rounded to float64; (head_dim / 2,)."""
    with localcontext() as context:
        context.prec = 60
        base = Decimal(theta)
        powers = [base ** (Decimal(-2 * i) / Decimal(head_dim)) for i in range(head_dim // 2)]
    return np.array([float(power) for power in powers])


@dataclass(frozen=True)
class Rope:
    """Frequencies (head_dim / 2,) and the factor on cos and sin."""

    inv_freq: Array
    factor: float = 1.0


def linear_rope(head_dim: int, theta: float, factor: float) -> Rope:
    """Positions / factor (Chen et al., 2023, section 2.3)."""
    return Rope(inv_freq(head_dim, theta) / factor)


def ntk_rope(head_dim: int, theta: float, factor: float) -> Rope:
    """NTK-aware: b' = b * s^(d / (d - 2)) (Peng et al., 2023, definition 1)."""
    return Rope(inv_freq(head_dim, theta * factor ** (head_dim / (head_dim - 2))))


def yarn_rope(
    head_dim: int, theta: float, factor: float, original: int, fast: float = 32, slow: float = 1
) -> Rope:
    """YaRN (Peng et al., 2023, sections 3.2 to 3.4), its ramp over pairs as its code has it.

    A pair i turns original * theta^(-2i/d) / (2 pi) times within the original context: from
    ceil(i(slow)) on it is interpolated, up to floor(i(fast)) kept, a straight line between.
    """
    plain = inv_freq(head_dim, theta)

    def pair(turns: float) -> float:
        return head_dim / 2 * np.log(original / (2 * np.pi * turns)) / np.log(theta)

    first, last = max(np.floor(pair(fast)), 0), min(np.ceil(pair(slow)), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - first) / max(last - first, 1e-3), 0, 1)
    return Rope((1 - ramp) * plain + ramp * plain / factor, 0.1 * float(np.log(factor)) + 1)


# --- the oracle's arithmetic ------------------------------------------------------------------


def _no_noise(y: Array, _magnitude: Array, _n: int) -> Array:
    return y


@dataclass(frozen=True)
class Float64Ops:
    """Real-number semantics in float64, optionally with modelled float32 rounding.

    The counts handed to `noise` are those of DESIGN.md section 5: `tolerances.py` explains them.
    """

    noise: Noise = _no_noise
    exp_roundings: int = 2
    """Error of the engine's exp, in units of u; tests/kernels/test_exp.py holds it to that."""

    def embed(self, table: Matrix, ids: Array) -> Array:
        return table.float64[ids]

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        y = x / np.sqrt(mean + eps) * weight.astype(np.float64)
        return self.noise(y, np.abs(y), rms_norm_roundings(x.shape[-1]))

    def matmul(self, x: Array, matrix: Matrix) -> Array:
        w = matrix.float64
        if isinstance(matrix, Quantized):
            q, d = quantize_activations(x, matrix.group_size)
            x = q.astype(np.float64) * np.repeat(d.astype(np.float64), matrix.group_size, axis=1)
            x = x[:, : w.shape[1]]
            roundings = matmul_roundings(-(-w.shape[1] // matrix.group_size))
        else:
            roundings = matmul_roundings(w.shape[1])
        y = x @ w.T
        if self.noise is _no_noise:
            return y
        return self.noise(y, np.abs(x) @ matrix.magnitude.T, roundings)

    def rope(self, x: Array, positions: Array, inv_freq: Array, factor: float = 1.0) -> Array:
        angle = positions.astype(np.float64)[:, None, None] * inv_freq
        c, s = np.cos(angle) * factor, np.sin(angle) * factor
        even, odd = x[..., 0::2], x[..., 1::2]
        y, size = np.empty_like(x), np.empty_like(x)
        y[..., 0::2], y[..., 1::2] = even * c - odd * s, even * s + odd * c
        size[..., 0::2] = np.abs(even * c) + np.abs(odd * s)
        size[..., 1::2] = np.abs(even * s) + np.abs(odd * c)
        return self.noise(y, size, ROPE_ROUNDINGS)

    def attention(self, q: Array, k: Cached, v: Cached, positions: Array) -> Array:
        n, n_heads, head_dim = q.shape
        keys, values = k.float64, v.float64
        n_keys, n_kv_heads, _ = keys.shape
        c = 1 / np.sqrt(head_dim)
        seen = np.arange(n_keys) <= positions[:, None]
        out = np.empty_like(q)
        for head in range(n_heads):
            kv_head = head * n_kv_heads // n_heads
            rows, key = q[:, head], keys[:, kv_head]
            score = rows @ key.T * c
            size = np.abs(rows) @ np.abs(key).T * c
            score = self.noise(score, size, score_roundings(head_dim))
            score = np.where(seen, score, -np.inf)
            shifted = score - score.max(axis=1, keepdims=True)
            distance = np.where(seen, np.abs(shifted), 0)
            p = np.exp(shifted)
            p = self.noise(p, p * (1 + distance), self.exp_roundings + 1)
            value = values[:, kv_head]
            total = p.sum(axis=1, keepdims=True)
            mean, spread = p @ value / total, p @ np.abs(value) / total
            count = weighted_mean_roundings(n_keys, self.exp_roundings)
            out[:, head] = self.noise(mean, spread, count)
        return out.reshape(n, -1)

    def swiglu(self, gate: Array, up: Array) -> Array:
        y = gate / (1 + np.exp(np.clip(-gate, -87, 87))) * up
        return self.noise(y, np.abs(y), swiglu_roundings(self.exp_roundings))

    def add(self, x: Array, y: Array) -> Array:
        return self.noise(x + y, np.abs(x + y), 1)


# --- how many float32 roundings an output of each op has gone through --------------------------

ROPE_ROUNDINGS = 3
"""c or s rounded to float32, the product x * s rounded, the fma rounded."""


def lane_sum_roundings(n: int) -> int:
    """A tree16 sum of n fma terms: ceil(n / 16) fma in the lane, 4 additions in the tree."""
    return -(-n // 16) + 4


def rms_norm_roundings(dim: int) -> int:
    """Half of (lane sum, / dim, eps to float32, + eps) for the root; sqrt, 1 /, x * r, * w."""
    return -(-(lane_sum_roundings(dim) + 3) // 2) + 4


def matmul_roundings(terms: int) -> int:
    """One fma a term; for quantized ones a term is a group, whose scales' product rounds once."""
    return terms + 1


def score_roundings(head_dim: int) -> int:
    """The lane sum, c (and k_scale * c) rounded, the product rounded."""
    return lane_sum_roundings(head_dim) + 3


def weighted_mean_roundings(n_keys: int, exp_roundings: int) -> int:
    """acc and l over blocks of 64 in chunks of 256, and out = acc / l.

    Per key one fma (and p * v_scale); per block and per chunk one rescaling in acc and one in l,
    each by an exp and with one or two roundings.
    """
    blocks, chunks = -(-n_keys // 64), -(-n_keys // 256)
    return n_keys + 1 + 2 * (blocks + chunks) * (exp_roundings + 3) + 8 + 1


def swiglu_roundings(exp_roundings: int) -> int:
    """exp, 1 +, the division, the product."""
    return exp_roundings + 3


# --- the model --------------------------------------------------------------------------------


class Forward:
    """One sequence with its KV cache; `step` appends tokens."""

    def __init__(
        self,
        weights: Weights,
        ops: Ops | None = None,
        kv_dtype: str = "f32",
        rope: Rope | None = None,
    ) -> None:
        self.weights = weights
        self.ops: Ops = ops or Float64Ops()
        self.kv_dtype = kv_dtype
        shape = weights.shape
        self.rope = rope or Rope(inv_freq(shape.head_dim, shape.rope_theta))
        self.cache: list[tuple[Cached, Cached]] = []
        self.length = 0

    def hidden(self, ids: Array) -> Array:
        """Append ids (n,); return the hidden states after the final norm, (n, dim)."""
        ops, shape, weights = self.ops, self.weights.shape, self.weights
        ids = np.asarray(ids)
        n = len(ids)
        positions = np.arange(self.length, self.length + n)
        x = ops.embed(weights.matrices["tok_embeddings.weight"], ids)
        for layer in range(shape.n_layers):
            x = self._layer(layer, x, positions)
        self.length += n
        return ops.rms_norm(x, weights.norms["norm.weight"], shape.norm_eps)

    def _layer(self, layer: int, x: Array, positions: Array) -> Array:
        ops, shape = self.ops, self.weights.shape
        n = len(x)

        def matmul(y: Array, name: str) -> Array:
            return ops.matmul(y, self.weights.matrices[f"layers.{layer}.{name}.weight"])

        def norm(y: Array, name: str) -> Array:
            weight = self.weights.norms[f"layers.{layer}.{name}.weight"]
            return ops.rms_norm(y, weight, shape.norm_eps)

        h = norm(x, "attention_norm")
        q = matmul(h, "attention.wq").reshape(n, shape.n_heads, -1)
        k = matmul(h, "attention.wk").reshape(n, shape.n_kv_heads, -1)
        v = matmul(h, "attention.wv").reshape(n, shape.n_kv_heads, -1)
        q = ops.rope(q, positions, self.rope.inv_freq, self.rope.factor)
        k = ops.rope(k, positions, self.rope.inv_freq, self.rope.factor)
        fresh = cache_rounding(k, self.kv_dtype), cache_rounding(v, self.kv_dtype)
        if layer == len(self.cache):
            self.cache.append(fresh)
        else:
            old = self.cache[layer]
            self.cache[layer] = old[0].append(fresh[0]), old[1].append(fresh[1])
        attended = ops.attention(q, *self.cache[layer], positions)
        x = ops.add(x, matmul(attended, "attention.wo"))
        h = norm(x, "ffn_norm")
        hidden = ops.swiglu(matmul(h, "feed_forward.w1"), matmul(h, "feed_forward.w3"))
        return ops.add(x, matmul(hidden, "feed_forward.w2"))

    def step(self, ids: Array) -> Array:
        """Append ids (n,); return logits (n, vocab_size)."""
        return self.ops.matmul(self.hidden(ids), self.weights.matrices["output.weight"])

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        """Return the n most likely continuations, one after another; ties to the lower id."""
        logits, new = self.step(np.array(prompt)), []
        for _ in range(n):
            new.append(int(np.argmax(logits[-1])))
            logits = self.step(np.array(new[-1:]))
        return new
