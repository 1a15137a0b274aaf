"""GGML's tensor types: their blocks, and how a `.l2q` file can hold them without a change.

Source: ggml-org/ggml, `ggml.h` (numbers) and `ggml-common.h` (blocks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llama2q.format.recipe import TensorType

GROUP_SIZE = 32
"""Weights per scale of every type that can be kept."""


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A type of tensors.

    Attributes
    ----------
    number : int
        In the file.
    name : str
    block : int
        Consecutive weights of a row that are stored together.
    block_bytes : int
    kept : tuple of TensorType
        Types of a `.l2q` file that can hold exactly these values, the closest first.
    """

    number: int
    name: str
    block: int
    block_bytes: int
    kept: tuple[TensorType, ...] = ()

    @property
    def bits(self) -> float:
        """Bits of a weight, its share of the scales included."""
        return 8 * self.block_bytes / self.block

    @property
    def dense(self) -> str | None:
        """Name of plain numbers ("f32", "f16" or "bf16"); None where there are codes."""
        first = self.kept[0] if self.kept else None
        return first.type if first is not None and first.kind.is_dense else None


_INT8 = TensorType("int8", GROUP_SIZE)
_F32 = TensorType("f32")


def _int4(grid: str) -> tuple[TensorType, ...]:
    """int4, or int8 whose codes are the values of the grid."""
    return TensorType("int4", GROUP_SIZE, grid), _INT8


TYPES: Mapping[int, GgmlType] = {
    kind.number: kind
    for kind in (
        GgmlType(0, "F32", 1, 4, (_F32,)),
        GgmlType(1, "F16", 1, 2, (TensorType("f16"), _F32)),
        GgmlType(2, "Q4_0", 32, 18, _int4("uniform")),
        GgmlType(3, "Q4_1", 32, 20),
        GgmlType(6, "Q5_0", 32, 22),
        GgmlType(7, "Q5_1", 32, 24),
        GgmlType(8, "Q8_0", 32, 34, (_INT8,)),
        GgmlType(10, "Q2_K", 256, 84),
        GgmlType(11, "Q3_K", 256, 110),
        GgmlType(12, "Q4_K", 256, 144),
        GgmlType(13, "Q5_K", 256, 176),
        GgmlType(14, "Q6_K", 256, 210),
        GgmlType(16, "IQ2_XXS", 256, 66),
        GgmlType(17, "IQ2_XS", 256, 74),
        GgmlType(18, "IQ3_XXS", 256, 98),
        GgmlType(19, "IQ1_S", 256, 50),
        GgmlType(20, "IQ4_NL", 32, 18, _int4("nonuniform")),
        GgmlType(21, "IQ3_S", 256, 110),
        GgmlType(22, "IQ2_S", 256, 82),
        GgmlType(23, "IQ4_XS", 256, 136),
        GgmlType(29, "IQ1_M", 256, 56),
        GgmlType(30, "BF16", 1, 2, (TensorType("bf16"), _F32)),
        GgmlType(34, "TQ1_0", 256, 54),
        GgmlType(35, "TQ2_0", 256, 66),
        GgmlType(39, "MXFP4", 32, 17),
    )
}
"""By number: every type of weights that a llama file may hold."""
