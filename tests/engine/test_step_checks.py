"""What `step` and `copy_blocks` refuse, and that a refused call changes nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from builders import TINY, core_model, ints, random_weights, run
from llama2q import _core
from llama2q.errors import CancelledError, InvalidArgumentError
from reference_weights import Shape
from strategies import assert_same_bits

N_BLOCKS = 4


@pytest.fixture(scope="module")
def model() -> _core.Model:
    return core_model(random_weights(TINY, "int8"), n_blocks=N_BLOCKS)


def arguments() -> dict[str, Any]:
    """Two sequences of 3 and 2 tokens, the second in the middle of its block."""
    return {
        "token_ids": ints([5, 6, 7, 8, 9]),
        "positions": ints([0, 1, 2, 0, 1]),
        "sequence_of_token": ints([0, 0, 0, 1, 1]),
        "block_tables": np.array([[0, -1], [2, -1]], np.int32),
        "output_rows": ints([2, 4]),
    }


ARRAYS = tuple(arguments())


def refuse(model: _core.Model, **changes: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        model.step(**{**arguments(), **changes})


def test_arguments_are_good(model: _core.Model) -> None:
    assert model.step(**arguments()).shape == (2, TINY.vocab_size)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.float32])
def test_dtype(model: _core.Model, name: str, dtype: type) -> None:
    refuse(model, **{name: arguments()[name].astype(dtype)})


@pytest.mark.parametrize("name", ARRAYS)
def test_ndim(model: _core.Model, name: str) -> None:
    refuse(model, **{name: arguments()[name][None]})
    refuse(model, **{name: np.array(arguments()[name].flat[0])})


@pytest.mark.parametrize("name", ARRAYS)
def test_contiguity(model: _core.Model, name: str) -> None:
    array = arguments()[name]
    spread = np.repeat(array, 2, axis=-1)[..., ::2]
    assert (spread == array).all()
    assert not spread.flags.c_contiguous
    refuse(model, **{name: spread})


def test_not_an_array(model: _core.Model) -> None:
    for value in ([5, 6, 7, 8, 9], None, 5):
        with pytest.raises(TypeError):
            model.step(**{**arguments(), "token_ids": value})


@pytest.mark.parametrize("name", ["token_ids", "positions", "sequence_of_token"])
def test_lengths_must_agree(model: _core.Model, name: str) -> None:
    refuse(model, **{name: arguments()[name][:-1].copy()})


@pytest.mark.parametrize("token", [-1, TINY.vocab_size, 2**31 - 1, -(2**31)])
def test_token_ids_out_of_range(model: _core.Model, token: int) -> None:
    refuse(model, token_ids=ints([5, 6, token, 8, 9]))


@pytest.mark.parametrize("block", [-1, -2, N_BLOCKS, 2**31 - 1, -(2**31)])
def test_block_ids_out_of_range(model: _core.Model, block: int) -> None:
    """-1 means no block, which a sequence that writes there must have."""
    refuse(model, block_tables=np.array([[0, -1], [block, -1]], np.int32))


def test_missing_block_before_the_tokens(model: _core.Model) -> None:
    """Blocks that are only read must exist, too."""
    refuse(
        model,
        token_ids=ints([5]),
        positions=ints([70]),
        sequence_of_token=ints([0]),
        block_tables=np.array([[-1, 1]], np.int32),
        output_rows=ints([0]),
    )


def test_position_beyond_the_table(model: _core.Model) -> None:
    refuse(model, positions=ints([127, 128, 129, 0, 1]))
    refuse(model, positions=ints([62, 63, 64, 0, 1]))


@pytest.mark.parametrize(
    "positions",
    [[0, 2, 3, 0, 1], [2, 1, 0, 0, 1], [0, 0, 1, 0, 1], [-1, 0, 1, 0, 1], [0, 1, 2, 1, 0]],
)
def test_positions_must_be_consecutive(model: _core.Model, positions: list[int]) -> None:
    refuse(model, positions=ints(positions))


@pytest.mark.parametrize("owner", [[0, 0, 0, 2, 2], [-1, 0, 0, 1, 1], [0, 0, 0, 1, 2]])
def test_sequence_out_of_range(model: _core.Model, owner: list[int]) -> None:
    refuse(model, sequence_of_token=ints(owner))


def test_tokens_of_a_sequence_must_lie_together(model: _core.Model) -> None:
    refuse(model, sequence_of_token=ints([0, 1, 0, 1, 0]), positions=ints([0, 0, 1, 1, 2]))


def test_written_block_in_two_tables(model: _core.Model) -> None:
    refuse(model, block_tables=np.array([[0, -1], [0, -1]], np.int32))
    refuse(model, block_tables=np.array([[0, -1], [2, 0]], np.int32))


def test_written_block_twice_in_one_table(model: _core.Model) -> None:
    refuse(
        model,
        positions=ints([62, 63, 64, 0, 1]),
        block_tables=np.array([[0, 0], [2, -1]], np.int32),
    )


def test_read_block_may_be_shared(model: _core.Model) -> None:
    """A full block that nobody writes is what prefix sharing is made of."""
    rows = model.step(
        **{
            **arguments(),
            "positions": ints([64, 65, 66, 64, 65]),
            "block_tables": np.array([[0, 1], [0, 2]], np.int32),
        }
    )
    assert rows.shape == (2, TINY.vocab_size)


@pytest.mark.parametrize("row", [-1, 5, 2**31 - 1])
def test_output_rows_out_of_range(model: _core.Model, row: int) -> None:
    refuse(model, output_rows=ints([0, row]))


@pytest.mark.parametrize("rows", [[4, 2], [2, 2]])
def test_output_rows_must_ascend(model: _core.Model, rows: list[int]) -> None:
    refuse(model, output_rows=ints(rows))


def test_output_name(model: _core.Model) -> None:
    refuse(model, output="probabilities")


def test_no_output_rows(model: _core.Model) -> None:
    rows = model.step(**{**arguments(), "output_rows": ints([])})
    assert rows.shape == (0, TINY.vocab_size)


def test_no_tokens(model: _core.Model) -> None:
    nothing = ints([])
    rows = model.step(nothing, nothing, nothing, np.zeros((0, 0), np.int32), nothing)
    assert rows.shape == (0, TINY.vocab_size)


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (ints([0]), ints([N_BLOCKS])),
        (ints([-1]), ints([1])),
        (ints([0, 1]), ints([2])),
        (ints([0, 1]), ints([2, 2])),
        (ints([0, 1]), ints([1, 2])),
        (ints([0]).astype(np.int64), ints([1])),
        (ints([0])[None], ints([1])[None]),
    ],
    ids=["beyond", "negative", "lengths", "twice", "chained", "dtype", "ndim"],
)
def test_copy_blocks_refuses(model: _core.Model, source: Any, destination: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        model.copy_blocks(source, destination)


def test_copy_blocks_copies_k_and_v() -> None:
    for kv_dtype in ("f32", "f16", "int8"):
        model = core_model(random_weights(TINY, "int8"), kv_dtype, n_blocks=N_BLOCKS)
        ids = list(range(70))
        whole = run(model, ids, table=[0, 1])
        model.copy_blocks(ints([0, 1]), ints([3, 2]))
        run(model, ids[::-1], table=[0, 1])
        again = run(model, ids[66:], start=66, table=[3, 2])
        assert_same_bits(again, whole[66:])


# --- cancelling -------------------------------------------------------------------------------


def test_cancel_before_the_step(model: _core.Model) -> None:
    flag = _core.CancelFlag()
    assert not flag.is_set()
    flag.set()
    assert flag.is_set()
    with pytest.raises(CancelledError):
        model.step(**arguments(), cancel=flag)


@pytest.fixture
def slow_model() -> _core.Model:
    """Seconds for a prompt of 4,000 tokens, in passes of 512 over one layer."""
    shape = Shape(dim=16, hidden_dim=24, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32)
    return core_model(random_weights(shape, "int8"), n_blocks=63, n_threads=1, isa="scalar")


def test_cancel_from_another_thread(slow_model: _core.Model) -> None:
    flag = _core.CancelFlag()
    n = 4000
    timer = threading.Timer(0.05, flag.set)
    timer.start()
    with pytest.raises(CancelledError):
        slow_model.step(
            ints([1] * n), ints(range(n)), ints([0] * n), ints(range(63))[None], ints([n - 1]),
            cancel=flag,
        )  # fmt: skip
    timer.join()
    assert run(slow_model, [1, 2, 3]).shape == (3, 32)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no setitimer()")
def test_signals_are_seen_during_a_step(slow_model: _core.Model) -> None:
    """What a handler raises (Ctrl-C does) ends the step."""

    def handler(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(slow_model, [1] * 4000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert run(slow_model, [1, 2, 3]).shape == (3, 32)


def test_unset_flag_changes_nothing(model: _core.Model) -> None:
    plain = model.step(**arguments())
    assert_same_bits(model.step(**arguments(), cancel=_core.CancelFlag()), plain)


def test_model_is_usable_after_a_refusal(model: _core.Model) -> None:
    expected = model.step(**arguments())
    refusals: list[Callable[[], None]] = [
        lambda: refuse(model, token_ids=ints([5, 6, -7, 8, 9])),
        lambda: refuse(model, output_rows=ints([99])),
    ]
    for refusal in refusals:
        refusal()
        assert_same_bits(model.step(**arguments()), expected)
