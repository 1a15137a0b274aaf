"""A step that returns the largest logits alone, against whole rows."""

from __future__ import annotations

import numpy as np
import pytest

from builders import TINY, core_model, ints, random_weights
from llama2q.errors import InvalidArgumentError

BATCH = (
    ints([5, 6, 7, 8, 9, 3, 4]),
    ints([0, 1, 2, 3, 4, 0, 1]),
    ints([0, 0, 0, 0, 0, 1, 1]),
    np.array([[0], [1]], np.int32),
    ints([1, 4, 6]),
)


@pytest.mark.parametrize("k", [1, 2, 20])
@pytest.mark.parametrize("equal", [False, True])
def test_largest(k: int, equal: bool) -> None:
    """Descending; of equal logits, here rows of the output matrix that stand twice, the lower id
    comes first."""
    weights = random_weights(TINY, "f32", seed=2)
    if equal:
        output = weights.matrices["output.weight"].values
        output[1::2] = output[: 2 * (len(output) // 2) : 2]
    logits = core_model(weights).step(*BATCH)
    values, ids = core_model(weights).step_largest(*BATCH, k)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, order, 1))
    assert (values.dtype, ids.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("k", [0, 65, TINY.vocab_size + 1])
def test_refuses(k: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"k is {k}; expected 1 to "):
        core_model(random_weights(TINY, "f32")).step_largest(*BATCH, k)


def test_layers_that_visit_need_a_device() -> None:
    with pytest.raises(InvalidArgumentError, match="no layers of the host beside those"):
        core_model(random_weights(TINY, "f32")).set_layer_stream(40)
