"""Every array that the core takes, in every way wrong: a named error each, and no harm done."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bindings.parts import Arguments
from bindings.rows import ROWS, SHAPE_FREE
from llama2q import _core
from llama2q.errors import (
    InvalidArgumentError,
    Llama2qError,
    NonFiniteError,
    NonFiniteWeightError,
    QuantizationError,
    UnsupportedIsaError,
)

STUB = Path(_core.__file__).with_name("_core.pyi")
ARRAY_NAMES = ("NDArray", "_F32", "_I32", "_F16", "_U64", "_F64", "_I8", "_U8")
NAMED = (
    InvalidArgumentError,
    NonFiniteError,
    NonFiniteWeightError,
    QuantizationError,
    UnsupportedIsaError,
)


def stub_functions() -> Iterator[tuple[str, list[str]]]:
    """Yield each function and method of the stub, and the arguments of it that are arrays."""
    path = STUB if STUB.exists() else Path(__file__).parents[2] / "src" / "llama2q" / "_core.pyi"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for function in functions:
            if isinstance(function, ast.FunctionDef):
                arguments = [*function.args.args, *function.args.kwonlyargs]
                arrays = [
                    argument.arg
                    for argument in arguments
                    if argument.annotation is not None
                    and any(name in ast.unparse(argument.annotation) for name in ARRAY_NAMES)
                    and argument.arg != "layers"
                ]
                yield prefix + function.name, arrays


STUB_FUNCTIONS = dict(stub_functions())
PRESENT = {name: row for name, row in ROWS.items() if name in STUB_FUNCTIONS}
ARRAYS = [(name, argument) for name in PRESENT for argument in STUB_FUNCTIONS[name]]


def core_functions() -> Iterator[str]:
    """Yield what the extension itself has."""
    for name in dir(_core):
        value = getattr(_core, name)
        if name.startswith("_"):
            continue
        if isinstance(value, type):
            for method in value.__dict__:
                if not method.startswith("_") and callable(getattr(value, method)):
                    yield f"{name}.{method}"
        elif callable(value):
            yield name


def test_every_function_has_a_row() -> None:
    """A new function that takes arrays needs a row in rows.py; the stub must know all functions."""
    assert set(core_functions()) <= set(STUB_FUNCTIONS)
    taking = {name for name, arrays in STUB_FUNCTIONS.items() if arrays}
    assert taking - set(ROWS) == set()


def call(name: str, arguments: Arguments) -> Any:
    return PRESENT[name].call(**arguments)


def refused(name: str, arguments: Arguments, what: str) -> Llama2qError:
    """Expect a named error, then that the function still works."""
    with pytest.raises(NAMED) as caught:
        call(name, arguments)
    assert str(caught.value), what
    assert len(str(caught.value)) < 12_000
    return caught.value  # type: ignore[return-value]


@pytest.mark.parametrize("name", PRESENT)
def test_good_arguments(name: str) -> None:
    call(name, PRESENT[name].good())


def of_shape(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return np.resize(array, shape).astype(array.dtype)


def wrong_arrays(array: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield arrays that no function may take in place of this one."""
    dtypes = ["f8", "f4", "f2", "i8", "u8", "i4", "u4", "i2", "u2", "i1", "u1", "?", "c8", "M8[s]"]
    for dtype in dtypes:
        if np.dtype(dtype) != array.dtype:
            yield f"dtype {dtype}", np.zeros(array.shape, dtype)
    for label, dtype in (("object", object), ("text", "U4"), ("bytes", "S4"), ("void", "V4")):
        yield label, np.zeros(array.shape, dtype)
    yield "record", np.zeros(array.shape, [("a", array.dtype)])
    if array.itemsize > 1:
        yield "other byte order", array.astype(array.dtype.newbyteorder(">"))
        room = np.zeros(array.nbytes + 8, np.uint8)
        shifted = room[1 : 1 + array.nbytes].view(array.dtype).reshape(array.shape)
        shifted[...] = array
        assert not shifted.flags.aligned
        yield "not aligned", shifted
    yield "every second", np.repeat(array, 2, axis=-1)[..., ::2]
    yield "backwards", array[..., ::-1].copy()[..., ::-1]
    if array.ndim > 1:
        yield "column order", np.asfortranarray(array)
    yield "broadcast", np.broadcast_to(array.reshape(-1)[:1], (*array.shape[:-1], 2 * 3 * 7))


