"""A LoRA adapter as PEFT saves it: a folder with its config and tensors, fitted to a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.converter.checkpoint import check_names, check_overlaps, named_os_errors, some
from llama2q.converter.checkpoint_folder import find_licences, read_licences, require_file
from llama2q.converter.hf_tensors import hf_name
from llama2q.converter.hub_cache import model_name, snapshot_in
from llama2q.converter.json_file import shown
from llama2q.converter.lora_config import CONFIG, LoraConfig, read_lora_config
from llama2q.converter.mapped_tensor import NUMPY_DTYPES, MappedTensor, WeightFile
from llama2q.converter.pth import ShardFile
from llama2q.converter.safetensors_file import SafetensorsFile
from llama2q.errors import (
    AdapterError,
    CheckpointNotFoundError,
    NonFiniteWeightError,
    UnsupportedAdapterError,
)
from llama2q.quant.bits import nonfinite, widen

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""The first that is there is read, as PEFT does."""
_TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
_PREFIX = "base_model.model."
_EMBEDDINGS = "model.embed_tokens"
_OUTER = (_EMBEDDINGS, "lm_head")
"""Modules that PEFT saves whole unasked when they were resized or updated."""

_PARTS = {
    ".lora_A.weight": "A",
    ".lora_A.default.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.default.weight": "B",
    ".lora_embedding_A": "embedding A",
    ".lora_embedding_A.default": "embedding A",
    ".lora_embedding_B": "embedding B",
    ".lora_embedding_B.default": "embedding B",
    ".base_layer.weight": "base",
    ".modules_to_save.weight": "whole",
    ".modules_to_save.default.weight": "whole",
    ".weight": "whole",
}
"""Ends of names -> what the tensor is to its module; the first that fits counts."""
_NOT_MERGED = {
    "lora_magnitude_vector": "magnitudes of rows (DoRA), which are not merged here",
    "bias": "a bias; this engine does not compute any, Llama 2 has none",
    "trainable_tokens_delta": "single rows (trainable_token_indices), which are not merged here",
}
"""Components of names -> what the tensor is."""
_OTHER_VOCABULARY = (
    "; if it was trained with more tokens, merge it with PEFT (merge_and_unload, then "
    "save_pretrained) and convert the result"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update of one matrix: its scale times the product of two factors.

    Attributes
    ----------
    a, b : MappedTensor
        (rank, cols) and (rows, rank); of an embedding table (rank, rows) and (cols, rank), as it is
        the transposed product that is added.
    scale : float
    of_table : bool
        Whether it is an embedding table's.
    """

    a: MappedTensor
    b: MappedTensor
    scale: float
    of_table: bool

    @property
    def rank(self) -> int:
        """Terms of the product."""
        return self.a.shape[0]

    def factors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what to multiply: (rows, rank) with the scale in it, and (rank, cols)."""
        a, b = (finite_array(tensor).astype(np.float64) for tensor in (self.a, self.b))
        left, right = (a.T, b.T) if self.of_table else (b, a)
        return self.scale * left, np.ascontiguousarray(right)


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter does to one tensor: it replaces it, or adds to it, or both."""

    whole: MappedTensor | None
    low_rank: LowRank | None

    @property
    def tensors(self) -> tuple[MappedTensor, ...]:
        """The adapter's tensors that are used."""
        pair = () if self.low_rank is None else (self.low_rank.a, self.low_rank.b)
        return pair if self.whole is None else (self.whole, *pair)

    @property
    def rank(self) -> int:
        """Terms of the product that is added; 0 without one."""
        return 0 if self.low_rank is None else self.low_rank.rank

    @property
    def reading_bytes(self) -> int:
        """The most memory that the adapter's tensors take: pages, and what checks and widens."""
        n_elements = sum(math.prod(tensor.shape) for tensor in self.tensors)
        return sum(tensor.nbytes for tensor in self.tensors) + 9 * n_elements


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LoraAdapter(Closing):
    """An opened adapter (context manager); see `open`.

    Attributes
    ----------
    name : str
        Of the hub's repository for a snapshot in its cache, else the folder's.
    config : LoraConfig
    licences : dict
        File name -> text of the licence files in the folder.
    has_tokenizer : bool
        Whether files of a tokenizer lie in the folder.
    """

    name: str
    config: LoraConfig
    licences: dict[str, str] = field(repr=False)
    has_tokenizer: bool
    _config_path: Path
    _file: WeightFile = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an adapter's folder and check its config; `updates` checks the tensors.

        Raises
        ------
        CheckpointNotFoundError
            It holds no adapter.
        AdapterError
            Its config is unsound, or asks for what cannot be merged exactly.
        CheckpointError
            Its tensors' file is damaged or of another form.
        """
        with named_os_errors(folder):
            place = snapshot_in(folder).resolve()
            weights = _find_weights(folder, place)
            config = read_lora_config(place / CONFIG)
            licences = tuple(path for path in find_licences(place) if path.parent == place)
            return cls(
                name=model_name(place),
                config=config,
                licences=read_licences(licences),
                has_tokenizer=any((place / name).exists() for name in _TOKENIZER_FILES),
                _config_path=place / CONFIG,
                _file=_open_weights(weights),
            )

    @property
    def sources(self) -> list[Path]:
        """Every file that is read."""
        return [self._file.path, self._config_path]

    def updates(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Update]:
        """Fit the adapter to a model.

        Parameters
        ----------
        shapes : mapping
            Meta's name -> shape of each tensor of the model.

        Returns
        -------
        dict
            Meta's name -> what is done to the tensor; in the order of `shapes`.

        Raises
        ------
        AdapterError
            A tensor belongs to no module of the model, has another shape than the module or the
            config make it, is incomplete, or is missing.
        """
        check_names(self._file)
        check_overlaps(self._file, frozenset())
        modules = {hf_name(name).removesuffix(".weight"): name for name in shapes}
        found = self._sort(modules)
        if not found:
            raise AdapterError(f"{self._file.path.name} holds no tensors; expected a LoRA adapter")
        updates = {
            name: self._update(module, found[module], shapes[name])
            for module, name in modules.items()
            if module in found
        }
        self._check_complete({module: shapes[name] for module, name in modules.items()}, found)
        return updates

    def check_crc(self, tensor: MappedTensor) -> None:
        """Check the CRC-32 of one of the adapter's tensors, which adapter_model.bin has."""
        self._file.check_crc(tensor.name)

    @property
    def weights_path(self) -> Path:
        """The file of the tensors."""
        return self._file.path

    def close(self) -> None:
        """Unmap the file; arrays handed out stay valid."""
        self._file.close()

    def _sort(self, modules: Mapping[str, str]) -> dict[str, dict[str, MappedTensor]]:
        """Return each module's tensors by what they are to it."""
        found: dict[str, dict[str, MappedTensor]] = {}
        for name, tensor in self._file.tensors.items():
            module, part = self._split(name)
            if module not in modules:
                raise AdapterError(
                    f"{self._file.path.name}: {name} belongs to {module}, which this model of "
                    f"{_n_layers(modules)} layers does not have: the adapter was trained on "
                    f"{self.config.base_model or 'another model'}"
                )
            if tensor.dtype not in NUMPY_DTYPES:
                raise self._fault(
                    tensor, f"has the dtype {tensor.dtype}; expected {', '.join(NUMPY_DTYPES)}"
                )
            if part in found.setdefault(module, {}):
                raise self._fault(tensor, "is there twice, once under another name")
            found[module][part] = tensor
        return found

    def _split(self, name: str) -> tuple[str, str]:
        for component, what in _NOT_MERGED.items():
            if component in name.split("."):
                raise UnsupportedAdapterError(f"{self._file.path.name}: {name} holds {what}")
        for ending, part in _PARTS.items():
            if name.startswith(_PREFIX) and name.endswith(ending):
                return name[len(_PREFIX) : -len(ending)], part
        raise AdapterError(
            f"{self._file.path.name}: {name} is no tensor of a LoRA adapter as PEFT saves it "
            f"({_PREFIX}MODULE.lora_A.weight and the like)"
        )

    def _check_complete(
        self,
        modules: Mapping[str, tuple[int, ...]],
        found: Mapping[str, Mapping[str, MappedTensor]],
    ) -> None:
        """Compare the modules that have tensors with those that the config means."""
        where, config = self._file.path.name, self.config
        replaced = {module for module in modules if config.replaces(module)}
        missing = [m for m in modules if m in replaced and "whole" not in found.get(m, {})]
        if missing:
            raise AdapterError(
                f"{where} lacks {some(missing)}, which modules_to_save in {CONFIG} names"
            )
        for module, parts in found.items():
            if {"whole", "base"} & set(parts) and not (module in replaced or module in _OUTER):
                raise AdapterError(
                    f"{where} replaces {module}, which modules_to_save in {CONFIG} does not name"
                )
        if config.targets is None:
            return
        meant = {
            module
            for module, shape in modules.items()
            if len(shape) == 2 and config.targets.include(module) and module not in replaced
        }
        updated = {module for module, parts in found.items() if set(parts) - {"whole", "base"}}
        for label, names in (
            ("lacks an update of", [m for m in modules if m in meant - updated]),
            ("updates", [m for m in modules if m in updated - meant]),
        ):
            if names:
                verb = "means" if label.startswith("lacks") else "does not mean"
                raise AdapterError(
                    f"{where} {label} {some(names)}, which target_modules in {CONFIG} {verb}; are "
                    "the two files of one adapter?"
                )

    def _update(
        self, module: str, parts: Mapping[str, MappedTensor], shape: tuple[int, ...]
    ) -> Update:
        of_table = module == _EMBEDDINGS
        a, b = ("embedding A", "embedding B") if of_table else ("A", "B")
        low_rank = set(parts) - {"whole", "base"}
        if low_rank not in (set(), {a, b}) or ("whole" in parts and len(parts) > 1):
            found = some([tensor.name for tensor in parts.values()])
            raise AdapterError(
                f"{self._file.path.name} has of {module}: {found}; expected lora_A and lora_B "
                "(lora_embedding_A and lora_embedding_B of the embedding table), or the whole"
            )
        if parts.keys() == {"base"}:
            raise self._fault(parts["base"], "comes without the update that belongs to it")
        whole = parts.get("whole", parts.get("base"))
        if whole is not None:
            self._check_shape(module, whole, shape)
        if not low_rank:
            return Update(whole, None)
        if len(shape) != 2:
            raise self._fault(parts[a], f"updates {module}, which is no matrix")
        rank, (rows, cols) = self.config.rank_of(module), shape
        self._check_shape(module, parts[a], (rank, rows if of_table else cols))
        self._check_shape(module, parts[b], (cols if of_table else rows, rank))
        scale = self.config.scale_of(module)
        return Update(whole, LowRank(parts[a], parts[b], scale, of_table))

    def _check_shape(self, module: str, tensor: MappedTensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise self._fault(
                tensor,
                f"has the shape {tensor.shape}; this model and {CONFIG} make it {shape}"
                + (_OTHER_VOCABULARY if module in _OUTER else ""),
            )

    def _fault(self, tensor: MappedTensor, what: str) -> AdapterError:
        return AdapterError(f"{self._file.path.name}: {tensor.name} {what}")


def finite_array(tensor: MappedTensor) -> NDArray[np.float32]:
    """Return an adapter's tensor, widened exactly.

    Raises
    ------
    NonFiniteWeightError
        An element is NaN or infinite.
    """
    array = tensor.array()
    bad = nonfinite(array)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        value = float(widen(array[at].reshape(1))[0])
        raise NonFiniteWeightError(
            f"{tensor.file.path.name}: {tensor.name}: element {at} is {value}; expected a finite "
            "number"
        )
    return widen(array)


def _find_weights(given: Path, place: Path) -> Path:
    """Return the file of the tensors, or raise CheckpointNotFoundError."""
    if not place.is_dir():
        kind = "a file" if place.exists() else "no folder"
        raise CheckpointNotFoundError(f"{given} is {kind}; give the folder of a LoRA adapter")
    if not (place / CONFIG).exists():
        below = sorted(child.name for child in place.iterdir() if (child / CONFIG).is_file())
        advice = f"try --lora {given / below[0]}" if below else "expected an adapter as PEFT saves"
        raise CheckpointNotFoundError(f"{given} holds no LoRA adapter ({CONFIG}); {advice}")
    require_file(place / CONFIG)
    for name in _WEIGHTS:
        if (place / name).exists() or (place / name).is_symlink():
            require_file(place / name)
            return place / name
    found = ", ".join(shown(child.name) for child in sorted(place.iterdir())[:5])
    raise CheckpointNotFoundError(
        f"{given} has {CONFIG} but neither {' nor '.join(_WEIGHTS)} (found {found})"
    )


def _open_weights(path: Path) -> WeightFile:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else ShardFile(path, hub=True)


def _n_layers(modules: Mapping[str, Any]) -> int:
    return sum(module.endswith("self_attn.q_proj") for module in modules)
