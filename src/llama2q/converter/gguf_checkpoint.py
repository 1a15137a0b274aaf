"""A Llama model in a GGUF file, read under Meta's names."""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.converter.chat_template import checked_template, detect_template
from llama2q.converter.checkpoint import named_os_errors
from llama2q.converter.checkpoint_folder import find_licences, read_licences
from llama2q.converter.gguf_blocks import dense_rows, dequantize
from llama2q.converter.gguf_config import read_config
from llama2q.converter.gguf_file import GgufFile, GgufTensor
from llama2q.converter.gguf_folder import GgufParts, find_parts, plain_name
from llama2q.converter.gguf_tensors import EMBEDDINGS, OUTPUT, check_tensors, gguf_name
from llama2q.converter.gguf_tokenizer import read_tokenizer
from llama2q.converter.gguf_values import GgufValues
from llama2q.converter.json_file import shown
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.errors import InvalidArgumentError, TensorSetError
from llama2q.rope_scaling import RopeScaling

_NOTED = ("general.name", "general.license", "general.license.name", "general.license.link")
_QUANTIZATION_VERSION = 2
_IMPORTANCES = "quantize.imatrix."


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GgufCheckpoint(Closing):
    """An opened and checked GGUF file, or the parts of one (context manager); see `open`.

    Attributes
    ----------
    folder : Path
        The file, resolved: it stands for a folder, so that of a list of checksums beside it only
        what names the file itself counts.
    name : str
        The model's: by the file's name, else as the file says.
    config : ModelConfig
        Shape of the model.
    rope : RopeScaling
        How its positions are scaled.
    sources : list of Path
        Every file that is read.
    tokenizer_bytes : bytes
        The SentencePiece model.
    template_text : str or None
        The chat template's.
    licences : dict
        File name -> text of the licence files beside the file.
    shapes : dict
        Meta's tensor name -> shape, in the order of execution.
    notes : tuple of str
        What a user should know about the reading.
    has_importances : bool
        Whether the file says that an importance matrix was used for its codes.
    """

    folder: Path
    name: str
    config: ModelConfig
    rope: RopeScaling
    sources: list[Path]
    tokenizer_bytes: bytes = field(repr=False)
    template_text: str | None = field(repr=False)
    licences: dict[str, str] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    notes: tuple[str, ...]
    has_importances: bool
    _files: tuple[GgufFile, ...] = field(repr=False)
    _tensors: dict[str, GgufTensor] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a file and check all but the weights themselves.

        Parameters
        ----------
        path : str or Path
            The file; any part of a split one.

        Raises
        ------
        CheckpointError
            One of its subclasses, by what is wrong: missing, truncated or damaged files, a model
            that this engine does not compute, a tensor set or shape that is not that of one Llama
            model.
        TokenizerError
            The tokenizer is of another kind, or does not fit the model.
        """
        with named_os_errors(path):
            return cls._open(Path(path))

    @classmethod
    def _open(cls, path: Path) -> Self:
        parts = find_parts(path)
        with ExitStack() as stack:
            files = tuple(stack.enter_context(GgufFile(part)) for part in parts.paths)
            where = files[0].path.name
            values = GgufValues(where, files[0].values)
            tensors = _gather(files)
            n_rows = _n_rows(where, tensors)
            config = read_config(values, n_rows)
            if config.model.n_layers > len(tensors):
                raise TensorSetError(
                    f"{where} has {len(tensors)} tensors; its keys say {config.model.n_layers} "
                    "layers"
                )
            shapes = tensor_shapes(config.model)
            check_tensors(where, tensors, shapes)
            _check_quantization(values, tensors)
            tokenizer, notes = read_tokenizer(values, n_rows)
            template = values.text("tokenizer.chat_template")
            checkpoint = cls(
                folder=path.resolve(),
                name=parts.stem or plain_name(values.text("general.name") or ""),
                config=config.model,
                rope=config.rope,
                sources=list(parts.paths),
                tokenizer_bytes=tokenizer,
                template_text=None if template is None else checked_template(template, where),
                licences=read_licences(find_licences(path.parent, above=False)),
                shapes=shapes,
                notes=(*_notes(values, parts, tensors), *config.notes, *notes),
                has_importances=any(key.startswith(_IMPORTANCES) for key in values.values),
                _files=files,
                _tensors=tensors,
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
        title = self._files[0].values.get("general.name")
        name = f"{self.name} {title}" if isinstance(title, str) else self.name
        return detect_template(name.strip(), self.template_text)

    @property
    def dtype(self) -> str:
        """Return "f32", "f16" or "bf16" where all matrices are; else "dense" or "quantized"."""
        kinds = {self.tensor(name).type.dense for name, s in self.shapes.items() if len(s) == 2}
        if len(kinds) == 1:
            return kinds.pop() or "quantized"
        return "quantized" if None in kinds else "dense"

    def tensor(self, name: str) -> GgufTensor:
        """Return a tensor as the file has it.

        Parameters
        ----------
        name : str
            Meta's name, one of `shapes`.

        Raises
        ------
        InvalidArgumentError
            There is no such tensor.
        """
        if name not in self.shapes:
            raise InvalidArgumentError(f"the checkpoint has no tensor {name!r}")
        stored = gguf_name(name)
        return self._tensors[stored if stored in self._tensors else EMBEDDINGS]

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor.

        Parameters
        ----------
        name : str
            Meta's name, one of `shapes`.

        Returns
        -------
        float32, float16 or uint16 (the bits of bf16), of shape `shapes[name]`
            Read-only; a view of the mapped file where the tensor holds plain numbers, else its
            values in float32.

        Raises
        ------
        InvalidArgumentError
            There is no such tensor.
        ClosedError
            The checkpoint has been closed.
        MissingPackageError
            The package gguf is needed for this type.
        """
        tensor = self.tensor(name)
        if tensor.type.dense is not None:
            return dense_rows(tensor.rows(), tensor.type.dense).reshape(tensor.shape)
        weights = dequantize(tensor.rows(), tensor.type)
        tensor.release()
        weights.flags.writeable = False
        return weights

    def reading_bytes(self, name: str) -> int:
        """Return the most memory that a tensor's mapped pages take, in bytes."""
        return self.tensor(name).nbytes

    def release(self, name: str) -> None:
        """Give a tensor's mapped pages back to the kernel; it can still be read again."""
        self.tensor(name).release()

    def check_crc(self, name: str, except_in: Container[Path] = ()) -> None:
        """Do nothing: the form has no checksums."""

    def close(self) -> None:
        """Unmap the files; arrays handed out stay valid."""
        for file in self._files:
            file.close()