def is_contiguous(array: NDArray[Any]) -> bool:
    return bool(array.flags.c_contiguous)


@pytest.mark.parametrize(("name", "argument"), ARRAYS)
def test_dtype_and_layout(name: str, argument: str) -> None:
    arguments = PRESENT[name].good()
    array = arguments[argument]
    dense = {"float32", "float16", "uint16"}
    for what, wrong in wrong_arrays(array):
        takes_dense = str(array.dtype) in dense and argument in ("weights", "values")
        if (
            takes_dense
            and str(wrong.dtype) in dense
            and is_contiguous(wrong)
            and "aligned" not in what
        ):
            continue  # another dtype that these take
        if what not in ("not aligned",) and wrong.dtype == array.dtype and is_contiguous(wrong):
            continue  # a size of 1 makes any order contiguous
        refused(name, {**PRESENT[name].good(), argument: wrong}, what)
    call(name, PRESENT[name].good())


@pytest.mark.parametrize(("name", "argument"), ARRAYS)
def test_dimensions(name: str, argument: str) -> None:
    row = PRESENT[name]
    array = row.good()[argument]
    if name not in SHAPE_FREE:
        for wrong in (array[None], array[..., None], array.reshape(-1), np.array(array.flat[0])):
            if wrong.ndim != array.ndim:
                refused(name, {**row.good(), argument: wrong}, f"{wrong.ndim} dimensions")
        refused(name, {**row.good(), argument: array.reshape((1,) * 30 + (-1,))}, "31 dimensions")
    for axis, size in enumerate(array.shape):
        if axis in row.free.get(argument, ()) or (name in SHAPE_FREE and len(row.good()) == 1):
            continue
        for other in {0, 1, size - 1, size + 1, 2 * size, size + 64} - {size}:
            shape = (*array.shape[:axis], other, *array.shape[axis + 1 :])
            refused(name, {**row.good(), argument: of_shape(array, shape)}, f"shape {shape}")


@pytest.mark.parametrize(("name", "argument"), ARRAYS)
def test_huge_empty_arrays(name: str, argument: str) -> None:
    """Shapes whose sizes are huge, though they hold nothing or one element over and over."""
    row = PRESENT[name]
    array = row.good()[argument]
    shapes = [(2**40,) * (array.ndim - 1) + (0,), (0,) + (2**20,) * (array.ndim - 1)]
    for shape in shapes:
        if array.ndim > 1:
            try:
                wrong = np.empty(shape, array.dtype)
            except ValueError:  # NumPy itself refuses
                continue
            outcome(name, {**row.good(), argument: wrong})
    long = np.broadcast_to(array.reshape(-1)[:1], (*array.shape[:-1], 2**40))
    refused(name, {**row.good(), argument: long}, "a stride of 0")


def outcome(name: str, arguments: Arguments) -> None:
    """Call: a result or a named error, nothing else."""
    try:
        call(name, arguments)
    except NAMED:
        return


@pytest.mark.parametrize(("name", "argument"), ARRAYS)
def test_read_only_and_subclasses(name: str, argument: str) -> None:
    row = PRESENT[name]
    arguments = row.good()
    arguments[argument].flags.writeable = False
    if argument in row.in_place:
        refused(name, arguments, "read-only")
    else:
        before = arguments[argument].tobytes()
        call(name, arguments)
        assert arguments[argument].tobytes() == before


