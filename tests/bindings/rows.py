"""One row per function of the core that takes arrays: sound arguments, and wrong values of them.

Shapes are those of the docstrings in `_core.pyi`. A row's `values` are arguments that are right in
type and shape and must be refused for what they hold.
"""

from __future__ import annotations

import numpy as np

from bindings.model_rows import MODEL_ROWS
from bindings.parts import BIG, ISA, SMALL, THREADS, Row, f16, f32, i8, made, u8
from builders import NONUNIFORM, ints
from llama2q import _core

ROWS: dict[str, Row] = MODEL_ROWS | {
    "Matrix.int4": Row(
        _core.Matrix.int4,
        made(codes=u8(2, 8, 64), scales=f16(2, 2, 16), grid=NONUNIFORM, rows=20, cols=40),
        values=[
            *(("rows", n) for n in (0, -1, 16, 33, 2**31, 2**62, -(2**63))),
            *(("cols", n) for n in (0, -1, 32, 65, 2**31, 2**62, -(2**63))),
            ("grid", NONUNIFORM[::-1].copy()),
            ("grid", np.zeros(16, np.int8)),
            ("grid", np.array([-128, *NONUNIFORM[1:]], np.int8)),
            ("codes", u8(2, 7, 64)),
            ("codes", u8(2, 0, 64)),
            ("scales", f16(2, 3, 16)),
            ("scales", f16(2, 0, 16)),
        ],
        free={"scales": (1,)},
    ),
    "Matrix.int8": Row(
        _core.Matrix.int8,
        made(codes=i8(2, 16, 64), scales=f16(2, 2, 16), rows=20, cols=40),
        values=[
            *(("rows", n) for n in (0, -1, 16, 33, 2**31, 2**62)),
            *(("cols", n) for n in (0, -1, 32, 65, 2**31, 2**62)),
            ("codes", i8(2, 15, 64)),
            ("scales", f16(2, 5, 16)),
        ],
        free={"scales": (1,)},
    ),
    "Matrix.dense": Row(
        _core.Matrix.dense,
        made(values=f32(2, 40, 16), rows=20, cols=40),
        values=[
            *(("rows", n) for n in (0, -1, 16, 33, 2**31, 2**62)),
            *(("cols", n) for n in (0, -1, 39, 41, 2**31, 2**62)),
        ],
    ),
    "Embedding.int8": Row(
        _core.Embedding.int8,
        made(codes=i8(7, 100), scales=f16(7, 4)),
        values=[
            ("codes", i8(0, 100)),
            ("codes", i8(7, 0)),
            ("codes", i8(7, 1000)),
            ("scales", f16(7, 0)),
            ("scales", f16(7, 3)),
            ("scales", f16(7, 5)),
        ],
        free={"codes": (1,), "scales": (1,)},
    ),
    "Embedding.dense": Row(
        _core.Embedding.dense,
        made(values=f32(7, 100)),
        values=[("values", f32(0, 100)), ("values", f32(7, 0))],
        free={"values": (0, 1)},
    ),
    "sample": Row(
        _core.sample,
        made(
            logits=f32(3, 11),
            temperature=np.ones(3, np.float32),
            top_p=np.full(3, 0.9, np.float32),
            top_k=ints([0, 1, 5]),
            min_p=np.zeros(3, np.float32),
            seed=np.arange(3, dtype=np.uint64),
            sequence_index=ints([0, 1, 2]),
            position=ints([9, 9, 9]),
        ),
        values=[
            *(("logits", np.full((3, 11), x, np.float32)) for x in (np.nan, np.inf, -np.inf)),
            ("logits", f32(3, 0)),
            *(("temperature", np.array([1, 1, x], np.float32)) for x in (-1, np.nan, np.inf)),
            *(("top_p", np.array([1, 1, x], np.float32)) for x in (-1, 0, 1.5, np.nan)),
            *(("top_k", ints([0, 0, x])) for x in (-1, SMALL)),
            *(("min_p", np.array([0, 0, x], np.float32)) for x in (-1, 1.5, np.nan)),
            *ISA,
        ],
        free={"logits": (1,)},
    ),
    "edit_logits": Row(
        lambda **arguments: _core.edit_logits(**arguments),  # type: ignore[attr-defined]
        made(
            logits=f32(11),
            bias_ids=ints([1, 2]),
            biases=np.ones(2, np.float32),
            seen_ids=ints([3, 4, 5]),
            counts=ints([1, 0, 2]),
            repetition=1.1,
            frequency=0.1,
            presence=0.1,
            banned_ids=ints([7]),
        ),
        values=[
            *(("bias_ids", ints([1, x])) for x in (-1, 11, BIG, SMALL)),
            *(("seen_ids", ints([1, 2, x])) for x in (-1, 11, BIG, SMALL)),
            *(("banned_ids", ints([x])) for x in (-1, 11, BIG, SMALL)),
        ],
        free={"logits": (0,), "banned_ids": (0,)},
        in_place=("logits",),
    ),
    "logprobs": Row(
        lambda **arguments: _core.logprobs(**arguments),  # type: ignore[attr-defined]
        made(logits=f32(3, 11), chosen=ints([0, 5, 10]), k=4),
        values=[
            *(("chosen", ints([0, 0, x])) for x in (-1, 11, BIG, SMALL)),
            *(("k", x) for x in (-1, 12, 2**62)),
            ("logits", f32(3, 0)),
            ("logits", np.full((3, 11), np.nan, np.float32)),
            *ISA,
        ],
        free={"logits": (1,)},
    ),
    "quantize_int4": Row(
        _core.quantize_int4,
        made(weights=f32(20, 40), group_size=32, grid=NONUNIFORM),
        values=[
            *(("group_size", n) for n in (0, -1, 1, 48, 256, 2**31, 2**62)),
            ("grid", NONUNIFORM[::-1].copy()),
            ("grid", np.arange(16, dtype=np.int8)),
            ("grid", np.zeros(16, np.int8)),
            *(("weights", np.full((20, 40), x, np.float32)) for x in (np.nan, np.inf, 3e38)),
            ("weights", f32(0, 40)),
            ("weights", f32(20, 0)),
            *THREADS,
        ],
        free={"weights": (0, 1)},
    ),
    "search_int4": Row(
        _core.search_int4,
        made(weights=f32(20, 40), group_size=32, grid=NONUNIFORM, importance=f32(40)),
        values=[
            *(("group_size", n) for n in (0, -1, 1, 48, 256, 2**31, 2**62)),
            ("grid", NONUNIFORM[::-1].copy()),
            *(("weights", np.full((20, 40), x, np.float32)) for x in (np.nan, np.inf, 3e38)),
            ("weights", f32(0, 40)),
            *ISA,
            *THREADS,
        ],
        free={"weights": (0,)},
        optional=("importance",),
    ),
    "feed_back_int4": Row(
        _core.feed_back_int4,
        lambda: {
            "weights": f32(20, 40),
            "group_size": 32,
            "grid": NONUNIFORM,
            "factors": np.eye(40, dtype=np.float32),
            "importance": np.ones(40, np.float32),
            "correction": f32(40, 20),
        },
        values=[
            *(("group_size", n) for n in (0, -1, 1, 48, 256, 2**31, 2**62)),
            ("grid", NONUNIFORM[::-1].copy()),
            *(("weights", np.full((20, 40), x, np.float32)) for x in (np.nan, np.inf, 3e38)),
            *ISA,
            *THREADS,
        ],
        optional=("correction",),
    ),
    "mirror_lower": Row(_core.mirror_lower, made(h=f32(7, 7)), values=[*THREADS], in_place=("h",)),
    "quantize_int8": Row(
        _core.quantize_int8,
        made(weights=f32(20, 40), group_size=32),
        values=[
            *(("group_size", n) for n in (0, -1, 48, 2**62)),
            *(("weights", np.full((20, 40), x, np.float32)) for x in (np.nan, np.inf, 3e38)),
            ("weights", f32(0, 40)),
            *THREADS,
        ],
        free={"weights": (0, 1)},
    ),
    "quantize_rows_int8": Row(
        _core.quantize_rows_int8,
        made(weights=f32(20, 40), group_size=32),
        values=[
            *(("group_size", n) for n in (0, -1, 48, 2**62)),
            *(("weights", np.full((20, 40), x, np.float32)) for x in (np.nan, np.inf, 3e38)),
            ("weights", f32(20, 0)),
            *THREADS,
        ],
        free={"weights": (0, 1)},
    ),
    "pack_dense": Row(
        _core.pack_dense,
        made(weights=f32(20, 40)),
        values=[
            *(("weights", np.full((20, 40), x, np.float32)) for x in (np.nan, np.inf)),
            ("weights", f32(0, 0)),
            *THREADS,
        ],
        free={"weights": (0, 1)},
    ),
    "add_product": Row(
        _core.add_product,
        made(c=f32(5, 7), a=f32(3, 5), b=f32(3, 7)),
        values=[*ISA, *THREADS],
        in_place=("c",),
    ),
    "add_gram": Row(
        _core.add_gram,
        made(h=f32(7, 7), x=f32(3, 7)),
        values=[*ISA, *THREADS],
        free={"x": (0,)},
        in_place=("h",),
    ),
    "ldl": Row(_core.ldl, made(h=f32(7, 7)), values=[*ISA, *THREADS], in_place=("h",)),
    "matmul": Row(
        _core.matmul,
        lambda: {"x": f32(3, 40), "matrix": matrix()},
        values=[
            *(("x", np.full((3, 40), x, np.float32)) for x in (np.nan, np.inf)),
            *ISA,
            *THREADS,
        ],
        free={"x": (0,)},
    ),
    "quantize_activations": Row(
        _core.quantize_activations,
        made(x=f32(3, 40), group_size=32),
        values=[
            *(("group_size", n) for n in (0, -1, 48, 2**62)),
            *(("x", np.full((3, 40), x, np.float32)) for x in (np.nan, np.inf)),
            *ISA,
        ],
        free={"x": (0, 1)},
    ),
    "rms_norm": Row(
        _core.rms_norm,
        made(x=f32(3, 40), weight=f32(40), eps=1e-5),
        values=[*(("eps", x) for x in (-1.0, np.nan, np.inf, 1e31)), *ISA],
        free={"x": (0,)},
    ),
    "rope": Row(
        _core.rope,
        made(
            x=f32(3, 2, 8),
            positions=ints([0, 5, 9]),
            inv_freq=np.full(4, 0.5),
            attention_factor=1.0,
        ),
        values=[
            *(("attention_factor", x) for x in (0.0, -1.0, 1001.0, np.nan, np.inf)),
            *(("positions", ints([0, 0, x])) for x in (-1, SMALL)),
            *(("inv_freq", np.full(4, x)) for x in (np.nan, np.inf, -1.0, 1.5, 1e300)),
            *ISA,
        ],
        free={"x": (1,)},
    ),
    "swiglu": Row(
        _core.swiglu,
        made(gate=f32(3, 40), up=f32(3, 40)),
        values=[("up", f32(3, 41)), ("up", f32(120)), *ISA],
    ),
    "exp": Row(_core.exp, made(x=f32(3, 40)), values=ISA, free={"x": (0, 1)}),
    "attention": Row(
        _core.attention,
        made(q=f32(3, 4, 8), k=f32(70, 2, 8), v=f32(70, 2, 8), positions=ints([0, 64, 69])),
        values=[
            *(("positions", ints([0, 0, x])) for x in (-1, 70, BIG, SMALL)),
            *(("kv_dtype", name) for name in ("", "f64", "x" * 10_000)),
            *(("k", np.full((70, 2, 8), x, np.float32)) for x in (np.nan, np.inf)),
            *(("v", np.full((70, 2, 8), x, np.float32)) for x in (np.nan, np.inf)),
            *ISA,
            *THREADS,
        ],
        free={"q": (1,)},
    ),
}


def matrix() -> _core.Matrix:
    weights = f32(20, 40)
    return _core.Matrix.int8(*_core.quantize_int8(weights, 32), 20, 40)


SHAPE_FREE = ("swiglu", "exp")
"""Functions that take any number of dimensions."""
