"""What a conversion will write, and what it needs, before it begins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama2q import _core, memory
from llama2q.config import ModelConfig
from llama2q.converter.calibration_cost import calibrated_cost, gptq_cost
from llama2q.converter.checklist import read_checklists
from llama2q.converter.converter import bits_per_weight
from llama2q.converter.costs import Cost, MethodCost, Work, rtn_cost
from llama2q.converter.gguf_cost import gguf_cost
from llama2q.converter.job import Job, Options, open_job
from llama2q.converter.probe import probe
from llama2q.converter.sources import fingerprint
from llama2q.converter.wrapped import WrappedCheckpoint
from llama2q.errors import Llama2qError
from llama2q.format.journal import Journal
from llama2q.format.layout import MatrixSpec, model_parts
from llama2q.format.outline import (
    Outline,
    check_disk_room,
    disk_room_bytes,
    journal_path,
    part_path,
)
from llama2q.format.recipe import Recipe
from llama2q.format.writer import refuse_existing
from llama2q.memory import format_size

METHODS: dict[str, MethodCost] = {
    "none": rtn_cost,
    "rtn": rtn_cost,
    "search": rtn_cost,
    "calibrated": calibrated_cost,
    "gptq": gptq_cost,
}
"""The cost of each method, by the name that a recipe has for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionPlan:
    """What a conversion will write and what it needs; sizes in bytes.

    Attributes
    ----------
    path : Path
        The file to write.
    config : ModelConfig
    recipe : Recipe
    template : str
        As in `ConvertReport`.
    input_bytes, output_bytes : int
        Sizes of the source files together, and of the file: exact.
    bits_per_weight : float
        Stored bits of matrices and norms, scales and padding included, per weight.
    finished_bytes : int
        How much of the file an interrupted conversion left that this one can go on with; its data
        have not been read.
    exists : bool
        Whether there is a file of that name.
    disk_room_bytes : int
        What the file may take on its disk: what is free, and what its unfinished form has already.
    memory_bytes : int
        An upper bound of what converting adds to the process, mapped files included.
    available_bytes : int
        Memory that can be had.
    seconds : float
        About how long it will take, from a short measurement of this machine.
    obstacles : tuple of str
        Why it would be refused.
    notes : tuple of str
        What a user should know about how the checkpoint is read.
    """

    path: Path
    config: ModelConfig
    recipe: Recipe
    template: str
    input_bytes: int
    output_bytes: int
    bits_per_weight: float
    finished_bytes: int
    exists: bool
    disk_room_bytes: int
    memory_bytes: int
    available_bytes: int
    seconds: float
    obstacles: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing stands in the way and the memory is enough."""
        return not self.obstacles and self.memory_bytes <= self.available_bytes

    @property
    def message(self) -> str:
        """The plan in a sentence or two."""
        text = (
            f"{_gigabytes(self.input_bytes)} -> {_gigabytes(self.output_bytes)}, "
            f"{self.bits_per_weight:.2f} bits a weight, about {_duration(self.seconds)}; memory "
            f"{format_size(self.memory_bytes)} of {format_size(self.available_bytes)} free, disk "
            f"{_gigabytes(self.output_bytes)} of {_gigabytes(self.disk_room_bytes)} free"
        )
        if self.finished_bytes:
            text += f"; goes on after {_gigabytes(self.finished_bytes)} of an interrupted run"
        if self.memory_bytes > self.available_bytes:
            text += "; this is more memory than is free, and may be slow or fail"
        return ". ".join([text, *self.obstacles])

    def __str__(self) -> str:
        """Return `message`."""
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and what follows from them, for JSON."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "path": str(self.path),
            "config": self.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "fits": self.fits,
            "message": self.message,
        }


def plan_conversion(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    *,
    quant: str | None = None,
    group_size: int | None = None,
    grid: str | None = None,
    method: str | None = None,
    calibration_text: str | os.PathLike[str] | None = None,
    chat_template: str | None = None,
    lora: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = True,
    verify_checksums: bool = True,
    n_threads: int | None = None,
) -> ConversionPlan:
    """Open and check a checkpoint and say what converting it would give and need.

    Writes nothing. Of the weights it reads a few pieces, to see how fast they come.

    Parameters
    ----------
    src, dst, quant, group_size, grid, method, calibration_text, chat_template, lora
        As of `llama2q.convert`.
    overwrite, resume, verify_checksums, n_threads
        As of `llama2q.convert`.

    Returns
    -------
    ConversionPlan

    Raises
    ------
    CheckpointError, TokenizerError, ChecklistError, InvalidArgumentError
        As `llama2q.convert` raises them before it writes. A file that exists and a full disk are
        no errors here but obstacles of the plan.
    """
    options = Options(
        quant=quant,
        group_size=group_size,
        grid=grid,
        method=method,
        calibration_text=calibration_text,
        chat_template=chat_template,
        lora=lora,
    )
    with open_job(src, dst, options, n_threads) as job:
        outline = Outline.of(job.metadata, len(job.checkpoint.tokenizer_bytes))
        finished = _finished_bytes(job, outline) if resume else 0
        cost = _cost(job, outline, finished, n_threads, verify_checksums=verify_checksums)
        obstacles = _obstacles(job.path, outline, overwrite=overwrite)
        folder_exists = job.path.parent.is_dir()
        return ConversionPlan(
            path=job.path,
            config=job.metadata.config,
            recipe=job.recipe,
            template=job.metadata.template,
            input_bytes=job.input_bytes,
            output_bytes=outline.file_bytes,
            bits_per_weight=bits_per_weight(job.metadata.config, job.recipe),
            finished_bytes=finished,
            exists=job.path.exists(),
            disk_room_bytes=disk_room_bytes(job.path) if folder_exists else 0,
            memory_bytes=cost.memory_bytes,
            available_bytes=memory.available_bytes(),
            seconds=cost.seconds,
            obstacles=obstacles,
            notes=job.notes,
        )


def _finished_bytes(job: Job, outline: Outline) -> int:
    """Return the bytes that an interrupted conversion of the same sources calls finished."""
    if not part_path(job.path).is_file():
        return 0
    key = outline.key(fingerprint(job.sources), job.checkpoint.tokenizer_bytes)
    claimed = Journal(journal_path(job.path), key).claimed(outline.tensors)
    return sum(tensor.spec.nbytes for tensor, _ in claimed)


def _cost(
    job: Job, outline: Outline, finished: int, n_threads: int | None, *, verify_checksums: bool
) -> Cost:
    checkpoint = job.checkpoint
    parts = model_parts(checkpoint.config, job.recipe, len(checkpoint.tokenizer_bytes))
    matrices = tuple(part for part in parts if isinstance(part, MatrixSpec))
    largest = max(job.sources, key=lambda path: path.stat().st_size)
    listed = read_checklists(checkpoint.folder, job.sources) if verify_checksums else {}
    probed = () if job.gguf else matrices  # its matrices are measured in `gguf_cost`
    work = Work(
        checkpoint=checkpoint,
        matrices=matrices,
        input_bytes=job.input_bytes,
        listed_bytes=sum(path.stat().st_size for path in job.sources if path in listed),
        file_bytes=outline.file_bytes,
        share_left=1 - finished / outline.data_bytes,
        n_threads=n_threads or _core.default_threads(),
        n_cpus=_core.usable_cpus(),
        merged_terms=checkpoint.merged_terms() if isinstance(checkpoint, WrappedCheckpoint) else 0,
        method=job.recipe.method,
        n_tokens=0 if job.calibration is None else sum(map(len, job.calibration.windows)),
        rates=probe(probed, checkpoint.dtype, largest, _core, n_threads, job.recipe.method),
    )
    if job.gguf is not None:
        return gguf_cost(job.gguf, work, _core)
    return METHODS[job.recipe.method](work)


def _obstacles(path: Path, outline: Outline, *, overwrite: bool) -> tuple[str, ...]:
    """Return what the conversion would be refused with."""
    try:
        refuse_existing(path, overwrite=overwrite)
        check_disk_room(path, outline.file_bytes)
    except Llama2qError as error:
        return (str(error),)
    return ()


def _gigabytes(n_bytes: int) -> str:
    if n_bytes >= 10**9:
        return f"{n_bytes / 10**9:.2f} GB"
    return f"{n_bytes / 10**6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
