"""Faults in the Arm units, which the emulated replay of golden files must notice."""

from __future__ import annotations

from teeth.mutant import fault

ARM_FAULTS = (
    fault(
        "tokens beyond the fourth take the first ones' activations",
        "csrc/isa/neon.cpp",
        "w.q[i], a[t / 4], t % 4",
        "w.q[i], a[0], t % 4",
        "golden/test_arm.py::test_kernels[neoverse-n1]",
        isa="neon",
    ),
    fault(
        "halves of a row swapped for smmla",
        "csrc/isa/neon_i8mm.cpp",
        "vzip2q_s32(a, b)",
        "vzip2q_s32(b, a)",
        "golden/test_arm.py::test_kernels[max]",
        isa="neon_i8mm",
    ),
)
