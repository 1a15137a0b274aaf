"""A Llama checkpoint in Hugging Face's form, read under Meta's names and in Meta's row order."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.converter.chat_template import detect_template, read_template_text
from llama2q.converter.checkpoint import (
    check_names,
    check_overlaps,
    named_os_errors,
    read_tokenizer,
    some,
)
from llama2q.converter.checkpoint_folder import read_licences
from llama2q.converter.hf_config import HfConfig, read_config
from llama2q.converter.hf_folder import CONFIG, HfFolder, find_hugging_face, refuse_adapter
from llama2q.converter.hf_tensors import (
    EMBEDDINGS,
    OUTPUT,
    describe_unsupported,
    heads_of,
    hf_name,
    is_dropped,
    unpermute,
)
from llama2q.converter.hf_tokenizer import (
    read_added_tokens,
    read_tokenizer_notes,
    with_added_tokens,
)
from llama2q.converter.mapped_tensor import NUMPY_DTYPES, MappedTensor, WeightFile
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.converter.pth import ShardFile
from llama2q.converter.safetensors_file import SafetensorsFile
from llama2q.errors import (
    InvalidArgumentError,
    ParamsError,
    ShardIndexError,
    TensorSetError,
    UnsupportedModelError,
)
from llama2q.rope_scaling import RopeScaling

_COMPARED_BYTES = 1 << 22

Placed = dict[str, tuple[WeightFile, MappedTensor]]
"""Hugging Face's name -> the file and its tensor."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HfCheckpoint(Closing):
    """An opened and checked checkpoint (context manager); see `open`.

    Attributes
    ----------
    folder : Path
        The folder, resolved.
    name : str
        The model's: of the hub's repository for a snapshot in its cache, else the folder's.
    config : ModelConfig
        Shape of the model.
    rope : RopeScaling
        Its own.
    dtype : str
        "f32", "f16" or "bf16", the same for all matrices.
    sources : list of Path
        Every file that is read.
    tokenizer_bytes : bytes
        The SentencePiece model, with added tokens.
    template_text : str or None
        The chat template's.
    licences : dict
        File name -> text of the licence files beside the weights or one folder up.
    shapes : dict
        Meta's tensor name -> shape, in the order of execution.
    notes : tuple of str
        What a user should know about the reading.
    """

    folder: Path
    name: str
    config: ModelConfig
    rope: RopeScaling
    dtype: str
    sources: list[Path]
    tokenizer_bytes: bytes = field(repr=False)
    template_text: str | None = field(repr=False)
    licences: dict[str, str] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    notes: tuple[str, ...]
    _files: tuple[WeightFile, ...] = field(repr=False)
    _placed: Placed = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a checkpoint and check all but the weights themselves.

        Parameters
        ----------
        folder : str or Path
            The folder that holds config.json and the weights.

        Raises
        ------
        CheckpointError
            One of its subclasses, by what is wrong: missing, truncated or damaged files, a model
            that this engine does not compute, a tensor set, shape or dtype that is not that of one
            Llama model.
        TokenizerError
            tokenizer.model is absent, unreadable, or does not fit the model with its added tokens.
        """
        with named_os_errors(folder):
            return cls._open(Path(folder))

    @classmethod
    def _open(cls, folder: Path) -> Self:
        refuse_adapter(folder)
        settings = read_config(folder.resolve() / CONFIG)
        found = find_hugging_face(folder)
        added = read_added_tokens(found.beside)
        with ExitStack() as stack:
            files = tuple(_open_weights(path, stack) for path in found.weights)
            placed = _place(files, found)
            config = _derive_config(settings, placed)
            shapes = tensor_shapes(config)
            _check_tensors(placed, shapes, settings)
            tokenizer, notes = with_added_tokens(
                read_tokenizer(found.tokenizer, hub=True),
                added,
                config.vocab_size,
                str(found.tokenizer),
            )
            checkpoint = cls(
                folder=found.path,
                name=found.name,
                config=config,
                rope=settings.rope,
                dtype=_common_dtype(placed),
                sources=found.sources,
                tokenizer_bytes=tokenizer,
                template_text=read_template_text(found.beside),
                licences=read_licences(found.licences),
                shapes=shapes,
                notes=(*_notes(settings), *notes, *read_tokenizer_notes(found.beside)),
                _files=files,
                _placed=placed,
            )
            stack.pop_all()
        return checkpoint

    @property
    def template(self) -> str:
        """The chat template's name in the file.

        Raises
        ------
        ChatTemplateError
            It cannot be told.
        """
        return detect_template(self.name, self.template_text)

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor.

        Parameters
        ----------
        name : str
            Meta's name, one of `shapes`.

        Returns
        -------
        float32, float16 or uint16 (the bits of bf16), of shape `shapes[name]`
            Read-only: a view of the mapped file (no copy); a copy for wq and wk, whose rows are
            brought back to Meta's order.

        Raises
        ------
        InvalidArgumentError
            There is no such tensor.
        ClosedError
            The checkpoint has been closed.
        """
        _, tensor = self._find(name)
        n_heads = heads_of(name, self.config)
        if n_heads is None:
            return tensor.array()
        weights = unpermute(tensor.array(), n_heads)
        tensor.release()
        return weights

    def reading_bytes(self, name: str) -> int:
        """Return the most memory that a tensor takes while it is read and checked, in bytes.

        Its mapped pages; beside a copy in another order, or in aligned memory, the pages it is made
        from.
        """
        _, tensor = self._find(name)
        is_aligned = tensor.offset % NUMPY_DTYPES[tensor.dtype].itemsize == 0
        is_permuted = name.split(".")[-2] in ("wq", "wk")
        return tensor.nbytes * (1 + is_permuted + (not is_aligned))

    def release(self, name: str) -> None:
        """Give a tensor's mapped pages back to the kernel; it can still be read again."""
        self._find(name)[1].release()

    def check_crc(self, name: str, except_in: Container[Path] = ()) -> None:
        """Check the CRC-32 of a tensor, which pytorch_model*.bin has (reads it).

        Parameters
        ----------
        name : str
            Meta's name.
        except_in : container of Path
            Files that are checked in another way.

        Raises
        ------
        CorruptShardError
            The file's data differs from what was saved; the message names it.
        """
        file, tensor = self._find(name)
        if file.path not in except_in:
            file.check_crc(tensor.name)

    def close(self) -> None:
        """Unmap the files; arrays handed out stay valid."""
        for file in self._files:
            file.close()

    def _find(self, name: str) -> tuple[WeightFile, MappedTensor]:
        if name not in self.shapes:
            raise InvalidArgumentError(f"the checkpoint has no tensor {name!r}")
        stored = hf_name(name)
        return self._placed[stored if stored in self._placed else EMBEDDINGS]


