"""The rows of `Model`; see `rows.py`."""

from __future__ import annotations

import numpy as np

from bindings.parts import (
    ANY_COUNT,
    BATCH_VALUES,
    BIG,
    BLOCK_TWICE,
    BLOCKS,
    DIM,
    FREE_STEP,
    HIDDEN,
    ISA,
    LAYERS,
    N_BLOCKS,
    NOT_FINITE,
    SMALL,
    THREADS,
    TOKENS,
    WIDTH,
    N,
    Row,
    blocks_to_write,
    f32,
    made,
    model_arguments,
    op,
    with_batch,
)
from builders import ints
from llama2q import _core

X = f32(N, DIM)
MODEL_ROWS: dict[str, Row] = {
    "Model.__init__": Row(
        _core.Model,
        model_arguments,
        values=[
            *(("n_blocks", n) for n in (0, -1, 2**31, 2**62)),
            *(("kv_dtype", name) for name in ("", "f64", "F32", "f32\0")),
            ("inv_freq", np.full(WIDTH // 2, np.nan)),
            ("inv_freq", np.full(WIDTH // 2, np.inf)),
            ("inv_freq", np.full(WIDTH // 2, -0.5)),
            ("inv_freq", np.full(WIDTH // 2, 1.5)),
            ("layers", []),
            ("layers", [{}, {}]),
            *ISA,
            *THREADS,
        ],
    ),
    "Model.step": Row(
        op("step"),
        with_batch(token_ids=lambda: ints([5, 6, 7, 8, 9]), output_rows=lambda: ints([2, 4])),
        values=[
            *TOKENS,
            *BATCH_VALUES,
            *(("output_rows", ints(rows)) for rows in ([4, 2], [2, 2], [-1, 2], [2, 5], [BIG])),
            *(("output", name) for name in ("", "logit", "logits\0", "x" * 10_000)),
        ],
        free={**FREE_STEP, "output_rows": (0,)},
    ),
    "Model.step_largest": Row(
        op("step_largest"),
        with_batch(
            token_ids=lambda: ints([5, 6, 7, 8, 9]), output_rows=lambda: ints([2, 4]), k=lambda: 3
        ),
        values=[
            *TOKENS,
            *BATCH_VALUES,
            *(("output_rows", ints(rows)) for rows in ([4, 2], [2, 2], [-1, 2], [2, 5], [BIG])),
            *(("k", k) for k in (0, -1, 65, 2**40)),
        ],
        free={**FREE_STEP, "output_rows": (0,)},
    ),
    "Model.copy_blocks": Row(
        op("copy_blocks"),
        made(source=ints([0, 1]), destination=ints([2, 3])),
        values=[
            *(("source", ints([0, b])) for b in (-1, N_BLOCKS, BIG, SMALL)),
            *(("destination", ints([2, b])) for b in (-1, N_BLOCKS, BIG, SMALL, 2, 0)),
        ],
    ),
    "Model.read_blocks": Row(op("read_blocks"), made(blocks=ints([0, 1])), BLOCKS, free=ANY_COUNT),
    "Model.write_blocks": Row(op("write_blocks"), blocks_to_write, [*BLOCKS, BLOCK_TWICE]),
    "Model.embed": Row(
        op("embed"), made(token_ids=ints([5, 6, 7, 8, 9])), TOKENS, free={"token_ids": (0,)}
    ),
    "Model.qkv": Row(
        op("qkv"),
        with_batch(layer=0, x=lambda: X.copy()),
        [*LAYERS, *BATCH_VALUES, *(("x", x) for x in NOT_FINITE)],
        free=FREE_STEP,
    ),
    "Model.attend": Row(
        op("attend"),
        with_batch(layer=1, q=lambda: X.copy()),
        [*LAYERS, *BATCH_VALUES],
        free=FREE_STEP,
    ),
    "Model.project": Row(
        op("project"),
        made(layer=0, attended=X, x=X),
        [*LAYERS, *(("attended", x) for x in NOT_FINITE)],
    ),
    "Model.gate_up": Row(
        op("gate_up"),
        made(layer=0, x=X),
        [*LAYERS, *(("x", x) for x in NOT_FINITE)],
        free={"x": (0,)},
    ),
    "Model.down": Row(
        op("down"),
        made(layer=0, hidden=f32(N, HIDDEN), x=X),
        [*LAYERS, ("hidden", np.full((N, HIDDEN), np.nan, np.float32))],
    ),
    "Model.output": Row(
        op("output"),
        made(x=X),
        [("output", ""), ("output", "both"), *(("x", x) for x in NOT_FINITE)],
        free={"x": (0,)},
    ),
}
