"""`export_mlx`: a `.l2q` file's model as a folder for MLX, which computes on a Mac's GPU.

The folder has Hugging Face's names and row order, as mlx-lm's models expect them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.converter.hf_tensors import hf_name
from llama2q.errors import ExportError
from llama2q.export.licence import licence_text
from llama2q.export.mlx_arrays import (
    INT4_ZERO,
    INT8_ZERO,
    biases,
    half_split,
    pack_int4,
    pack_int8,
)
from llama2q.export.mlx_config import config_json, tokenizer_config_json
from llama2q.export.output_file import Progress, StreamedTensor, write_file
from llama2q.export.output_folder import new_folder
from llama2q.export.pieces import read_pieces
from llama2q.export.report import ExportReport
from llama2q.export.rope import require_plain_rope
from llama2q.export.rows import code_rows, dense_rows, release, scale_rows
from llama2q.export.safetensors_header import Entry, build_header
from llama2q.format.layout import INV_FREQ, TOKENIZER, MatrixSpec, TensorSpec, model_parts
from llama2q.format.reader import L2qFile
from llama2q.quant.bits import widen

_WEIGHTS = "model.safetensors"
_LICENCES = "LICENSES.txt"
_FILES = (_WEIGHTS, "config.json", "tokenizer_config.json", TOKENIZER, _LICENCES)
_ROTATED = (".attention.wq.weight", ".attention.wk.weight")
"""Ends of the names of the matrices whose rows are rotated."""

Rows = Iterator[NDArray[Any]]
Planned = tuple[Entry, StreamedTensor]


def export_mlx(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the model of a `.l2q` file as a folder for MLX; its weights are the same numbers.

    int4 of the uniform grid and int8 become MLX's affine quantization in 4 and 8 bits, of the same
    group size, with scales and biases in float16. Dense weights stay as they are.

    Parameters
    ----------
    src : str or Path
        The `.l2q` file.
    dst : str or Path
        The folder to write.
    overwrite : bool
        Whether a folder that holds an export is replaced.
    progress : callable, optional
        Called as progress(done_bytes, total_bytes, tensor_name).

    Returns
    -------
    ExportReport

    Raises
    ------
    FormatError
        `src` is not a sound `.l2q` file.
    ExportError
        MLX cannot hold the model: its codes are those of the nonuniform grid, its rows are not
        whole groups, or a bias is beyond float16.
    TokenizerError
        The tokenizer is damaged.
    OutputExistsError, DiskSpaceError, OutputError, InvalidArgumentError
        See `llama2q.errors`. No error leaves anything under the final name.
    """
    start = time.perf_counter()
    path = Path(dst)
    with L2qFile(src) as file:
        require_plain_rope(file)
        tokenizer = file.array(TOKENIZER).tobytes()
        pieces = read_pieces(tokenizer)
        plan, notes = _plan(file)
        header = build_header((entry for entry, _ in plan), {"format": "mlx"})
        texts = {
            "config.json": _json(config_json(file)),
            "tokenizer_config.json": _json(tokenizer_config_json(file, pieces)),
            TOKENIZER: tokenizer,
        }
        if (licences := licence_text(file.metadata)) is not None:
            texts[_LICENCES] = licences.encode()
        with new_folder(path, _FILES, overwrite=overwrite) as folder:
            tensors = [tensor for _, tensor in plan]
            size = write_file(folder / _WEIGHTS, header, tensors, progress=progress)
            for name, text in texts.items():
                size += write_file(folder / name, text, [])
    return ExportReport(path, size, time.perf_counter() - start, notes)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _plan(file: L2qFile) -> tuple[list[Planned], tuple[str, ...]]:
    """Return all tensors in the order of the `.l2q` file, and what a user should know."""
    plan: list[Planned] = []
    wide = 0
    for part in model_parts(file.config, file.recipe, file.tensors[TOKENIZER].nbytes):
        if isinstance(part, MatrixSpec):
            for source in part.sources:
                plan += _matrix(file, part, source)
        elif part.name not in (INV_FREQ, TOKENIZER):
            entry, tensor = _norm(file, part)
            wide += entry.dtype == "F32" and _dtype_of_norms(file) != "F32"
            plan.append((entry, tensor))
    notes: tuple[str, ...] = ()
    if wide:
        notes = (
            f"{wide} norms hold numbers that {_dtype_of_norms(file)} cannot and stay F32: MLX "
            "computes in float32 behind them, which is slower",
        )
    return plan, notes


