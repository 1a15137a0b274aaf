"""The matrix product: exact integer dots, one fma per group, K ascending and never split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import contract
from builders import NONUNIFORM, UNIFORM, core_matrix, random_matrix
from llama2q import _core
from llama2q.errors import InvalidArgumentError, NonFiniteError
from reference_weights import Dense, Quantized
from strategies import SEEDS, SPICES, assert_same_bits, assert_within, floats
from tolerances import of_one_op

ISAS = _core.isas()
KINDS = ("int4", "int4-uniform", "int8", "f32", "f16", "bf16")
QUANTIZED = ("int4", "int4-uniform", "int8")
GRID_OF = {"int4": NONUNIFORM, "int4-uniform": UNIFORM, "int8": None}


def unit_scales(rows: int, cols: int, group_size: int) -> np.ndarray:
    return np.ones((rows, -(-cols // group_size)), np.float16)


def expect(x: np.ndarray, matrix: Quantized | Dense) -> np.ndarray:
    if isinstance(matrix, Quantized):
        return contract.matmul_quantized(x, matrix)
    return contract.matmul_dense(x, matrix.values)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "cols", "n"),
    [(1, 32, 1), (16, 32, 2), (17, 33, 3), (15, 172, 5), (33, 172, 7), (64, 96, 17), (7, 1, 4)],
)
def test_contract(isa: str, kind: str, rows: int, cols: int, n: int) -> None:
    matrix = random_matrix(np.random.default_rng(rows), rows, cols, kind)
    x = floats(cols, (n, cols))
    assert_same_bits(_core.matmul(x, core_matrix(matrix), isa), expect(x, matrix))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_contract_at_every_group_size(isa: str, kind: str, group_size: int) -> None:
    matrix = random_matrix(np.random.default_rng(group_size), 40, 300, kind, group_size)
    x = floats(3, (6, 300), 5)
    assert_same_bits(_core.matmul(x, core_matrix(matrix), isa), expect(x, matrix))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_width_of_a_tile(isa: str, kind: str) -> None:
    """One tile, several, and the remainder of each width; an odd number of bands."""
    matrix = random_matrix(np.random.default_rng(3), 40, 300, kind)
    x = floats(8, (72, 300))
    whole = expect(x, matrix)
    for n in (*range(1, 41), *range(62, 73)):
        assert_same_bits(_core.matmul(x[:n], core_matrix(matrix), isa), whole[:n])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize(("cols", "n", "group_size"), [(4300, 70, 128), (96, 530, 32)])
def test_several_panels(isa: str, kind: str, cols: int, n: int, group_size: int) -> None:
    """Rows longer than a panel, and more tokens than pass over it at once."""
    matrix = random_matrix(np.random.default_rng(cols), 33, cols, kind, group_size)
    x = floats(cols, (n, cols))
    assert_same_bits(_core.matmul(x, core_matrix(matrix), isa), expect(x, matrix))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "cols"), [(17, 172), (48, 1024)])
def test_float64(kind: str, rows: int, cols: int) -> None:
    matrix = random_matrix(np.random.default_rng(cols), rows, cols, kind, 64)
    x = floats(rows, (9, cols))
    exact, limit = of_one_op(lambda ops: ops.matmul(x.astype(np.float64), matrix))
    assert_within(_core.matmul(x, core_matrix(matrix)), exact, limit)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("n", [3, 19])
def test_extreme_integers_are_exact(
    isa: str, kind: str, group_size: int, sign: int, n: int
) -> None:
    """Every product at its largest, where a 16-bit sum of two of them would saturate."""
    grid, rows, cols = GRID_OF[kind], 18, 4 * group_size
    ends = (-127, 127) if grid is None else (int(grid[0]), int(grid[-1]))
    for end in ends:
        values = np.full((rows, cols), end, np.int8)
        matrix = Quantized(values, unit_scales(rows, cols, group_size), group_size, grid)
        x = np.full((n, cols), 127.0 * sign, np.float32)
        y = _core.matmul(x, core_matrix(matrix), isa)
        assert (y == float(end * 127 * sign * cols)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("n", [5, 19])
def test_random_integers_are_exact(isa: str, kind: str, group_size: int, n: int) -> None:
    """With scales of 1 and amax of 127 the float result is the integer dot itself."""
    rng, grid = np.random.default_rng(5), GRID_OF[kind]
    rows, cols = 35, 3 * group_size
    values = random_matrix(rng, rows, cols, kind, group_size).values
    matrix = Quantized(values, unit_scales(rows, cols, group_size), group_size, grid)
    x = rng.integers(-127, 128, (n, cols)).astype(np.float32)
    x[:, ::group_size] = 127
    exact = x.astype(np.int64) @ values.astype(np.int64).T
    assert (np.abs(exact) < 2**24).all()
    assert (_core.matmul(x, core_matrix(matrix), isa) == exact).all()


@pytest.mark.parametrize("kind", QUANTIZED)
def test_each_element_has_its_place(kind: str) -> None:
    """A matrix of one nonzero element at a time, found by unit vectors of activations.

    Many at once, which pass over panels, and one alone.
    """
    grid, group_size = GRID_OF[kind], 32
    rows, cols = 17, 40
    zero = 0 if grid is None else int(grid[8])
    x = np.zeros((cols, cols), np.float32)
    np.fill_diagonal(x, 127)
    for row, column in [(0, 0), (0, 3), (0, 4), (1, 7), (3, 8), (15, 31), (16, 32), (16, 39)]:
        values = np.full((rows, cols), zero, np.int8)
        values[row, column] = 113 if kind == "int4" else 7
        matrix = Quantized(values, unit_scales(rows, cols, group_size), group_size, grid)
        y = _core.matmul(np.tile(x, (2, 1)), core_matrix(matrix))
        assert (y == 127.0 * np.tile(values.T, (2, 1))).all()
        for token in (0, column):
            y = _core.matmul(x[token : token + 1], core_matrix(matrix))
            assert (y == 127.0 * values.T[token]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["int4", "int8", "bf16"])
@pytest.mark.parametrize("cols", [11008, 28672])
def test_long_rows(isa: str, kind: str, cols: int) -> None:
    """K of Llama 2 7B and 70B, on all-extreme codes in half of the rows."""
    matrix = random_matrix(np.random.default_rng(cols), 17, cols, kind, 64)
    if isinstance(matrix, Quantized):
        matrix.values[::2] = -127
    x = floats(cols, (2, cols))
    assert_same_bits(_core.matmul(x, core_matrix(matrix), isa), expect(x, matrix))


@pytest.mark.parametrize("isa", ISAS[1:])
@settings(max_examples=60)
@given(seed=SEEDS, spice=SPICES, kind=st.sampled_from(KINDS), rows=st.integers(1, 70),
       cols=st.integers(1, 300), n=st.integers(1, 40), group_size=st.sampled_from([32, 64, 128]),
       exponent=st.integers(-140, 40))  # fmt: skip
def test_isas_agree(
    isa: str, seed: int, spice: int, kind: str, rows: int, cols: int, n: int, group_size: int,
    exponent: int,
) -> None:  # fmt: skip
    matrix = core_matrix(random_matrix(np.random.default_rng(seed), rows, cols, kind, group_size))
    x = floats(seed, (n, cols), spice, 2.0**exponent)
    assert_same_bits(_core.matmul(x, matrix, isa), _core.matmul(x, matrix, "scalar"))


@pytest.mark.parametrize("isa", ISAS)
def test_subnormal_and_negative_scales(isa: str) -> None:
    rng = np.random.default_rng(9)
    scales = np.array([2.0**-24, -(2.0**-24), 2.0**-15, -0.0, 65504.0, -65504.0], np.float16)
    for kind in QUANTIZED:
        values = random_matrix(rng, 20, 96, kind, 32).values
        matrix = Quantized(values, rng.choice(scales, (20, 3)), 32, GRID_OF[kind])
        x = floats(1, (4, 96), 10, 1e-20)
        assert_same_bits(_core.matmul(x, core_matrix(matrix), isa), expect(x, matrix))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_agree(kind: str) -> None:
    matrix = core_matrix(random_matrix(np.random.default_rng(1), 331, 172, kind))
    x = floats(2, (37, 172))
    one = _core.matmul(x, matrix, None, 1)
    for n_threads in (2, 3, 7):
        assert_same_bits(_core.matmul(x, matrix, None, n_threads), one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_does_not_see_its_neighbours(kind: str) -> None:
    matrix = core_matrix(random_matrix(np.random.default_rng(1), 50, 172, kind))
    x = floats(4, (130, 172))
    together = _core.matmul(x, matrix)
    for row in (0, 1, 63, 64, 127, 129):
        assert_same_bits(together[row : row + 1], _core.matmul(x[row : row + 1], matrix))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_non_finite_activation_raises(kind: str) -> None:
    x = np.ones((3, 64), np.float32)
    x[2, 40] = np.inf
    matrix = core_matrix(random_matrix(np.random.default_rng(1), 4, 64, kind))
    with pytest.raises(NonFiniteError):
        _core.matmul(x, matrix)


def test_shapes_are_checked() -> None:
    matrix = core_matrix(random_matrix(np.random.default_rng(1), 4, 64, "int8"))
    with pytest.raises(InvalidArgumentError):
        _core.matmul(np.ones((1, 63), np.float32), matrix)
    with pytest.raises(InvalidArgumentError):
        _core.matmul(np.ones(64, np.float32), matrix)


def test_no_tokens() -> None:
    matrix = core_matrix(random_matrix(np.random.default_rng(1), 4, 64, "int8"))
    assert _core.matmul(np.ones((0, 64), np.float32), matrix).shape == (0, 4)
