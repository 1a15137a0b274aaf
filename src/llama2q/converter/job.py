"""What a conversion reads and what it will write, as its arguments say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama2q.converter.chat_template import stored_name
from llama2q.converter.forms import Checkpoint, open_checkpoint, recipe_for
from llama2q.converter.lora import with_adapter
from llama2q.converter.mapped_tensor import NUMPY_DTYPES
from llama2q.errors import InvalidArgumentError
from llama2q.format.metadata import Metadata, SourceFile
from llama2q.format.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An open checkpoint, and the file to make of it.

    Attributes
    ----------
    checkpoint : Checkpoint
        Opened and checked.
    path : Path
        The file to write.
    metadata : Metadata
        What the file will say, without hashes.
    sources : list of Path
        Every file that is read.
    """

    checkpoint: Checkpoint
    path: Path
    metadata: Metadata
    sources: list[Path]

    @property
    def recipe(self) -> Recipe:
        """How each matrix is stored."""
        return self.metadata.recipe

    @property
    def input_bytes(self) -> int:
        """Sizes of the source files together."""
        return sum(entry.bytes for entry in self.metadata.source)


@contextmanager
def open_job(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    *,
    quant: str | None,
    group_size: int | None,
    grid: str | None,
    chat_template: str | None,
    lora: str | os.PathLike[str] | None,
    n_threads: int | None,
) -> Iterator[Job]:
    """Open a checkpoint and derive the file to make of it; see `llama2q.convert`."""
    template = None if chat_template is None else stored_name(chat_template)
    adapter = None if lora is None else Path(lora).expanduser()
    with (
        open_checkpoint(Path(src).expanduser()) as base,
        with_adapter(base, adapter, rounded=quant == "none", n_threads=n_threads) as checkpoint,
    ):
        if adapter is not None and base.dtype not in NUMPY_DTYPES:
            raise InvalidArgumentError(
                f"an adapter is merged into numbers of one type; the weights are {base.dtype}. "
                "Take the unquantized model that they were made from"
            )
        recipe = recipe_for(checkpoint, quant, group_size, grid)
        path = _output_path(checkpoint, dst, recipe)
        sources = checkpoint.sources
        _refuse_source(path, sources)
        metadata = Metadata(
            config=checkpoint.config,
            recipe=recipe,
            template=checkpoint.template if template is None else template,
            licences=checkpoint.licences,
            source=tuple(SourceFile(file.name, file.stat().st_size) for file in sources),
        )
        yield Job(checkpoint=checkpoint, path=path, metadata=metadata, sources=sources)


def _output_path(
    checkpoint: Checkpoint, dst: str | os.PathLike[str] | None, recipe: Recipe
) -> Path:
    kind = recipe.quant if recipe.is_quantized else checkpoint.dtype
    name = f"{checkpoint.name or 'model'}-{kind}.l2q"
    path = Path(name) if dst is None else Path(dst)
    return path / name if path.is_dir() else path


def _refuse_source(path: Path, sources: list[Path]) -> None:
    if path.exists() and any(path.samefile(source) for source in sources):
        raise InvalidArgumentError(f"{path} is part of the checkpoint; give another file")
