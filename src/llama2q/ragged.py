"""Spans of several sequences as the arrays of one ragged step."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q.kv_sequence import Sequence

_I32: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens of one sequence in a step.

    Parameters
    ----------
    sequence : Sequence
        Where they are appended.
    token_ids : sequence of int
        The tokens, at least one.
    n_rows : int
        How many of the last tokens' rows to return; 0 for none.
    """

    sequence: Sequence
    token_ids: AbstractSequence[int]
    n_rows: int = 1


def step_arrays(spans: AbstractSequence[Span]) -> tuple[_I32, _I32, _I32, _I32, _I32]:
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
