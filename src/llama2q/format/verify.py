"""Reading all data of a file: hashes, codes, scales, padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import CorruptDataError
from llama2q.format.layout import INV_FREQ, MatrixSpec, matrix_names
from llama2q.format.rope import inv_freq
from llama2q.quant import int4
from llama2q.quant.bands import from_bands
from llama2q.quant.bits import nonfinite
from llama2q.quant.quant_type import BAND_ROWS

if TYPE_CHECKING:
    from llama2q.format.reader import L2qFile

_CHUNK_BYTES = 8 * 1024 * 1024


def verify(file: L2qFile, progress: Callable[[int, int, str], None] | None = None) -> None:
    """See `L2qFile.verify`."""
    done, total = 0, sum(info.nbytes for info in file.tensors.values())
    for info in file.tensors.values():
        if progress is not None:
            progress(done, total, info.name)
        _check_hash(file, info.name)
        done += info.nbytes
        if info.dtype in ("F32", "F64") and len(info.shape) == 1:
            _check_finite(file.array(info.name), info.name, 0)
    for pad in file.pads:
        if file.view(pad).any():
            raise CorruptDataError(f"{pad.name} holds a byte that is not zero")
    for name in matrix_names(file.config):
        _check_matrix(file, file.matrix(name))
    expected = inv_freq(file.config.rope_theta, file.config.head_dim)
    if not np.array_equal(file.array(INV_FREQ), expected):
        raise CorruptDataError(
            f"{INV_FREQ} is not theta^(-2i / {file.config.head_dim}) for theta "
            f"{file.config.rope_theta}"
        )
    if progress is not None:
        progress(total, total, "")


def _check_hash(file: L2qFile, name: str) -> None:
    found = hashlib.sha256()
    for _, chunk in _slices(file.array(name)):
        found.update(chunk.reshape(-1).view(np.uint8).data)
    if found.hexdigest() != file.metadata.sha256[name]:
        raise CorruptDataError(
            f"{name} hashes to {found.hexdigest()[:16]}..., expected "
            f"{file.metadata.sha256[name][:16]}...: the file is damaged; copy or convert it again"
        )


def _slices(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first index, slice along axis 0) of a few MiB each."""
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _check_finite(array: NDArray[Any], name: str, start: int) -> None:
    bad = nonfinite(array)
    if bad.any():
        place = np.argwhere(bad)[0]
        place[0] += start
        raise CorruptDataError(f"{name}{place.tolist()} is NaN or infinite")


def _check_matrix(file: L2qFile, matrix: MatrixSpec) -> None:
    specs = matrix.tensors()
    for spec in specs:
        for start, chunk in _slices(file.array(spec.name)):
            if spec.dtype in ("F16", "F32", "BF16"):
                _check_finite(chunk, spec.name, start)
            elif spec.dtype == "I8" and (chunk == -128).any():
                place = np.argwhere(chunk == -128)[0]
                place[0] += start
                raise CorruptDataError(f"{spec.name}{place.tolist()} is -128; codes end at -127")
    if not matrix.is_table:
        _check_padding(file, matrix)


def _check_padding(file: L2qFile, matrix: MatrixSpec) -> None:
    """Require zero codes, scales and values in padded rows and columns."""
    n_sources = len(matrix.sources)
    tail_rows = matrix.rows % BAND_ROWS
    for spec in matrix.tensors():
        array = file.array(spec.name)
        if tail_rows:
            # The last band of each source; a line of codes is 16 rows of 4 bytes.
            last = array[-n_sources:].reshape(n_sources, array.shape[1], BAND_ROWS, -1)
            if last[:, :, tail_rows:].view(_unsigned(array)).any():
                raise CorruptDataError(f"{spec.name}: padded rows are not all zero")
        if spec.name.endswith(".codes"):
            for start, chunk in _slices(array):
                _check_columns(chunk, matrix, spec.name, start)


def _check_columns(codes: NDArray[Any], matrix: MatrixSpec, name: str, start: int) -> None:
    per_line = matrix.stored.kind.columns_per_line
    first_line = matrix.cols // per_line  # the first line that may hold padding
    if first_line == codes.shape[1]:
        return
    lines = codes[:, first_line:]
    if matrix.stored.type == "int4":
        flat = int4.unpack(lines)
    else:
        flat = from_bands(lines.reshape(*lines.shape[:2], BAND_ROWS, 4)).view(np.uint8)
    padding = flat[:, matrix.cols - first_line * per_line :]
    if padding.any():
        band = start + int(np.argwhere(padding)[0][0]) // BAND_ROWS
        raise CorruptDataError(f"{name}, band {band}: padded columns hold a code that is not zero")


def _unsigned(array: NDArray[Any]) -> str:
    return f"u{array.dtype.itemsize}"
