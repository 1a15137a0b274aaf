"""Spans of several sequences as the arrays of one ragged step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llama2q.engine import Span

_I32: TypeAlias = NDArray[np.int32]


def step_arrays(spans: Sequence[Span]) -> tuple[_I32, _I32, _I32, _I32, _I32]:
    """Lay spans out as the ragged step wants them.

    Returns
    -------
    token_ids, positions, sequence_of_token : int32, (n,)
    block_tables : int32, (n_sequences, max_blocks)
        -1 where a sequence has no block.
    output_rows : int32, (m,)
    """
    lengths = [len(span.token_ids) for span in spans]
    ends = np.cumsum(lengths)
    token_ids = np.concatenate([np.asarray(span.token_ids, np.int32) for span in spans])
    starts = np.array([span.sequence.n_tokens for span in spans])
    within = np.arange(len(token_ids)) - np.repeat(ends - lengths, lengths)
    positions = (np.repeat(starts, lengths) + within).astype(np.int32)
    sequence_of_token = np.repeat(np.arange(len(spans), dtype=np.int32), lengths)
    tables = [span.sequence.blocks for span in spans]
    block_tables = np.full((len(spans), max(map(len, tables))), -1, np.int32)
    for row, table in zip(block_tables, tables, strict=True):
        row[: len(table)] = table
    rows = [
        np.arange(end - span.n_rows, end, dtype=np.int32)
        for span, end in zip(spans, ends, strict=True)
    ]
    return token_ids, positions, sequence_of_token, block_tables, np.concatenate(rows)
