"""Finding the files of a checkpoint in Hugging Face's form; the index of a sharded one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama2q.converter.checkpoint_folder import find_licences, require_file
from llama2q.converter.foreign import HUB_AGAIN
from llama2q.converter.hub_cache import model_name
from llama2q.converter.json_file import read_json_object, shown
from llama2q.errors import (
    CheckpointNotFoundError,
    MissingShardError,
    ShardIndexError,
    TokenizerError,
)

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
MAX_FILES = 1000
MAX_INDEX_BYTES = 1 << 24

_FORMS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
"""Stem and ending of the weights; the first form that is there is read, as Hugging Face does."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_NUMBERED = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
_BESIDE = ("added_tokens.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class HfFolder:
    """Paths of a checkpoint's files.

    Attributes
    ----------
    path : Path
        The folder, resolved; its files may be links.
    name : str
        The model's.
    weights : tuple of Path
        In ascending order of names.
    index : Path or None
        Present if the weights are sharded.
    placement : dict of str to str, or None
        Tensor name -> file name, as the index says.
    config, tokenizer : Path
    beside : dict of str to Path
        Those of added_tokens.json, tokenizer_config.json, chat_template.jinja that are there.
    licences : tuple of Path
    """

    path: Path
    name: str
    weights: tuple[Path, ...]
    index: Path | None
    placement: dict[str, str] | None
    config: Path
    tokenizer: Path
    beside: dict[str, Path]
    licences: tuple[Path, ...]

    @property
    def sources(self) -> list[Path]:
        """Every file that is read."""
        index = [] if self.index is None else [self.index]
        return [*self.weights, *index, self.config, self.tokenizer, *self.beside.values()]


def is_hugging_face(path: Path) -> bool:
    """Whether a folder is in Hugging Face's form, complete or not."""
    names = {CONFIG, "adapter_config.json"}
    for stem, ending in _FORMS:
        names |= {stem + ending, f"{stem}{ending}.index.json"}
    return any(child.name in names or _NUMBERED.fullmatch(child.name) for child in path.iterdir())


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointNotFoundError for a LoRA adapter without its model."""
    if (folder / "adapter_config.json").exists() and not (folder / CONFIG).exists():
        raise CheckpointNotFoundError(
            f"{folder} holds a LoRA adapter (adapter_config.json), no model. Try: "
            f"llama2q-convert MODEL --lora {folder}"
        )


def find_hugging_face(folder: Path) -> HfFolder:
    """Find the files of a checkpoint.

    Raises
    ------
    CheckpointNotFoundError
        The folder holds no weights; the message says what it holds.
    MissingShardError, ShardIndexError
        A file that the index names is missing; the index is malformed or missing.
    UnreadableFileError
        A file is no ordinary file.
    TokenizerError
        tokenizer.model is missing.
    """
    path = folder.resolve()
    index, placement, names = _find_weights(folder, path)
    tokenizer = path / TOKENIZER
    if not tokenizer.exists():
        raise TokenizerError(_no_tokenizer(path))
    require_file(tokenizer)
    beside = {name: path / name for name in _BESIDE if (path / name).exists()}
    for file in beside.values():
        require_file(file)
    return HfFolder(
        path=path,
        name=model_name(path),
        weights=tuple(path / name for name in names),
        index=index,
        placement=placement,
        config=path / CONFIG,
        tokenizer=tokenizer,
        beside=beside,
        licences=find_licences(path),
    )


def _find_weights(
    folder: Path, path: Path
) -> tuple[Path | None, dict[str, str] | None, tuple[str, ...]]:
    """Return the index, what it says, and the names of the weights' files."""
    for stem, ending in _FORMS:
        whole, index = path / (stem + ending), path / f"{stem}{ending}.index.json"
        if whole.exists() or whole.is_symlink():
            require_file(whole)
            return None, None, (whole.name,)
        if index.exists() or index.is_symlink():
            require_file(index)
            placement = read_index(index, ending)
            names = tuple(sorted(set(placement.values())))
            _check_present(path, index.name, names)
            return index, placement, names
    found = sorted(child.name for child in path.iterdir())
    numbered = [name for name in found if _NUMBERED.fullmatch(name)]
    if numbered:
        match = _NUMBERED.fullmatch(numbered[0])
        expected = f"{match[1]}.{match[2]}.index.json" if match else "its index"
        raise ShardIndexError(f"{expected} is missing beside {numbered[0]}; {HUB_AGAIN}")
    listed = ", ".join(shown(name) for name in found[:5]) + (", ..." if len(found) > 5 else "")
    raise CheckpointNotFoundError(
        f"{folder} has a config.json but no weights (found {listed}); expected model.safetensors "
        f"or pytorch_model.bin, or their shards with an index; {HUB_AGAIN}"
    )


def read_index(path: Path, ending: str) -> dict[str, str]:
    """Read the index of a sharded checkpoint.

    Parameters
    ----------
    path : Path
        `model.safetensors.index.json` or `pytorch_model.bin.index.json`.
    ending : str
        What the names of the files must end in.

    Returns
    -------
    dict
        Tensor name -> file name; all files lie beside the index.

    Raises
    ------
    ShardIndexError
        It is no such index, or names a file elsewhere.
    """
    values = read_json_object(path, ShardIndexError, MAX_INDEX_BYTES, hub=True)
    placement = values.get("weight_map")
    if not isinstance(placement, dict) or not placement:
        raise ShardIndexError(
            f"{path.name}: weight_map is {shown(placement)}; expected tensor names and their files"
        )
    for name, file in placement.items():
        if (
            not isinstance(file, str)
            or not _PLAIN_NAME.fullmatch(file)
            or not file.endswith(ending)
        ):
            raise ShardIndexError(
                f"{path.name} places {shown(name)} in {shown(file)}; expected the plain name of a "
                f"{ending} file beside it"
            )
    if len(set(placement.values())) > MAX_FILES:
        raise ShardIndexError(f"{path.name} names over {MAX_FILES} files")
    return placement


def _check_present(path: Path, index: str, names: Iterable[str]) -> None:
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        there = [name for name in names if name not in missing]
        raise MissingShardError(
            f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} missing: {index} names "
            f"{len(missing) + len(there)} files; found {_some(there) or 'none'}; {HUB_AGAIN}"
        )
    for name in names:
        require_file(path / name)


def _no_tokenizer(path: Path) -> str:
    if (path / "tokenizer.json").exists():
        return (
            f"{path} has tokenizer.json but no tokenizer.model; this engine reads SentencePiece "
            "models only. Put the tokenizer.model of the same model there (its repository, or that "
            "of the model it was made from, has it); Llama 3's tokenizers are of another kind"
        )
    return f"tokenizer.model is missing in {path}; {HUB_AGAIN}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
