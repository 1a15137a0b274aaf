"""The definition of every quant type, in NumPy: what the bytes of a file mean.

`int4`, `int8` and `dense` encode a weight matrix into the arrays that a `.l2q` file stores and
decode them again. They use only + - * / rint and comparisons in float32, so they give the same
bytes on every machine; the C++ quantizers must agree bit for bit. `FORMAT.md` has the bit order.
"""

from llama2q.quant.dense import BF16, DENSE_TYPES, F16, F32
from llama2q.quant.grids import GRIDS, grid_values
from llama2q.quant.int4 import INT4
from llama2q.quant.int8 import INT8
from llama2q.quant.quant_type import BAND_ROWS, GROUP_SIZES, LINE_BYTES, ArraySpec, QuantType

QUANT_TYPES: dict[str, QuantType] = {kind.name: kind for kind in (INT4, INT8, *DENSE_TYPES)}
"""Every quant type of format version 1, by name."""

__all__ = [
    "BAND_ROWS",
    "BF16",
    "DENSE_TYPES",
    "F16",
    "F32",
    "GRIDS",
    "GROUP_SIZES",
    "INT4",
    "INT8",
    "LINE_BYTES",
    "QUANT_TYPES",
    "ArraySpec",
    "QuantType",
    "grid_values",
]
