"""The named grids that int4 codes are looked up in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import InvalidArgumentError

GRIDS: dict[str, tuple[int, ...]] = {
    "uniform": tuple(range(-8, 8)),
    # The values published for llama.cpp's IQ4_NL.
    "nonuniform": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
}
"""Sixteen ascending integers in [-127, 127] per name; entry 0 has the largest magnitude."""


def grid_values(name: str) -> NDArray[np.int8]:
    """Return a grid by name.

    Parameters
    ----------
    name : str
        A key of `GRIDS`.

    Returns
    -------
    int8, (16,)
        Its values, ascending.
    """
    if name not in GRIDS:
        raise InvalidArgumentError(f"grid is {name!r}; expected one of {', '.join(GRIDS)}")
    return np.array(GRIDS[name], dtype=np.int8)


def midpoints(grid: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the 15 values halfway between neighbours of `grid`: float32, (15,), exact."""
    wide = grid.astype(np.float32)
    return (wide[:-1] + wide[1:]) * np.float32(0.5)