def _dtype_of_norms(file: L2qFile) -> str:
    """Return the dtype that keeps MLX's activations in the type of the weights."""
    kind = file.recipe.tensors[next(iter(file.recipe.tensors))].kind
    return kind.dtype if kind.is_dense else "F16"


def _norm(file: L2qFile, part: TensorSpec) -> Planned:
    """Plan a norm: in the type of the activations if that holds its numbers, else in F32."""
    values = file.array(part.name)
    dtype = _dtype_of_norms(file)
    narrow = _narrowed(values, dtype)
    if not np.array_equal(widen(narrow), values):
        dtype, narrow = "F32", values
    entry = Entry(hf_name(part.name), dtype, part.shape)
    return entry, StreamedTensor(entry.name, entry.n_bytes, lambda: iter([narrow]))


def _narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(np.float16 if dtype == "F16" else np.float32)


def _matrix(file: L2qFile, matrix: MatrixSpec, source: str) -> Iterator[Planned]:
    """Plan the tensors of a matrix: packed codes, scales and biases, or dense values."""
    stored, rows, cols = matrix.stored, matrix.rows, matrix.cols
    name = hf_name(source)
    if stored.group_size is None:
        entry = Entry(name, stored.kind.dtype, (rows, cols))
        yield _planned(file, matrix, source, entry, partial(_dense, file, matrix, source))
        return
    where = f"{file.path.name}: {source}"
    if stored.grid not in (None, "uniform"):
        raise ExportError(
            f"{where} has the {stored.grid} grid; MLX's codes stand for evenly spaced numbers. "
            'Convert the checkpoint with --grid uniform (grid="uniform")'
        )
    if cols % stored.group_size:
        raise ExportError(
            f"{where} has rows of {cols} elements; MLX's are whole groups, here of "
            f"{stored.group_size}. Convert the checkpoint with another --group-size or with "
            '--quant none (quant="none")'
        )
    codes_per_word = 8 if stored.type == "int4" else 4
    module = name.removesuffix("weight")
    by_group = (rows, cols // stored.group_size)
    for entry, chunks in (
        (Entry(name, "U32", (rows, cols // codes_per_word)), _packed),
        (Entry(f"{module}scales", "F16", by_group), _scales),
        (Entry(f"{module}biases", "F16", by_group), _biases),
    ):
        yield _planned(file, matrix, source, entry, partial(chunks, file, matrix, source))


def _planned(
    file: L2qFile, matrix: MatrixSpec, source: str, entry: Entry, rows: Callable[[int], Rows]
) -> Planned:
    head_dim = file.config.head_dim
    is_rotated = source.endswith(_ROTATED)

    def chunks() -> Rows:
        for chunk in rows(head_dim if is_rotated else 1):
            yield half_split(chunk, head_dim) if is_rotated else chunk
        release(file, matrix)

    return entry, StreamedTensor(entry.name, entry.n_bytes, chunks)


def _dense(file: L2qFile, matrix: MatrixSpec, source: str, together: int) -> Rows:
    return dense_rows(file, matrix, source, together)


def _packed(file: L2qFile, matrix: MatrixSpec, source: str, together: int) -> Rows:
    pack = pack_int4 if matrix.stored.type == "int4" else pack_int8
    return map(pack, code_rows(file, matrix, source, together))


def _scales(file: L2qFile, matrix: MatrixSpec, source: str, together: int) -> Rows:
    return scale_rows(file, matrix, source, together)


def _biases(file: L2qFile, matrix: MatrixSpec, source: str, together: int) -> Rows:
    zero = INT4_ZERO if matrix.stored.type == "int4" else INT8_ZERO
    for scales in scale_rows(file, matrix, source, together):
        try:
            yield biases(scales, zero)
        except ExportError as error:
            raise ExportError(f"{file.path.name}: {source}: {error}") from error
