"""Reading all data of a file: hashes, codes, scales, padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

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
    from llama2q.format.reader import L2qFile, TensorInfo

_CHUNK_BYTES = 8 * 1024 * 1024


Faults: TypeAlias = Iterator[CorruptDataError]


def find_faults(file: L2qFile, progress: Callable[[int, int, str], None] | None = None) -> Faults:
    """See `L2qFile.faults`."""
    done, total = 0, sum(info.nbytes for info in file.tensors.values())
    matrices = {
        spec.name: matrix
        for matrix in map(file.matrix, matrix_names(file.config))
        for spec in matrix.tensors()
    }
    for info in file.tensors.values():
        if progress is not None:
            progress(done, total, info.name)
        yield from _check_data(file, info, is_matrix=info.name in matrices)
        if info.name in matrices and not matrices[info.name].is_table:
            yield from _check_padding(file, matrices[info.name], info.name)
        done += info.nbytes
    for pad in file.pads:
        if file.view(pad).any():
            yield CorruptDataError(f"{pad.name} holds a byte that is not zero")
    rope = file.metadata.rope
    expected = inv_freq(file.config.rope_theta, file.config.head_dim, rope)
    if not np.array_equal(file.array(INV_FREQ), expected):
        yield CorruptDataError(
            f"{INV_FREQ} is not theta^(-2i / {file.config.head_dim}) for theta "
            f"{file.config.rope_theta} with rope scaling {rope.scaling}"
        )
    if progress is not None:
        progress(total, total, "")


def _check_data(file: L2qFile, info: TensorInfo, *, is_matrix: bool) -> Faults:
    """Hash a tensor and check its values, in one pass over the data."""
    digest = hashlib.sha256()
    forbidden: CorruptDataError | None = None
    floats = info.dtype in ("F16", "F32", "F64", "BF16")
    for start, chunk in _slices(file.array(info.name)):
        digest.update(chunk.reshape(-1).view(np.uint8).data)
        if forbidden is not None:
            continue
        if floats:
            forbidden = _not_finite(chunk, info.name, start)
        elif is_matrix and info.dtype == "I8":
            forbidden = _beyond_codes(chunk, info.name, start)
    if digest.hexdigest() != file.metadata.sha256[info.name]:
        yield CorruptDataError(
            f"{info.name} hashes to {digest.hexdigest()[:16]}..., expected "
            f"{file.metadata.sha256[info.name][:16]}...: the file is damaged; copy or convert it "
            "again"
        )
    if forbidden is not None:
        yield forbidden


def _slices(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first index, slice along axis 0) of a few MiB each."""
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _not_finite(array: NDArray[Any], name: str, start: int) -> CorruptDataError | None:
    bad = nonfinite(array)
    if not bad.any():
        return None
    return CorruptDataError(f"{name}{_first(bad, start)} is NaN or infinite")


def _beyond_codes(codes: NDArray[Any], name: str, start: int) -> CorruptDataError | None:
    bad = codes == -128
    if not bad.any():
        return None
    return CorruptDataError(f"{name}{_first(bad, start)} is -128; codes end at -127")


def _first(bad: NDArray[np.bool_], start: int) -> list[int]:
    """Return the indices of the first True; axis 0 counts from `start`."""
    place = np.argwhere(bad)[0]
    place[0] += start
    return [int(index) for index in place]


def _check_padding(file: L2qFile, matrix: MatrixSpec, name: str) -> Faults:
    """Find codes, scales and values in padded rows and columns that are not zero."""
    n_sources = len(matrix.sources)
    tail_rows = matrix.rows % BAND_ROWS
    array = file.array(name)
    if tail_rows:
        # The last band of each source; a line of codes is 16 rows of 4 bytes.
        last = array[-n_sources:].reshape(n_sources, array.shape[1], BAND_ROWS, -1)
        if last[:, :, tail_rows:].view(_unsigned(array)).any():
            yield CorruptDataError(f"{name}: padded rows are not all zero")
    if name.endswith(".codes"):
        for start, chunk in _slices(array):
            fault = _padded_columns(chunk, matrix, name, start)
            if fault is not None:
                yield fault
                return


def _padded_columns(
    codes: NDArray[Any], matrix: MatrixSpec, name: str, start: int
) -> CorruptDataError | None:
    per_line = matrix.stored.kind.columns_per_line
    first_line = matrix.cols // per_line  # the first line that may hold padding
    if first_line == codes.shape[1]:
        return None
    lines = codes[:, first_line:]
    if matrix.stored.type == "int4":
        flat = int4.unpack(lines)
    else:
        flat = from_bands(lines.reshape(*lines.shape[:2], BAND_ROWS, 4)).view(np.uint8)
    padding = flat[:, matrix.cols - first_line * per_line :]
    if not padding.any():
        return None
    band = start + int(np.argwhere(padding)[0][0]) // BAND_ROWS
    return CorruptDataError(f"{name}, band {band}: padded columns hold a code that is not zero")


def _unsigned(array: NDArray[Any]) -> str:
    return f"u{array.dtype.itemsize}"
