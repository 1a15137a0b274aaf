"""`convert`: a checkpoint folder becomes one `.l2q` file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llama2q import memory
from llama2q._core import default_threads
from llama2q.calibrate.calibrator import Calibrator, Codes
from llama2q.config import ModelConfig
from llama2q.converter.checked_source import CheckedSource
from llama2q.converter.checklist import read_checklists
from llama2q.converter.encode import Quantizers, alternating, encode_matrix
from llama2q.converter.gguf_encode import GgufEncoder, TensorReport
from llama2q.converter.hub_cache import blob_hashes
from llama2q.converter.job import Job, Options, open_job
from llama2q.converter.sources import SourceHasher, fingerprint
from llama2q.converter.terms import terms_of
from llama2q.errors import Llama2qError, NonFiniteWeightError
from llama2q.format.layout import (
    LAYER_MATRICES,
    MatrixSpec,
    TensorSpec,
    matrix_spec,
    model_parts,
)
from llama2q.format.recipe import Recipe
from llama2q.format.writer import Chunks, Writer, write_model
from llama2q.quant.bits import nonfinite, widen

Progress = Callable[[int, int, str], None]
"""progress(done_bytes, total_bytes, name): bytes of the output, and the tensor that is next."""


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did.

    Attributes
    ----------
    path : Path
        The file.
    model_id : str
        64 hex digits.
    config : ModelConfig
    recipe : Recipe
    template : str
        "base", "llama2-chat", "vicuna", "zephyr" or "chatml".
    input_bytes, output_bytes : int
        Sizes of the source files together, and of the file.
    seconds : float
        Wall time.
    bits_per_weight : float
        Stored bits of matrices and norms, scales and padding included, per weight.
    peak_rss_bytes : int
        The process's largest resident size so far, mapped files included.
    n_checksums : int
        How many files were compared with the MD5 of a checklist, or with the SHA-256 that names
        them in Hugging Face's cache.
    terms : str or None
        A reminder of Meta's terms where the model is, or may be, Meta's.
    notes : tuple of str
        What a user should know about how the checkpoint was read.
    tensors : tuple of TensorReport
        Of a GGUF file that is taken over: what each tensor was and is, and what that changed.
    """

    path: Path
    model_id: str
    config: ModelConfig
    recipe: Recipe
    template: str
    input_bytes: int
    output_bytes: int
    seconds: float
    bits_per_weight: float
    peak_rss_bytes: int
    n_checksums: int
    terms: str | None
    notes: tuple[str, ...]
    tensors: tuple[TensorReport, ...] = ()