@pytest.mark.parametrize(("name", "argument"), ARRAYS)
@pytest.mark.parametrize(
    "value", [None, 3, 0.5, "x", b"xxxx", [1, 2], (1,), {}, object(), memoryview(b"abcd"), float]
)
def test_no_array_at_all(name: str, argument: str, value: object) -> None:
    arguments = {**PRESENT[name].good(), argument: value}
    if value is None and argument in PRESENT[name].optional:
        call(name, arguments)
        return
    with pytest.raises((TypeError, InvalidArgumentError)):
        call(name, arguments)


VALUES = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{number}")
    for name, row in PRESENT.items()
    for number, (argument, value) in enumerate(row.values)
]


@pytest.mark.parametrize(("name", "argument", "value"), VALUES)
def test_values(name: str, argument: str, value: object) -> None:
    arguments = PRESENT[name].good()
    arguments[argument] = value
    refused(name, arguments, argument)
    call(name, PRESENT[name].good())


SCALARS = [
    (name, argument)
    for name, row in PRESENT.items()
    for argument, value in row.good().items()
    if isinstance(value, int | float | str)
]


@pytest.mark.parametrize(("name", "argument"), SCALARS)
@pytest.mark.parametrize("value", [None, [], {}, object(), 2**64, -(2**63) - 1, 10**30, "\ud800"])
def test_scalars_of_another_kind(name: str, argument: str, value: object) -> None:
    optional = value is None and argument == "n_threads"
    if optional or (type(value) is int and isinstance(PRESENT[name].good()[argument], float)):
        outcome(name, {**PRESENT[name].good(), argument: value})
        return
    with pytest.raises((TypeError, OverflowError, UnicodeEncodeError, *NAMED)):
        call(name, {**PRESENT[name].good(), argument: value})


CONFIG_VALUES = (None, "48", 0, -1, 2**31, 2**63, 2**64, 0.5, [], True, 10**30)


def model_refused(arguments: Arguments) -> None:
    with pytest.raises((TypeError, *NAMED)):
        _core.Model(**arguments)


@pytest.mark.parametrize("value", CONFIG_VALUES)
@pytest.mark.parametrize(
    "key", ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size"]
)
def test_config_of_a_model(key: str, value: object) -> None:
    arguments = PRESENT["Model.__init__"].good()
    model_refused({**arguments, "config": {**arguments["config"], key: value}})


@pytest.mark.parametrize("value", [None, "1", -1.0, np.nan, np.inf, 1e31, [], 10**400])
def test_norm_eps_of_a_model(value: object) -> None:
    arguments = PRESENT["Model.__init__"].good()
    model_refused({**arguments, "config": {**arguments["config"], "norm_eps": value}})


def test_parts_of_a_layer() -> None:
    """Each part absent, of another kind, and of another layer's shape."""
    arguments = PRESENT["Model.__init__"].good()
    first = arguments["layers"][0]
    model_refused({**arguments, "config": {}})
    for wrong in (None, 5, [], "x", [first]):
        model_refused({**arguments, "layers": [wrong, first]})
    for key in first:
        others = [None, 5, [1.0], object(), np.float32(1), *wrong_parts(first[key])]
        others.append(first["w2"] if key != "w2" else first["wq"])
        model_refused({**arguments, "layers": [{k: v for k, v in first.items() if k != key}] * 2})
        for other in others:
            model_refused({**arguments, "layers": [first, {**first, key: other}]})
    for key in ("norm", "output", "tok_embeddings"):
        model_refused({**arguments, key: first["w2"]})


def wrong_parts(part: Any) -> Iterator[Any]:
    if isinstance(part, np.ndarray):
        for _, wrong in wrong_arrays(part):
            yield wrong
        yield part[:-1].copy()


def test_the_model_still_computes() -> None:
    """After all of these: the same bits as a fresh model."""
    row = PRESENT["Model.step"]
    before = call("Model.step", row.good())
    for argument, value in row.values:
        refused("Model.step", {**row.good(), argument: value}, argument)
    np.testing.assert_array_equal(call("Model.step", row.good()), before)
