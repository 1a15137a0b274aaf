"""The numeric contract (DESIGN.md section 5) in NumPy float32: what the kernels must equal.

The float64 oracle tells a wrong result; this tells a wrong *order*: another chunking, a product
rounded before its sum, a reduction over other lanes. It is written from the design's text. Only
exp is borrowed from the scalar kernel; tests/kernels/test_exp.py holds that one to float64.
Slow on purpose: one NumPy call per rounding.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from reference import Cached, quantize_activations
from reference_weights import Matrix, Quantized

Array: TypeAlias = NDArray[Any]
F32 = np.float32
LANES = 16
BLOCK = 64
CHUNK = 256


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in float32 with one rounding.

    The product of two float32 is exact in float64. The sum is rounded to odd there (TwoSum gives
    the rest), after which rounding to float32 is right (Boldo and Melquiond, 2008).
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.atleast_1d(product + addend)
    back = total - product
    rest = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    away = (rest > 0) == (total > 0)
    nudged = np.where(away, bits + 1, bits - 1)
    fix = even & (rest != 0) & np.isfinite(total)
    result = np.where(fix, nudged, bits).view(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return result.astype(F32).reshape(np.broadcast_shapes(product.shape, addend.shape))


def exp(x: Array) -> Array:
    flat = np.ascontiguousarray(x, F32).reshape(-1)
    return _core.exp(flat, isa="scalar").reshape(x.shape)


def lanes(x: Array, fill: float = 0.0) -> Array:
    """Pad the last axis with `fill` and split it: (..., n) to (..., ceil(n / 16), 16)."""
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)]
    return np.pad(x, pad, constant_values=fill).reshape(*x.shape[:-1], -1, LANES)


def tree16(x: Array) -> Array:
    """Sum (..., 16) as the tree 8, 4, 2, 1."""
    for width in (8, 4, 2, 1):
        x = x[..., :width] + x[..., width : 2 * width]
    return x[..., 0]


def dot16(x: Array, y: Array) -> Array:
    """tree16 of fma(x, y) over the last axis, 16 lanes."""
    x, y = np.broadcast_arrays(x, y)
    xs, ys = lanes(x), lanes(y)
    total = np.zeros((*xs.shape[:-2], LANES), F32)
    for step in range(xs.shape[-2]):
        total = fma(xs[..., step, :], ys[..., step, :], total)
    return tree16(total)


def sum16(x: Array) -> Array:
    """Sum over the last axis by lane, then the tree."""
    xs = lanes(x)
    total = np.zeros((*xs.shape[:-2], LANES), F32)
    for step in range(xs.shape[-2]):
        total = total + xs[..., step, :]
    return tree16(total)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    x = x.astype(F32)
    mean = dot16(x, x) / F32(x.shape[-1])
    r = F32(1) / np.sqrt(mean + F32(eps))
    return (x * r[..., None]) * weight


def matmul_dense(x: Array, w: Array) -> Array:
    """One fma per k, ascending. x : (n, K); w : (rows, K) widened to float32."""
    total = np.zeros((len(x), len(w)), F32)
    columns = np.ascontiguousarray(w.T)
    for k in range(x.shape[1]):
        total = fma(x[:, k, None], columns[k], total)
    return total


def matmul_quantized(x: Array, matrix: Quantized) -> Array:
    """Exact integer dots per group, then one fma per group, ascending."""
    size = matrix.group_size
    q, d = quantize_activations(x, size)
    rows, cols = matrix.values.shape
    w = np.pad(matrix.values, ((0, 0), (0, -cols % size))).astype(np.float64)
    scales = matrix.scales.astype(F32)
    total = np.zeros((len(x), rows), F32)
    for group in range(scales.shape[1]):
        span = slice(group * size, (group + 1) * size)
        dot = q[:, span].astype(np.float64) @ w[:, span].T
        with np.errstate(under="ignore"):
            scale = scales[:, group] * d[:, group, None]
        total = fma(dot.astype(F32), scale, total)
    return total


def add_product(c: Array, a: Array, b: Array, *, subtract: bool = False) -> Array:
    """c + a.T @ b or c - a.T @ b: one fma per k, ascending, from c on. a : (K, m); b : (K, n)."""
    sign = F32(-1 if subtract else 1)
    for k in range(len(a)):
        c = fma(sign * a[k, :, None], b[k], c)
    return c


def ldl(h: Array) -> Array:
    """L (without its ones) and D of h = L D L^T: column by column, one fma per earlier column."""
    w, out = h.copy(), h.copy()
    for j in range(len(h)):
        for p in range(j):
            w[j:, j] = fma(-out[j, p], w[j:, p], w[j:, j])
        out[j, j] = w[j, j]
        out[j + 1 :, j] = w[j + 1 :, j] / w[j, j]
    return out


def rope(x: Array, positions: Array, inv_freq: Array, factor: float = 1.0) -> Array:
    angle = positions.astype(np.float64)[:, None, None] * inv_freq
    c, s = (np.cos(angle) * factor).astype(F32), (np.sin(angle) * factor).astype(F32)
    even, odd = x[..., 0::2], x[..., 1::2]
    y = np.empty_like(x)
    y[..., 0::2] = fma(even, c, -(odd * s))
    y[..., 1::2] = fma(even, s, odd * c)
    return y


def swiglu(gate: Array, up: Array) -> Array:
    with np.errstate(under="ignore"):
        return (gate / (F32(1) + exp(np.clip(-gate, F32(-87), F32(87))))) * up


def _attend_chunk(
    q: Array, k: Cached, v: Cached, heads: Array, begin: int, end: int
) -> tuple[Array, Array, Array]:
    """Keys begin..end-1 (one chunk) for one query (n_heads, head_dim): m, l (n_heads,), acc."""
    n_heads, head_dim = q.shape
    m = np.full(n_heads, -np.inf, F32)
    total = np.zeros(n_heads, F32)
    acc = np.zeros((n_heads, head_dim), F32)
    c = F32(1 / np.sqrt(head_dim))
    for block in range(begin, end, BLOCK):
        span = slice(block, min(block + BLOCK, end))
        keys = k.values[span].astype(F32)[:, heads].transpose(1, 0, 2)
        score = dot16(q[:, None, :], keys)
        if k.scales is None:
            score = score * c
        else:
            score = score * (k.scales[span].astype(F32)[:, heads].T * c)
        new = np.maximum(m, score.max(axis=1))
        r, p = exp(m - new), exp(score - new[:, None])
        total = fma(total, r, sum16(p))
        acc = acc * r[:, None]
        values = v.values[span].astype(F32)[:, heads].transpose(1, 0, 2)
        weight = p if v.scales is None else p * v.scales[span].astype(F32)[:, heads].T
        for key in range(values.shape[1]):
            acc = fma(weight[:, key, None], values[:, key], acc)
        m = new
    return m, total, acc


def attention(q: Array, k: Cached, v: Cached, positions: Array) -> Array:
    """Causal attention; q (n, n_heads, head_dim). Returns (n, n_heads * head_dim)."""
    n, n_heads, _ = q.shape
    heads = np.arange(n_heads) * k.values.shape[1] // n_heads
    out = np.empty_like(q)
    with np.errstate(under="ignore"):
        for row in range(n):
            end = int(positions[row]) + 1
            m, total, acc = _attend_chunk(q[row], k, v, heads, 0, min(CHUNK, end))
            for begin in range(CHUNK, end, CHUNK):
                last = min(begin + CHUNK, end)
                m2, total2, acc2 = _attend_chunk(q[row], k, v, heads, begin, last)
                new = np.maximum(m, m2)
                r, r2 = exp(m - new), exp(m2 - new)
                total = fma(total, r, total2 * r2)
                acc = fma(acc, r[:, None], acc2 * r2[:, None])
                m = new
            out[row] = acc / total[:, None]
    return out.reshape(n, -1)


class ContractOps:
    """`reference.Ops` in the engine's arithmetic."""

    def embed(self, table: Matrix, ids: Array) -> Array:
        if isinstance(table, Quantized):
            scales = np.repeat(table.scales[ids].astype(F32), table.group_size, axis=1)
            return table.values[ids].astype(F32) * scales[:, : table.values.shape[1]]
        return table.values[ids]

    def matmul(self, x: Array, matrix: Matrix) -> Array:
        if isinstance(matrix, Quantized):
            return matmul_quantized(x, matrix)
        return matmul_dense(x, matrix.values)

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    rms_norm = staticmethod(rms_norm)
    rope = staticmethod(rope)
    attention = staticmethod(attention)
    swiglu = staticmethod(swiglu)
