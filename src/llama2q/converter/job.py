"""What a conversion reads and what it will write, as its arguments say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama2q.calibrate.calibration import Calibration
from llama2q.converter.chat_template import stored_name
from llama2q.converter.equalize import EqualizedCheckpoint
from llama2q.converter.forms import Checkpoint, open_checkpoint
from llama2q.converter.lora import with_adapter
from llama2q.errors import InvalidArgumentError
from llama2q.format.metadata import Metadata, SourceFile
from llama2q.format.recipe import CALIBRATED, Recipe, method_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of a conversion; see `llama2q.convert`."""

    quant: str = "int4"
    group_size: int = 64
    grid: str = "nonuniform"
    method: str | None = None
    calibration_text: str | os.PathLike[str] | None = None
    chat_template: str | None = None
    lora: str | os.PathLike[str] | None = None


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
    calibration : Calibration or None
        What is run through the model, where the recipe's method asks for it.
    """

    checkpoint: Checkpoint
    path: Path
    metadata: Metadata
    sources: list[Path]
    calibration: Calibration | None

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
    options: Options,
    n_threads: int | None,
) -> Iterator[Job]:
    """Open a checkpoint and derive the file to make of it; see `llama2q.convert`."""
    quant, template = options.quant, options.chat_template
    stored_template = None if template is None else stored_name(template)
    method = method_of(quant, options.method)
    adapter = None if options.lora is None else Path(options.lora).expanduser()
    with (
        open_checkpoint(Path(src).expanduser()) as base,
        with_adapter(base, adapter, rounded=quant == "none", n_threads=n_threads) as merged,
    ):
        checkpoint = merged if quant == "none" else EqualizedCheckpoint.of(merged)
        calibration = _calibration(checkpoint, method, options.calibration_text)
        recipe = Recipe.for_model(
            checkpoint.config,
            quant,
            group_size=options.group_size,
            grid=options.grid,
            dtype=checkpoint.dtype,
            method=options.method,
            calibration="none" if calibration is None else calibration.description,
        )
        path = _output_path(checkpoint, dst, checkpoint.dtype if quant == "none" else quant)
        sources = checkpoint.sources
        _refuse_source(path, sources)
        metadata = Metadata(
            config=checkpoint.config,
            recipe=recipe,
            template=checkpoint.template if stored_template is None else stored_template,
            licences=checkpoint.licences,
            source=tuple(SourceFile(file.name, file.stat().st_size) for file in sources),
        )
        yield Job(
            checkpoint=checkpoint,
            path=path,
            metadata=metadata,
            sources=sources,
            calibration=calibration,
        )


def _calibration(
    checkpoint: Checkpoint, method: str, text: str | os.PathLike[str] | None
) -> Calibration | None:
    if method in CALIBRATED:
        path = None if text is None else Path(text).expanduser()
        return Calibration.of(checkpoint.tokenizer_bytes, path)
    if text is not None:
        raise InvalidArgumentError(
            f"a calibration text is of no use to method={method!r}; it is for "
            f"{' and '.join(CALIBRATED)}"
        )
    return None


def _output_path(checkpoint: Checkpoint, dst: str | os.PathLike[str] | None, kind: str) -> Path:
    name = f"{checkpoint.name or 'model'}-{kind}.l2q"
    path = Path(name) if dst is None else Path(dst)
    return path / name if path.is_dir() else path


def _refuse_source(path: Path, sources: list[Path]) -> None:
    if path.exists() and any(path.samefile(source) for source in sources):
        raise InvalidArgumentError(f"{path} is part of the checkpoint; give another file")