def _gather(files: Sequence[GgufFile]) -> dict[str, GgufTensor]:
    """Put the tensors of all parts together; check that these are the parts of one model."""
    tensors: dict[str, GgufTensor] = {}
    for number, file in enumerate(files):
        values = GgufValues(file.path.name, file.values)
        found = (values.integer("split.no") or 0, values.integer("split.count") or 1)
        if found != (number, len(files)):
            raise TensorSetError(
                f"{file.path.name} says that it is part {found[0] + 1} of {found[1]}; its name "
                f"makes it {number + 1} of {len(files)}. Give it the name that it had, or "
                "download it again"
            )
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise TensorSetError(f"{name} is in {file.path.name} and in a part before it")
            tensors[name] = tensor
    expected = GgufValues(files[0].path.name, files[0].values).integer("split.tensors.count")
    if len(files) > 1 and expected not in (None, len(tensors)):
        raise TensorSetError(
            f"{files[0].path.name} says that the parts hold {expected} tensors; they hold "
            f"{len(tensors)}. Are they of one download?"
        )
    return tensors


def _n_rows(where: str, tensors: dict[str, GgufTensor]) -> int:
    if EMBEDDINGS not in tensors:
        raise TensorSetError(
            f"{where} has no embedding table ({EMBEDDINGS}): it holds no whole language model"
        )
    return tensors[EMBEDDINGS].shape[0]


def _check_quantization(values: GgufValues, tensors: dict[str, GgufTensor]) -> None:
    version = values.integer("general.quantization_version")
    is_quantized = any(tensor.type.dense is None for tensor in tensors.values())
    if is_quantized and version not in (None, _QUANTIZATION_VERSION):
        raise TensorSetError(
            f"{values.where}: general.quantization_version is {version}; expected "
            f"{_QUANTIZATION_VERSION}: take a newer file of the model"
        )


def _notes(values: GgufValues, parts: GgufParts, tensors: dict[str, GgufTensor]) -> tuple[str, ...]:
    said = [
        f"{key.removeprefix('general.')} {shown(values.text(key))}"
        for key in _NOTED
        if isinstance(values.values.get(key), str)
    ]
    count = f" in {len(parts.paths)} parts" if len(parts.paths) > 1 else ""
    notes = [f"a GGUF file{count}: " + (", ".join(said) or "without name and licence")]
    if OUTPUT not in tensors:
        notes.append(f"the output matrix is the embedding table (no {OUTPUT})")
    return tuple(notes)