def _open_weights(path: Path, stack: ExitStack) -> WeightFile:
    if path.suffix == ".safetensors":
        return stack.enter_context(SafetensorsFile(path))
    return stack.enter_context(ShardFile(path, hub=True))


def _place(files: Sequence[WeightFile], found: HfFolder) -> Placed:
    """Gather the tensors of all files; compare with the index."""
    placed: Placed = {}
    for file in files:
        check_names(file)
        check_overlaps(file, frozenset({EMBEDDINGS, OUTPUT}))
        for name, tensor in file.tensors.items():
            if name in placed:
                raise TensorSetError(
                    f"{name} is in {placed[name][0].path.name} and in {file.path.name}; expected "
                    "each tensor once. Are they of one download?"
                )
            placed[name] = (file, tensor)
    if found.index is not None and found.placement is not None:
        for name, where in found.placement.items():
            if name not in placed and not is_dropped(name):
                raise ShardIndexError(
                    f"{found.index.name} places {name[:200]!a} in {where}, which does not hold it"
                )
            if name in placed and placed[name][0].path.name != where:
                raise ShardIndexError(
                    f"{found.index.name} places {name} in {where}; it is in "
                    f"{placed[name][0].path.name}"
                )
        unlisted = sorted(name for name in placed if name not in found.placement)
        unlisted = [name for name in unlisted if not is_dropped(name)]
        if unlisted:
            raise ShardIndexError(
                f"{found.index.name} does not name {some(unlisted)}, which "
                f"{placed[unlisted[0]][0].path.name} holds"
            )
    return {name: entry for name, entry in placed.items() if not is_dropped(name)}


