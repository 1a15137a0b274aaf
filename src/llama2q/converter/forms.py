"""The forms that a checkpoint may have, told apart by what its folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from llama2q.converter.checkpoint import MetaCheckpoint, named_os_errors
from llama2q.converter.checkpoint_folder import holds_shards
from llama2q.converter.hf_checkpoint import HfCheckpoint
from llama2q.converter.hf_folder import is_hugging_face
from llama2q.converter.hub_cache import snapshot_in

Checkpoint: TypeAlias = MetaCheckpoint | HfCheckpoint


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint of any form; Meta's comes first where a folder holds two.

    Parameters
    ----------
    folder : Path
        The folder with the weights, or a repository's folder in Hugging Face's cache.

    Raises
    ------
    CheckpointError, TokenizerError
        See `MetaCheckpoint.open` and `HfCheckpoint.open`.
    """
    with named_os_errors(folder):
        folder = snapshot_in(folder)
        other = folder.is_dir() and not holds_shards(folder) and is_hugging_face(folder)
    return HfCheckpoint.open(folder) if other else MetaCheckpoint.open(folder)
