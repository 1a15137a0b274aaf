"""What an export tells its caller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did.

    Attributes
    ----------
    path : Path
        The file or folder.
    output_bytes : int
        Its size.
    seconds : float
        Wall time.
    notes : tuple of str
        What a user should know about the other form.
    """

    path: Path
    output_bytes: int
    seconds: float
    notes: tuple[str, ...]
