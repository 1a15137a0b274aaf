"""What an injected fault is."""

from __future__ import annotations

from dataclasses import dataclass

from teeth.workbench import Edit


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    isa: str | None = None
    """The instruction set that the CPU must have for the fault to show."""


def fault(name: str, path: str, old: str, new: str, *tests: str, isa: str | None = None) -> Mutant:
    """Build a fault of one edit."""
    return Mutant(name, (Edit(path, old, new),), tests, isa)
