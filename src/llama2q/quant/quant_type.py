"""What a quant type is: a name and the shapes of the arrays that hold a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llama2q.errors import InvalidArgumentError

BAND_ROWS = 16
"""Rows of a matrix that lie together: one band."""
LINE_BYTES = 64
"""Bytes of codes that one step of a kernel reads: 16 rows times 4 bytes."""
GROUP_SIZES = (32, 64, 128)
"""Columns that may share one scale."""

NUMPY_DTYPES: dict[str, np.dtype[np.generic]] = {
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
"""NumPy's dtype for each safetensors dtype of a `.l2q` file; bfloat16 is held as uint16."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One stored array: the suffix of its name, its safetensors dtype and its shape."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes, as an exact Python integer."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class QuantType:
    """Description of a quant type.

    Attributes
    ----------
    name : str
        Its name in the recipe.
    dtype : str
        safetensors dtype of the codes (quantized) or values (dense).
    columns_per_line : int
        Columns of 16 rows that a 64-byte line of codes holds; 0 for dense types.
    group_sizes : tuple of int
        Columns that may share one scale; empty for dense types.
    has_grid : bool
        Whether codes are looked up in a named grid.
    has_rows : bool
        Whether there is a row-major form, for the embedding table.
    """

    name: str
    dtype: str
    columns_per_line: int
    group_sizes: tuple[int, ...]
    has_grid: bool
    has_rows: bool

    @property
    def is_dense(self) -> bool:
        """Whether values are stored as they are, without codes and scales."""
        return not self.group_sizes

    def check_group_size(self, group_size: int | None) -> int:
        """Return `group_size` (0 for a dense type) or raise InvalidArgumentError."""
        if self.is_dense:
            if group_size is not None:
                raise InvalidArgumentError(f"{self.name} has no groups; group_size must be None")
            return 0
        if type(group_size) is not int or group_size not in self.group_sizes:
            allowed = ", ".join(map(str, self.group_sizes))
            raise InvalidArgumentError(f"group_size is {group_size!r}; expected one of {allowed}")
        return group_size

    def band_arrays(self, rows: int, cols: int, group_size: int | None) -> tuple[ArraySpec, ...]:
        """Arrays that hold a matrix (rows, cols) in bands of 16 rows."""
        group = self.check_group_size(group_size)
        n_bands = -(-rows // BAND_ROWS)
        if self.is_dense:
            return (ArraySpec("", self.dtype, (n_bands, cols, BAND_ROWS)),)
        n_groups = -(-cols // group)
        n_lines = n_groups * group // self.columns_per_line
        return (
            ArraySpec(".codes", self.dtype, (n_bands, n_lines, LINE_BYTES)),
            ArraySpec(".scales", "F16", (n_bands, n_groups, BAND_ROWS)),
        )

    def row_arrays(self, rows: int, cols: int, group_size: int | None) -> tuple[ArraySpec, ...]:
        """Arrays that hold a table (rows, cols) row by row, without padding."""
        if not self.has_rows:
            raise InvalidArgumentError(f"{self.name} has no row-major form; use int8")
        group = self.check_group_size(group_size)
        if self.is_dense:
            return (ArraySpec("", self.dtype, (rows, cols)),)
        return (
            ArraySpec(".codes", self.dtype, (rows, cols)),
            ArraySpec(".scales", "F16", (rows, -(-cols // group))),
        )
