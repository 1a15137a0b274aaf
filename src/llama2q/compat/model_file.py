"""From a checkpoint folder, as Meta's programs name it, to a model file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from llama2q.errors import CheckpointNotFoundError, InvalidArgumentError, TokenizerError
from llama2q.format.layout import TOKENIZER
from llama2q.format.reader import L2qFile

_KINDS = ("int4", "int8", "bf16", "f16", "f32")

_log = logging.getLogger(__name__)


def model_file(ckpt_dir: str | os.PathLike[str]) -> Path:
    """Return the `.l2q` file of a checkpoint.

    Parameters
    ----------
    ckpt_dir : str or path
        A `.l2q` file; or a folder: the file is in it or, under the converter's name, beside it;
        else it is made there, with the converter's defaults.

    Raises
    ------
    CheckpointNotFoundError
        There is no such file or folder.
    InvalidArgumentError
        There are several model files, or the one that was found was made from other weights.
    CheckpointError, OutputError
        The checkpoint cannot be converted; see `llama2q.convert`.
    """
    given = Path(ckpt_dir).expanduser()
    if given.is_file():
        return given
    if not given.is_dir():
        raise CheckpointNotFoundError(f"{given} does not exist")
    folder = given.resolve()
    found = sorted(folder.glob("*.l2q"))
    names = (f"{folder.name}-{kind}.l2q" for kind in _KINDS)
    found += [path for name in names if (path := folder.parent / name).is_file()]
    if len(found) > 1:
        raise InvalidArgumentError(
            f"{given} has several model files: {', '.join(map(str, found))}; "
            "give one of them as ckpt_dir"
        )
    if found:
        _require_same_weights(found[0], folder)
        return found[0]
    from llama2q.converter.converter import convert

    _log.warning(
        "converting %s once, which may take long; llama2q-convert does it with other settings, and "
        "shows how far it is",
        given,
    )
    return convert(folder, folder.parent).path


def require_tokenizer(path: Path, tokenizer_path: str | os.PathLike[str]) -> None:
    """Raise unless a model file holds this tokenizer, with tokens added to it or none.

    Raises
    ------
    TokenizerError
        It holds another one, or this one cannot be read.
    """
    given = Path(tokenizer_path).expanduser()
    try:
        data = given.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{given} cannot be read: {error.strerror or error}") from error
    with L2qFile(path) as file:
        stored = file.array(TOKENIZER).tobytes()
    if not data or not stored.startswith(data):
        raise TokenizerError(
            f"{given} is not the tokenizer that {path.name} was made with; give that of its "
            "checkpoint"
        )


def _require_same_weights(path: Path, folder: Path) -> None:
    """Compare sizes of the files that the model was made from with those in the folder."""
    with L2qFile(path) as file:
        sources = file.metadata.source
    for source in sources:
        now = folder / source.name
        if now.is_file() and now.stat().st_size != source.bytes:
            raise InvalidArgumentError(
                f"{path} was made from another {source.name} ({source.bytes} bytes) than the one "
                f"in {folder} ({now.stat().st_size} bytes); convert it again with llama2q-convert, "
                "or remove it"
            )