def _derive_config(settings: HfConfig, placed: Placed) -> ModelConfig:
    """Return the model's config, with the vocabulary of the embedding table."""
    unsupported = describe_unsupported(placed)
    if unsupported is not None:
        raise UnsupportedModelError(unsupported)
    if EMBEDDINGS not in placed:
        raise TensorSetError(
            f"the weights lack {EMBEDDINGS}: this is not a LlamaForCausalLM "
            f"(found {some(sorted(placed))})"
        )
    shape = placed[EMBEDDINGS][1].shape
    if len(shape) != 2:
        raise TensorSetError(f"{EMBEDDINGS} has the shape {shape}; expected 2 dimensions")
    if settings.vocab_size not in (None, shape[0]):
        raise ParamsError(
            f"config.json says vocab_size {settings.vocab_size}; {EMBEDDINGS} has {shape[0]} rows"
        )
    if settings.model.n_layers > len(placed):
        raise TensorSetError(
            f"config.json says {settings.model.n_layers} layers; the weights are {len(placed)} "
            "tensors only"
        )
    try:
        return replace(settings.model, vocab_size=shape[0])
    except InvalidArgumentError as error:
        raise ParamsError(f"config.json describes no Llama model: {error}") from error


def _check_tensors(
    placed: Placed, shapes: Mapping[str, tuple[int, ...]], settings: HfConfig
) -> None:
    """Compare names, shapes and dtypes with what the model has."""
    expected = {hf_name(name): shape for name, shape in shapes.items()}
    if settings.tied and OUTPUT not in placed:
        del expected[OUTPUT]
    missing = [name for name in expected if name not in placed]
    extra = sorted(set(placed) - set(expected))
    if missing or extra:
        faults = [
            f"{label} {len(names)} ({some(names)})"
            for label, names in (("missing", missing), ("unexpected", extra))
            if names
        ]
        raise TensorSetError(
            f"the weights are not the {len(expected)} tensors of a Llama model of "
            f"{settings.model.n_layers} layers: " + "; ".join(faults)
        )
    for name, shape in expected.items():
        file, tensor = placed[name]
        if tensor.shape != shape:
            raise TensorSetError(
                f"{file.path.name}: {name} has the shape {tensor.shape}; config.json makes it "
                f"{shape}"
            )
        if tensor.dtype not in NUMPY_DTYPES:
            raise TensorSetError(
                f"{file.path.name}: {name} has the dtype {tensor.dtype}; expected one of "
                f"{', '.join(NUMPY_DTYPES)}"
            )
    if settings.tied and OUTPUT in placed:
        _check_equal(placed[EMBEDDINGS][1], placed[OUTPUT][1])


def _check_equal(first: MappedTensor, second: MappedTensor) -> None:
    """Raise unless two tensors that should be one have the same bits."""
    if first.file is second.file and first.offset == second.offset:
        return
    same = first.dtype == second.dtype
    step = max(1, _COMPARED_BYTES // max(1, first.nbytes // first.shape[0]))
    for start in range(0, first.shape[0] if same else 0, step):
        rows, others = (
            tensor.array()[start : start + step].view(np.uint8) for tensor in (first, second)
        )
        same = same and np.array_equal(rows, others)
    first.release()
    second.release()
    if not same:
        raise TensorSetError(
            f"config.json says tie_word_embeddings, but {second.name} differs from {first.name}; "
            "set it to false if the output matrix is its own"
        )


def _common_dtype(placed: Placed) -> str:
    """Return the dtype of all matrices; norms may have another one."""
    names: dict[str, list[str]] = {}
    for name, (file, tensor) in placed.items():
        if len(tensor.shape) == 2:
            names.setdefault(tensor.dtype, []).append(f"{name} in {file.path.name}")
    if len(names) > 1:
        listed = "; ".join(f"{dtype}: {some(names[dtype])}" for dtype in sorted(names))
        raise TensorSetError(f"the matrices have different dtypes, expected one ({listed})")
    return next(iter(names))


def _notes(settings: HfConfig) -> tuple[str, ...]:
    notes = ["a Hugging Face checkpoint (config.json): q and k rows un-permuted", *settings.notes]
    if settings.tied:
        notes.append("the output matrix is the embedding table (tie_word_embeddings)")
    if settings.eos_ids:
        ids = ", ".join(map(str, settings.eos_ids))
        notes.append(
            f"config.json ends texts with the token {ids} too: generation stops there only with "
            f"stop_token_ids=[{ids}]"
        )
    return tuple(notes)
