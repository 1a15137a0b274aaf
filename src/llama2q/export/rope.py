"""Positions that another program would not rotate as this one does."""

from __future__ import annotations

from llama2q.errors import ExportError
from llama2q.format.reader import L2qFile


def require_plain_rope(file: L2qFile) -> None:
    """Refuse a model whose positions are scaled: exports do not say so yet."""
    scaling = file.metadata.rope.scaling
    if scaling != "none":
        raise ExportError(
            f"{file.path.name} was trained with rope scaling {scaling!r}, which exports do not "
            "write yet; without it the other program would compute something else"
        )
