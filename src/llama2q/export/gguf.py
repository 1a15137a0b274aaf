"""`export_gguf`: a `.l2q` file's model as GGUF, for llama.cpp.

Rows keep their order: llama.cpp rotates neighbours, as Meta does.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llama2q.converter.gguf_tensors import gguf_name
from llama2q.errors import ExportError
from llama2q.export import gguf_container as container
from llama2q.export.gguf_blocks import block_scales, int4_blocks, int8_blocks
from llama2q.export.gguf_container import BLOCK, GgufTensor, GgufType
from llama2q.export.gguf_metadata import metadata_of
from llama2q.export.output_file import Progress, StreamedTensor, write_file
from llama2q.export.report import ExportReport
from llama2q.export.rope import require_plain_rope
from llama2q.export.rows import code_rows, dense_rows, release, scale_rows
from llama2q.format.layout import INV_FREQ, TOKENIZER, MatrixSpec, TensorSpec, model_parts
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import EMBEDDINGS, OUTPUT, TensorType

_TYPES = {
    ("int4", "uniform"): container.Q4_0,
    ("int4", "nonuniform"): container.IQ4_NL,
    ("int8", None): container.Q8_0,
    ("f32", None): container.F32,
    ("f16", None): container.F16,
    ("bf16", None): container.BF16,
}
"""Type and grid of a `.l2q` matrix -> the type of GGUF that holds the same numbers."""

Planned = tuple[GgufTensor, StreamedTensor]


def export_gguf(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the model of a `.l2q` file as GGUF; its weights are the same numbers.

    int4 becomes Q4_0 (uniform grid) or IQ4_NL (nonuniform), int8 Q8_0, whose groups are of 32:
    groups of 64 and 128 repeat their scale. Dense weights stay F32, F16 or BF16.

    Parameters
    ----------
    src : str or Path
        The `.l2q` file.
    dst : str or Path
        The file to write.
    overwrite : bool
        Whether an existing file is replaced.
    progress : callable, optional
        Called as progress(done_bytes, total_bytes, tensor_name).

    Returns
    -------
    ExportReport

    Raises
    ------
    FormatError
        `src` is not a sound `.l2q` file.
    ExportError
        GGUF or llama.cpp cannot hold the model: rows of quantized matrices must be whole blocks of
        32, the tokenizer must be of SentencePiece's kind BPE.
    TokenizerError
        The tokenizer is damaged.
    OutputExistsError, DiskSpaceError, OutputError, InvalidArgumentError
        See `llama2q.errors`. No error leaves a file under the final name.
    """
    start = time.perf_counter()
    path = Path(dst)
    with L2qFile(src) as file:
        require_plain_rope(file)
        metadata, notes = metadata_of(file, _main_type(file))
        size = write_gguf(
            path, metadata, tensors_of(file), source=file.path, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    return ExportReport(path, size, time.perf_counter() - start, notes)


def write_gguf(
    path: Path,
    metadata: Mapping[str, container.Value],
    tensors: Sequence[Planned],
    *,
    source: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a GGUF file; see `write_file`, whose result it returns."""
    return write_file(
        path,
        container.build_header(metadata, (entry for entry, _ in tensors)),
        [tensor for _, tensor in tensors],
        alignment=container.ALIGNMENT,
        source=source,
        overwrite=overwrite,
        progress=progress,
    )


def tensors_of(file: L2qFile) -> list[Planned]:
    """Return all tensors in the order of the `.l2q` file.

    Raises
    ------
    ExportError
        GGUF cannot hold one.
    """
    planned: list[Planned] = []
    for part in model_parts(file.config, file.recipe, file.tensors[TOKENIZER].nbytes):
        if isinstance(part, MatrixSpec):
            planned += (_matrix(file, part, source) for source in part.sources)
        elif part.name not in (INV_FREQ, TOKENIZER):
            planned.append(_norm(file, part))
    return planned


def _norm(file: L2qFile, part: TensorSpec) -> Planned:
    name = gguf_name(part.name)
    return (
        GgufTensor(name, part.shape, container.F32, part.nbytes),
        StreamedTensor(name, part.nbytes, lambda: iter([file.array(part.name)])),
    )


def _matrix(file: L2qFile, matrix: MatrixSpec, source: str) -> Planned:
    kind = _type_of(matrix.stored)
    if matrix.cols % kind.block_elements:
        raise ExportError(
            f"{file.path.name}: rows of {source} have {matrix.cols} elements; quantized rows of "
            f"GGUF are whole blocks of {BLOCK}. Convert the checkpoint with --quant none (quant="
            '"none"), which can be exported, and quantize that with llama.cpp'
        )
    name, n_bytes = gguf_name(source), kind.n_bytes(matrix.rows, matrix.cols)
    return (
        GgufTensor(name, (matrix.rows, matrix.cols), kind, n_bytes),
        StreamedTensor(name, n_bytes, partial(_chunks, file, matrix, source)),
    )


def _chunks(file: L2qFile, matrix: MatrixSpec, source: str) -> Iterator[NDArray[Any]]:
    group_size = matrix.stored.group_size
    if group_size is None:
        yield from dense_rows(file, matrix, source)
    else:
        blocks = int4_blocks if matrix.stored.type == "int4" else int8_blocks
        codes, scales = code_rows(file, matrix, source), scale_rows(file, matrix, source)
        for part, part_scales in zip(codes, scales, strict=True):
            yield blocks(part, block_scales(part_scales, group_size, matrix.cols))
    release(file, matrix)


def _type_of(stored: TensorType) -> GgufType:
    return _TYPES[stored.type, stored.grid]


def _main_type(file: L2qFile) -> GgufType:
    """Return the type of most weights of the layers."""
    weights: Counter[GgufType] = Counter()
    for name, stored in file.recipe.tensors.items():
        if name not in (EMBEDDINGS, OUTPUT):
            weights[_type_of(stored)] += file.matrix(name).n_weights
    return weights.most_common(1)[0][0]