def convert(
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
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> ConvertReport:
    """Convert a checkpoint to a `.l2q` file.

    Parameters
    ----------
    src : str or Path
        Folder in Meta's form (consolidated.NN.pth, params.json) or in Hugging Face's (config.json
        of a Llama model, model*.safetensors or pytorch_model*.bin); also a repository or snapshot
        in Hugging Face's cache. Or a GGUF file, whatever its name, or a folder that holds one.
    dst : str or Path, optional
        File to write, or an existing folder; by default `<name of the model>-<quant>.l2q` in the
        current folder, where "none" appears as the checkpoint's dtype. The name of an adapter
        follows that of the model.
    quant : {"int4", "int8", "none"}, optional
        "none" keeps the checkpoint's own numbers. By default int4; but of a GGUF file that is
        quantized each tensor keeps its own codes where a file can hold them (Q4_0, IQ4_NL, Q8_0),
        and its numbers where it has plain ones; other tensors are rounded anew, to int4 from 5
        bits a weight or fewer, else to int8.
    group_size : {32, 64, 128}, optional
        Columns per scale; by default 64, or 32 for a GGUF file that is quantized.
    grid : {"nonuniform", "uniform"}, optional
        Values of the int4 codes; by default nonuniform, or what most of a GGUF file's codes have.
    method : {"gptq", "calibrated", "search", "rtn"}, optional
        How int4 codes are chosen; "gptq" by default, but "rtn" for what is rounded anew of a
        quantized GGUF file: with another method all of it is. "rtn" rounds to nearest. "search"
        tries scales and keeps that with the least squared error. "calibrated" weighs the errors by
        the squares of what a text gives each column. "gptq" hands each column's error on to the
        next ones, so that the outputs for that text change least (Frantar et al. 2022), and lets
        each layer make up for what the layers before it have lost. docs/quality.md: what each gains
        and costs.
    calibration_text : str or Path, optional
        UTF-8 text for "calibrated" and "gptq"; by default one that comes with the package. 10,240
        tokens of it are used; form feeds separate pieces that shall all be among them.
    chat_template : {"llama-2", "vicuna", "zephyr", "chatml", "none"}, optional
        How chat prompts are built; by default as the checkpoint's template text or name says.
    lora : str or Path, optional
        Folder of a LoRA adapter as PEFT saves it (adapter_config.json, adapter_model.safetensors or
        .bin), trained on this model: its updates are added to the weights, in float32, before they
        are quantized. With quant="none" the merged matrices are rounded to the checkpoint's dtype.
    overwrite : bool
        Whether an existing file is replaced.
    resume : bool
        Whether an interrupted conversion goes on where it stopped; else it starts anew.
    verify_checksums : bool
        Whether files that `checklist.chk` or `tokenizer_checklist.chk` list, beside the checkpoint
        or one folder up, must have the MD5 given there. Tensors of files that no list covers are
        always checked by the CRC-32 inside the shard. A file that Hugging Face's cache names by its
        SHA-256 must have it.
    progress : callable, optional
        Called as progress(done_bytes, total_bytes, name); the name is that of a tensor or, while
        only checksums are waited for, says how far these are.
    n_threads : int, optional
        Threads of the quantizers; all physical cores by default. The bytes do not depend on it.

    Returns
    -------
    ConvertReport

    Raises
    ------
    CheckpointError
        The checkpoint is incomplete, damaged, of another kind of model, or holds NaN or infinity;
        an AdapterError if it is the adapter that is incomplete, does not fit or cannot be merged.
    CalibrationError, CalibrationTextError
        The model cannot be run, or the text not be read.
    ChecksumError, ChecklistError
        A file is not the one that the checklist names, or the list itself is unsound.
    MissingPackageError
        Types of a GGUF file need the package gguf.
    OutputExistsError, DiskSpaceError, OutputError, QuantizationError, InvalidArgumentError
        See `llama2q.errors`. No error leaves a file under the final name.

    Notes
    -----
    An interruption (Ctrl-C, a kill) keeps `NAME.part`; the next call with the same arguments goes
    on behind the last finished tensor and gives the same bytes.
    """
    from llama2q import _core

    return convert_with(
        _core,
        src,
        dst,
        Options(
            quant=quant,
            group_size=group_size,
            grid=grid,
            method=method,
            calibration_text=calibration_text,
            chat_template=chat_template,
            lora=lora,
        ),
        overwrite=overwrite,
        resume=resume,
        verify_checksums=verify_checksums,
        progress=progress,
        n_threads=n_threads,
    )


def convert_with(
    quantizers: Quantizers,
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    overwrite: bool = False,
    resume: bool = True,
    verify_checksums: bool = True,
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> ConvertReport:
    """Convert with other quantizers; see `convert`."""
    start = time.perf_counter()
    with open_job(src, dst, options or Options(), n_threads) as job:
        checkpoint, metadata, sources = job.checkpoint, job.metadata, job.sources
        gguf = None if job.gguf is None else GgufEncoder(job.gguf, quantizers, n_threads)
        blobs = blob_hashes(sources) if verify_checksums else {}
        listed = read_checklists(checkpoint.folder, sources) if verify_checksums else {}
        with (
            Writer(
                job.path,
                metadata,
                checkpoint.tokenizer_bytes,
                fingerprint=fingerprint(sources),
                overwrite=overwrite,
                resume=resume,
            ) as writer,
            SourceHasher(sources, listed) as hasher,
            CheckedSource(checkpoint, hasher, listed, blobs) as source,
        ):
            _write(writer, source, job, gguf, quantizers, progress, n_threads)
            model_id = writer.finish(source.finish(_waiting(progress, writer.data_bytes)))
    if progress is not None:
        progress(writer.data_bytes, writer.data_bytes, "")
    return ConvertReport(
        path=job.path,
        model_id=model_id,
        config=metadata.config,
        recipe=job.recipe,
        template=metadata.template,
        input_bytes=job.input_bytes,
        output_bytes=writer.file_bytes,
        seconds=time.perf_counter() - start,
        bits_per_weight=bits_per_weight(metadata.config, job.recipe),
        peak_rss_bytes=memory.peak_resident_bytes(),
        n_checksums=len(listed) + len(blobs),
        terms=terms_of(metadata),
        notes=job.notes,
        tensors=() if gguf is None else gguf.reports(job.recipe),
    )


def bits_per_weight(config: ModelConfig, recipe: Recipe) -> float:
    """Return stored bits of matrices and norms, scales and padding included, per weight."""
    n_weights = stored = 0
    for part in model_parts(config, recipe, 1):
        if isinstance(part, MatrixSpec):
            n_weights += part.n_weights
            stored += sum(spec.nbytes for spec in part.tensors())
        elif part.dtype == "F32":
            n_weights += part.shape[0]
            stored += part.nbytes
    return 8 * stored / n_weights


def _write(
    writer: Writer,
    source: CheckedSource,
    job: Job,
    gguf: GgufEncoder | None,
    quantizers: Quantizers,
    progress: Progress | None,
    n_threads: int | None,
) -> None:
    done, total = 0, writer.data_bytes
    calibrator = _calibrator(writer, source, job, n_threads)

    def before(part: MatrixSpec | TensorSpec) -> None:
        nonlocal done
        source.check()
        if progress is not None:
            progress(done, total, part.name)
        specs = part.tensors() if isinstance(part, MatrixSpec) else (part,)
        done += sum(spec.nbytes for spec in specs)
        source.follow(done / total)

    def encode(matrix: MatrixSpec) -> list[Chunks]:
        if gguf is not None:
            return gguf.encode(matrix)
        if calibrator is not None and matrix.stored.grid is not None:
            return alternating(calibrator.encode(matrix))
        return encode_matrix(
            matrix, source.read, source.release, quantizers, n_threads, job.recipe.method
        )

    def norm(spec: TensorSpec) -> NDArray[np.float32]:
        weights = source.read(spec.name)
        if nonfinite(weights).any():
            at = int(np.argmax(nonfinite(weights)))
            value = float(widen(weights[at : at + 1])[0])
            raise NonFiniteWeightError(
                f"{spec.name}: element {at} is {value}; expected a finite number"
            )
        source.release(spec.name)
        return widen(weights)

    try:
        write_model(writer, encode, norm, before)
    except Llama2qError:
        source.finish()  # a damaged shard explains a wrong weight
        raise


def _calibrator(
    writer: Writer, source: CheckedSource, job: Job, n_threads: int | None
) -> Calibrator | None:
    if job.calibration is None:
        return None
    config, recipe = job.metadata.config, job.recipe

    def stored(layer: int) -> dict[str, Codes] | None:
        """Return what an interrupted run has finished of a layer, if that is all of it."""
        codes: dict[str, Codes] = {}
        for name in LAYER_MATRICES:
            matrix = matrix_spec(config, recipe, f"layers.{layer}.{name}")
            if any(tensor.name not in writer.finished for tensor in matrix.tensors()):
                return None
            arrays = [writer.read_back(tensor.name) for tensor in matrix.tensors()]
            for i, source_name in enumerate(matrix.sources):
                first, second = (array[i :: len(matrix.sources)] for array in arrays)
                codes[source_name] = np.ascontiguousarray(first), np.ascontiguousarray(second)
        return codes

    return Calibrator(
        config,
        recipe,
        rope=job.metadata.rope,
        checked=source,
        weights=job.checkpoint,
        windows=job.calibration.windows,
        stored=stored,
        n_threads=n_threads or default_threads(),
    )


def _waiting(progress: Progress | None, total: int) -> Callable[[str], None] | None:
    return None if progress is None else lambda text: progress(total, total, text)
