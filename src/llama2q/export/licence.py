"""The terms under which a model may be used, for the other forms."""

from __future__ import annotations

from llama2q.format.metadata import Metadata


def licence_text(metadata: Metadata) -> str | None:
    """Return the licence texts that the file holds, each under its name, and Meta's attribution."""
    if not metadata.licences:
        return None
    texts = [f"==> {name} <==\n{text}" for name, text in sorted(metadata.licences.items())]
    return "\n\n".join([*texts, metadata.attribution] if metadata.attribution else texts)
