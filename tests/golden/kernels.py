"""Cases of single kernels: inputs of many shapes and the scalar kernel's results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.container import Case, Value
from golden.stored import Stored, random_stored, random_table
from llama2q import _core
from llama2q.errors import NonFiniteError
from llama2q.quant import GRIDS
from reference import inv_freq

SCALAR = "scalar"
THREADS = np.array([1, 3], np.int64)
QUANTIZED = ("int4", "int4-uniform", "int8")
DENSE = ("f32", "f16", "bf16")
KV_DTYPES = ("f32", "f16", "int8")
"""In the order of csrc/kernels/args.h's KvType."""
Array = NDArray[Any]


def cases() -> Iterator[Case]:
    """Yield every case of a kernel."""
    rng = np.random.default_rng(5)
    yield from _rows(rng)
    yield from _lanes(rng)
    yield from _matmuls(rng)
    yield from _epilogues(rng)
    yield from _attention(rng)
    yield from _sampling(rng)
    yield from _weight_quantizers(rng)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Draw float32 values with outliers, zeros and denormals among them."""
    values = rng.standard_normal(shape).astype(np.float32)
    flat = values.reshape(-1)
    flat[::17] *= 100
    flat[::23] = -0.0
    flat[::61] = 1e-41
    return values


def _verdict(fields: dict[str, Value], result: str, run: Callable[[], Array]) -> dict[str, Value]:
    """Add what the kernel returns, or that it refuses a value that is not finite."""
    try:
        return {**fields, result: run()}
    except NonFiniteError:
        return {**fields, "refused": 1}


def _rows(rng: np.random.Generator) -> Iterator[Case]:
    for cols, group_size in ((256, 32), (100, 32), (300, 64), (129, 128), (7, 64)):
        x = normal(rng, 4, cols)
        x[1, :group_size] = 0
        x[2] *= np.float32(1e-33)
        x[3] *= np.float32(1e30)
        codes, scales = _core.quantize_activations(x, group_size, SCALAR)
        sums = codes.reshape(4, -1, group_size).sum(axis=2, dtype=np.int32)
        fields = {"x": x, "cols": cols, "group_size": group_size, "codes": codes, "scales": scales}
        yield Case(
            f"quantize_row {cols} / {group_size}", "quantize_rows",
            {**fields, "corrections": -128 * sums},
        )  # fmt: skip
    for value in (np.nan, np.inf, -np.inf):
        x = normal(rng, 2, 70)
        x[1, 69] = value
        fields = {"x": x, "cols": 70, "group_size": 32, "refused": 1}
        yield Case(f"quantize_row {value}", "quantize_rows", fields)
    for dim in (1, 15, 16, 48, 257):
        x, weight = normal(rng, 3, dim), normal(rng, dim)
        y = _core.rms_norm(x, weight, 1e-5, SCALAR)
        yield Case(f"rms_norm {dim}", "rms_norm", {"x": x, "weight": weight, "eps": 1e-5, "y": y})
    for head_dim in (2, 8, 34, 64, 128):
        x = normal(rng, 5, 3, head_dim)
        positions = np.array([0, 1, 77, 4095, 1_000_000], np.int32)
        frequencies = inv_freq(head_dim, 10000.0)
        y = _core.rope(x, positions, frequencies, SCALAR)
        yield Case(
            f"rope {head_dim}", "rope",
            {"x": x, "positions": positions, "inv_freq": frequencies, "y": y},
        )  # fmt: skip


def _lanes(rng: np.random.Generator) -> Iterator[Case]:
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 87, -87, 88, -88, 1e-40, -1e-40, 3e38, -3e38]
    spread = rng.uniform(-90, 90, 4000)
    x = np.concatenate([spread, rng.uniform(-1, 1, 500), special]).astype(np.float32)
    yield Case("exp", "exp", {"x": x, "y": _core.exp(x, SCALAR)})
    up = np.roll(x, 7)
    yield Case("swiglu", "swiglu", {"x": x, "up": up, "y": _core.swiglu(x, up, SCALAR)})


def _matmul(name: str, matrix: Stored, x: Array, **extra: Value) -> Case:
    fields: dict[str, Value] = {**matrix.fields("matrix"), "x": x, **extra}

    def run() -> Array:
        return _core.matmul(x, matrix.matrix(), SCALAR, 1)

    return Case(f"matmul {name}", "matmul", _verdict(fields, "y", run))


def _matmuls(rng: np.random.Generator) -> Iterator[Case]:
    for kind in QUANTIZED:
        for group_size in (32, 64, 128):
            matrix = random_stored(rng, 70, 200, kind, group_size)
            # One token, streams, panels of one tile and of several with a tail.
            for n in (0, *range(1, 14), 16, 17, 31, 40, 64, 65):
                name = f"{kind} / {group_size}, {n} tokens"
                yield _matmul(name, matrix, normal(rng, n, 200), threads=THREADS)
        # Extremes of every code: the largest dots.
        extreme = random_stored(rng, 32, 128, kind, 128)
        extreme.codes[...] = 0 if kind.startswith("int4") else -127
        for n in (1, 9):
            x = np.where(rng.random((n, 128)) < 0.9, np.float32(-3), np.float32(3))
            yield _matmul(f"{kind} extremes, {n} tokens", extreme, x)
        wide = random_stored(rng, 40, 4300, kind, 64)
        for n in (1, 7, 18):  # rows cut into panels
            yield _matmul(f"{kind} of 4300 columns, {n} tokens", wide, normal(rng, n, 4300))
        long = random_stored(rng, 33, 32, kind, 32)
        yield _matmul(f"{kind}, 530 tokens", long, normal(rng, 530, 32), threads=THREADS)
        x = normal(rng, 3, 32)
        x[2, 31] = np.nan
        yield _matmul(f"{kind}, NaN", long, x)
    for kind in DENSE:
        matrix = random_stored(rng, 37, 75, kind)
        for n in (0, *range(1, 10), 16, 17, 70):
            yield _matmul(f"{kind}, {n} tokens", matrix, normal(rng, n, 75), threads=THREADS)
    for kind in ("int8", *DENSE):
        table = random_table(rng, 11, 74, kind)
        ids = np.arange(11, dtype=np.int32)
        model = _model(table.cols, 32, tok_embeddings=table)
        fields = {**table.fields("matrix"), "ids": ids, "y": model.embed(ids)}
        yield Case(f"embed {kind}", "embed", fields)


def _model(dim: int, hidden_dim: int, **parts: Stored) -> _core.Model:
    """Build a model of one layer, for its ops; parts that are not given are zero."""

    def part(name: str, rows: int, cols: int) -> Stored:
        zero = np.zeros((-(-rows // 16), cols, 16), np.float32)
        return parts.get(name, Stored("f32", rows, cols, 0, zero))

    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (dim, dim))
    shapes |= {"w1_w3": (2 * (hidden_dim + -hidden_dim % 16), dim), "w2": (dim, hidden_dim)}
    layer: dict[str, Any] = {name: part(name, *shape).matrix() for name, shape in shapes.items()}
    norm = np.ones(dim, np.float32)
    table = Stored("f32", 11, dim, 0, np.zeros((11, dim), np.float32))
    return _core.Model(
        config={
            "dim": dim, "hidden_dim": hidden_dim, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1,
            "vocab_size": 11, "norm_eps": 1e-5,
        },
        tok_embeddings=parts.get("tok_embeddings", table).embedding(),
        layers=[{**layer, "attention_norm": norm, "ffn_norm": norm}],
        norm=norm,
        output=part("output", 11, dim).matrix(),
        inv_freq=inv_freq(dim, 10000.0),
        kv_dtype="f32",
        n_blocks=1,
        n_threads=1,
        isa=SCALAR,
    )  # fmt: skip


def _epilogues(rng: np.random.Generator) -> Iterator[Case]:
    dim, hidden_dim = 86, 43
    for kind in (*QUANTIZED, *DENSE):
        wo = random_stored(rng, dim, dim, kind)
        w1_w3 = random_stored(rng, 96, dim, kind)
        model = _model(dim, hidden_dim, wo=wo, w1_w3=w1_w3)
        for n in (1, 5, 9, 20):
            x, residual = normal(rng, n, dim), normal(rng, n, dim)
            fields: dict[str, Value] = {"x": x, "residual": residual, "threads": THREADS}
            y = model.project(0, x, residual)
            yield Case(
                f"add {kind}, {n} tokens", "matmul", {**wo.fields("matrix"), **fields, "y": y}
            )
            fields = {"x": x, "norm": np.ones(dim, np.float32), "eps": 1e-5, "threads": THREADS}
            y = model.gate_up(0, x)
            yield Case(
                f"gate_up {kind}, {n} tokens", "gate_up",
                {**w1_w3.fields("matrix"), **fields, "hidden_dim": hidden_dim, "y": y},
            )  # fmt: skip


def _attention(rng: np.random.Generator) -> Iterator[Case]:
    shapes = ((4, 4, 16, 70), (6, 2, 64, 300), (8, 1, 128, 270), (2, 1, 10, 130), (3, 3, 48, 600))
    for kv_type, kv_dtype in enumerate(KV_DTYPES):
        for n_heads, n_kv_heads, head_dim, n_keys in shapes:
            k, v = (
                normal(rng, n_keys, n_kv_heads, head_dim),
                normal(rng, n_keys, n_kv_heads, head_dim),
            )
            k[1], v[2] = 0, 0
            v[3] *= np.float32(1e-6)
            for n in (1, 30):
                positions = np.arange(n_keys - n, n_keys, dtype=np.int32)
                q = normal(rng, n, n_heads, head_dim)
                y = _core.attention(q, k, v, positions, kv_dtype, SCALAR, 1)  # type: ignore[arg-type]
                fields: dict[str, Value] = {
                    "q": q, "k": k, "v": v, "positions": positions, "n_heads": n_heads,
                    "n_kv_heads": n_kv_heads, "head_dim": head_dim, "kv_type": kv_type, "y": y,
                    "threads": THREADS,
                }  # fmt: skip
                name = f"attention {kv_dtype}, {n_heads} / {n_kv_heads} heads of {head_dim}"
                yield Case(f"{name}, {n} of {n_keys} tokens", "attention", fields)
    k = normal(rng, 3, 1, 8)
    k[2, 0, 7] = 65600.0
    q, positions = normal(rng, 1, 1, 8), np.array([2], np.int32)
    fields = {"q": q, "k": k, "v": k * 0, "positions": positions, "n_heads": 1, "n_kv_heads": 1,
              "head_dim": 8, "kv_type": 1, "refused": 1}  # fmt: skip
    yield Case("attention f16, 65600", "attention", fields)


def _sampling(rng: np.random.Generator) -> Iterator[Case]:
    n = 24
    logits = (rng.standard_normal((n, 1003)) * 4).astype(np.float32)
    logits[:, ::97] = -np.inf
    arguments = {
        "logits": logits,
        "temperature": np.tile(np.array([0, 0.6, 1, 3], np.float32), 6),
        "top_p": np.tile(np.array([0.9, 1, 0.3], np.float32), 8),
        "top_k": np.tile(np.array([0, 40], np.int32), 12),
        "min_p": np.repeat(np.array([0, 0.05], np.float32), 12),
        "seed": rng.integers(0, 2**63, n).astype(np.uint64),
        "sequence_index": np.arange(n, dtype=np.int32),
        "position": np.arange(100, 100 + n, dtype=np.int32),
    }
    ids = _core.sample(**arguments, isa=SCALAR)  # type: ignore[arg-type]
    yield Case("sample", "sample", {**arguments, "ids": ids})
    chosen = rng.integers(0, 1003, n).astype(np.int32)
    ids, values, chosen_values, ranks = _core.logprobs(logits, chosen, 7, SCALAR)
    yield Case(
        "logprobs", "logprobs",
        {
            "logits": logits, "chosen": chosen, "k": 7, "ids": ids, "values": values,
            "chosen_values": chosen_values, "ranks": ranks,
        },
    )  # fmt: skip


def _weight_quantizers(rng: np.random.Generator) -> Iterator[Case]:
    weights = normal(rng, 37, 150)
    weights[5] *= np.float32(1e-7)
    for group_size in (32, 64, 128):
        fields: dict[str, Value] = {"x": weights, "rows": 37, "cols": 150, "group_size": group_size}
        for name in ("uniform", "nonuniform"):
            grid = np.array(GRIDS[name], np.int8)
            codes, scales = _core.quantize_int4(weights, group_size, grid, 1)
            yield Case(
                f"quantize int4 {name} / {group_size}", "quantize_weights",
                {**fields, "grid": grid, "codes": codes, "scales": scales},
            )  # fmt: skip
        codes8, scales = _core.quantize_int8(weights, group_size, 1)
        yield Case(
            f"quantize int8 / {group_size}", "quantize_weights",
            {**fields, "codes": codes8, "scales": scales},
        )  # fmt: skip
