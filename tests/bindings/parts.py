"""Parts of the rows: sound arguments of the core's functions, and values that must be refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builders import TINY, core_model, ints, random_weights
from llama2q import _core

Arguments = dict[str, Any]
N_BLOCKS = 4
WIDTH = TINY.head_dim
BIG, SMALL = 2**31 - 1, -(2**31)


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one function.

    Attributes
    ----------
    call : callable
        Takes the arguments by name.
    good : callable
        Makes sound arguments, fresh each time.
    values : sequence
        (argument, wrong value); an argument may be a dict of several.
    free : dict
        Argument -> axes whose size no other argument fixes.
    in_place : tuple
        Arguments that are written, so that a read-only array is refused.
    optional : tuple
        Arrays that may be None.
    """

    call: Callable[..., Any]
    good: Callable[[], Arguments]
    values: Sequence[tuple[str, Any]] = ()
    free: dict[str, tuple[int, ...]] = field(default_factory=dict)
    in_place: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def f32(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(0, 1, shape).astype(np.float32)


def u8(*shape: int) -> NDArray[np.uint8]:
    return np.zeros(shape, np.uint8)


def i8(*shape: int) -> NDArray[np.int8]:
    return np.zeros(shape, np.int8)


def f16(*shape: int) -> NDArray[np.float16]:
    return np.zeros(shape, np.float16)


_MODEL: list[_core.Model] = []


def model() -> _core.Model:
    """Return one small model for all rows."""
    if not _MODEL:
        _MODEL.append(core_model(random_weights(TINY, "int8"), n_blocks=N_BLOCKS))
    return _MODEL[0]


def model_arguments() -> Arguments:
    """Build the parts of `Model(...)` as `builders.core_model` does."""
    caught: Arguments = {}
    real = _core.Model

    def catch(**arguments: Any) -> None:
        caught.update(arguments)

    _core.Model = catch  # type: ignore[misc, assignment]
    try:
        core_model(random_weights(TINY, "int8"), n_blocks=N_BLOCKS)
    finally:
        _core.Model = real  # type: ignore[misc]
    return caught


def batch() -> Arguments:
    """Two sequences of 3 and 2 tokens."""
    return {
        "positions": ints([0, 1, 2, 0, 1]),
        "sequence_of_token": ints([0, 0, 0, 1, 1]),
        "block_tables": np.array([[0, -1], [2, -1]], np.int32),
    }


BATCH_VALUES: list[tuple[str, Any]] = [
    *(("positions", ints([0, 1, 2, *last])) for last in ((1, 0), (0, 0), (-1, 0), (0, BIG))),
    *(("positions", ints([a, a + 1, a + 2, 0, 1])) for a in (-1, SMALL, 64, 127, 128, BIG - 2)),
    *(("sequence_of_token", ints([0, 0, 0, s, s])) for s in (2, -1, BIG, SMALL)),
    ("sequence_of_token", ints([0, 1, 0, 1, 1])),
    *(
        ("block_tables", np.array([[b, -1], [2, -1]], np.int32))
        for b in (-1, -2, N_BLOCKS, BIG, SMALL)
    ),
    ("block_tables", np.array([[2, -1], [2, -1]], np.int32)),
    ("block_tables", np.array([[0, 0], [2, -1]], np.int32)),
    ("block_tables", np.zeros((0, 0), np.int32)),
    ("block_tables", np.zeros((2, 0), np.int32)),
    ("block_tables", np.zeros((0, 2), np.int32)),
]
LAYERS = [("layer", value) for value in (-1, TINY.n_layers, 2**62, -(2**63))]
TOKENS = [("token_ids", ints([5, 6, token, 8, 9])) for token in (-1, TINY.vocab_size, BIG, SMALL)]
N, DIM, HIDDEN = 5, TINY.dim, TINY.hidden_dim
NOT_FINITE = [np.full((N, DIM), value, np.float32) for value in (np.nan, np.inf, -np.inf)]
ISA = [("isa", "none-such"), ("isa", "\0"), ("isa", "x" * 10_000)]
THREADS = [("n_threads", count) for count in (0, -1, 100_000, BIG)]
FREE_STEP = {"block_tables": (1,)}


def with_batch(**more: Any) -> Callable[[], Arguments]:
    return lambda: {
        **{name: value() if callable(value) else value for name, value in more.items()},
        **batch(),
    }


def made(**values: Any) -> Callable[[], Arguments]:
    """Return a maker of arguments; arrays are copied each time."""
    return lambda: {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def op(name: str) -> Callable[..., Any]:
    return lambda **arguments: getattr(model(), name)(**arguments)


BLOCKS = [("blocks", ints([0, b])) for b in (-1, N_BLOCKS, BIG, SMALL)]
BLOCK_TWICE = ("blocks", ints([0, 0]))
ANY_COUNT = {"blocks": (0,)}


def blocks_to_write() -> Arguments:
    """Return arguments of `Model.write_blocks`."""
    return {"blocks": ints([0, 1]), "data": u8(2, model().block_bytes)}
