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
from llama2q.converter.gguf_checkpoint import GgufCheckpoint
from llama2q.converter.gguf_recipe import choose_recipe, is_taken_over
from llama2q.converter.lora import with_adapter
from llama2q.converter.mapped_tensor import NUMPY_DTYPES
from llama2q.errors import InvalidArgumentError
from llama2q.format.metadata import Metadata, SourceFile
from llama2q.format.recipe import CALIBRATED, Recipe, method_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of a conversion; see `llama2q.convert`. None leaves it to the checkpoint."""

    quant: str | None = None
    group_size: int | None = None
    grid: str | None = None
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
    gguf : GgufCheckpoint or None
        The checkpoint, where its codes or numbers are taken over.
    """

    checkpoint: Checkpoint
    path: Path
    metadata: Metadata
    sources: list[Path]
    calibration: Calibration | None
    gguf: GgufCheckpoint | None = None

    @property
    def recipe(self) -> Recipe:
        """How each matrix is stored."""
        return self.metadata.recipe

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how checkpoint and calibration text were read."""
        calibration = () if self.calibration is None else self.calibration.notes
        return (*self.checkpoint.notes, *calibration)

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
    template = options.chat_template
    stored_template = None if template is None else stored_name(template)
    adapter = None if options.lora is None else Path(options.lora).expanduser()
    with (
        open_checkpoint(Path(src).expanduser()) as base,
        with_adapter(base, adapter, rounded=options.quant == "none", n_threads=n_threads) as merged,
    ):
        if adapter is not None and base.dtype not in NUMPY_DTYPES:
            raise InvalidArgumentError(
                f"an adapter is merged into numbers of one type; the weights are {base.dtype}. "
                "Take the unquantized model that they were made from"
            )
        checkpoint, gguf = merged, None
        if is_taken_over(merged, options.quant, options.method):
            gguf = merged
        elif options.quant != "none":
            checkpoint = EqualizedCheckpoint.of(merged)
        recipe, calibration = _recipe(checkpoint, gguf, options)
        path = _output_path(checkpoint, dst, recipe)
        sources = checkpoint.sources
        _refuse_source(path, sources)
        metadata = Metadata(
            config=checkpoint.config,
            recipe=recipe,
            template=checkpoint.template if stored_template is None else stored_template,
            licences=checkpoint.licences,
            rope=checkpoint.rope,
            source=tuple(SourceFile(file.name, file.stat().st_size) for file in sources),
        )
        yield Job(
            checkpoint=checkpoint,
            path=path,
            metadata=metadata,
            sources=sources,
            calibration=calibration,
            gguf=gguf,
        )


def _recipe(
    checkpoint: Checkpoint, gguf: GgufCheckpoint | None, options: Options
) -> tuple[Recipe, Calibration | None]:
    """Return the recipe, and what its method runs through the model."""
    asked = {
        name: value
        for name in ("quant", "group_size", "grid")
        if (value := getattr(options, name)) is not None
    }
    if gguf is not None:
        method_of(options.quant or "int4", options.method)
        _calibration(checkpoint, "rtn", options.calibration_text)
        return choose_recipe(gguf, asked), None
    method = method_of(options.quant or "int4", options.method)
    calibration = _calibration(checkpoint, method, options.calibration_text)
    recipe = Recipe.for_model(
        checkpoint.config,
        dtype=checkpoint.dtype,
        method=options.method,
        calibration="none" if calibration is None else calibration.description,
        **asked,
    )
    return recipe, calibration


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
