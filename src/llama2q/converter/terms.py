"""Whether a model is Meta's, and so under Meta's terms."""

from __future__ import annotations

from llama2q.format.metadata import Metadata

TERMS = (
    "Llama 2 is Meta's: the Llama 2 Community License and Acceptable Use Policy apply to these "
    "weights and to the file made from them (https://ai.meta.com/llama/license/)"
)

_META_SHAPES = {(4096, 32, 32, 32000), (5120, 40, 40, 32000), (8192, 80, 64, 32000)}
"""(dim, n_layers, n_heads, vocab_size) of 7B, 13B and 70B."""


def terms_of(metadata: Metadata) -> str | None:
    """Return a reminder of Meta's terms if the model is, by all that shows, one of Meta's.

    That is: a Llama 2 licence lay beside it, its folder is named as a chat model, or it has the
    shape of a published model.
    """
    config = metadata.config
    shape = (config.dim, config.n_layers, config.n_heads, config.vocab_size)
    is_metas = (
        metadata.attribution is not None
        or metadata.template == "llama2-chat"
        or shape in _META_SHAPES
    )
    return TERMS if is_metas else None
