"""llama.cpp for quality.py: its quantizer and its engine, through llama-cpp-python.

pip install llama-cpp-python gguf
"""

from __future__ import annotations

import ctypes
import importlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.closing import Closing
from llama2q.errors import Llama2qError
from llama2q.evaluate.comparison import ComparedModel

PACKAGES = ("llama-cpp-python", "gguf")
_F32 = 0
"""Number of F32, both among types of files and among types of tensors."""
_Q8_0 = 8
"""GGML's number of that type of tensors."""
_WARNING = 3
_messages: deque[str] = deque(maxlen=8)
"""The last warnings and errors of llama.cpp."""


class PeerError(Llama2qError):
    """llama.cpp is not there, or failed."""


@dataclass(frozen=True, slots=True)
class PeerType:
    """A way in which llama.cpp quantizes.

    Attributes
    ----------
    name : str
    number : int
        Its `llama_ftype`.
    outer_number : int or None
        GGML's type of the embeddings and the output matrix; None leaves it to llama.cpp.
    """

    name: str
    number: int
    outer_number: int | None = None

    @property
    def is_f32(self) -> bool:
        """Whether it is the same weights, only wider."""
        return self.number == _F32

    @property
    def takes_importances(self) -> bool:
        """Whether importances change what it chooses."""
        return self.name not in ("F32", "Q8_0") and self.outer_number is None


TYPES: tuple[PeerType, ...] = (
    PeerType("F32", _F32),
    PeerType("Q8_0", 7),
    PeerType("Q6_K", 18),
    PeerType("Q5_K_M", 17),
    PeerType("Q4_K_M", 15),
    PeerType("Q4_K_M+Q8_0", 15, _Q8_0),
    PeerType("Q4_K_S", 14),
    PeerType("IQ4_NL", 25),
    PeerType("Q4_0", 2),
    PeerType("IQ4_XS", 30),
)
"""What is measured.

F32 is no quantization: it shows that both programs compute the same model. +Q8_0 has embeddings and
output matrix in 8 bits, as our files have them, where llama.cpp by itself takes fewer.
"""


@dataclass(frozen=True, slots=True)
class PeerFile:
    """What a GGUF file of llama.cpp's holds.

    Attributes
    ----------
    model : ComparedModel
    types : str
        For people: how many matrices of the layers have which type, and the types of the others.
    """

    model: ComparedModel
    types: str

    @classmethod
    def of(cls, path: Path) -> PeerFile:
        """Read the list of tensors."""
        gguf = import_peer("gguf")
        layers: Counter[str] = Counter()
        others: dict[str, str] = {}
        n_bytes = n_weights = 0
        for tensor in gguf.GGUFReader(path).tensors:
            kind = str(tensor.tensor_type.name)
            if len(tensor.shape) < 2:
                continue
            if tensor.name.startswith("blk."):
                layers[kind] += 1
                n_bytes += int(tensor.n_bytes)
                n_weights += int(tensor.n_elements)
            else:
                others[tensor.name.removesuffix(".weight")] = kind
        listed = [f"{count} {kind}" for kind, count in layers.most_common()]
        listed += [f"{name} {kind}" for name, kind in others.items()]
        model = ComparedModel(
            path=str(path),
            model_id="",
            type=" + ".join(kind for kind, _ in layers.most_common()),
            bits_per_weight=8 * n_bytes / n_weights,
            file_bytes=path.stat().st_size,
            kv_dtype="f32",
        )
        return cls(model, ", ".join(listed))


def version() -> str:
    """Return what is installed, or raise PeerError with what to do."""
    import_peer("gguf")
    return f"{PACKAGES[0]} {import_peer('llama_cpp').__version__}"


def quantize(
    source: Path,
    target: Path,
    kind: PeerType,
    n_threads: int | None = None,
    importances: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write a GGUF file in another type, by llama.cpp's own rules.

    Parameters
    ----------
    source, target : Path
    kind : PeerType
    n_threads : int or None
    importances : mapping or None
        GGUF's name of a matrix -> float32, (in_features,): how much each of its columns matters.

    Raises
    ------
    PeerError
        If llama.cpp refuses.
    """
    lib = _library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = kind.number
    params.nthread = n_threads or _core.default_threads()
    if kind.outer_number is not None:
        params.token_embedding_type = params.output_tensor_type = kind.outer_number
    if importances is not None:
        entry = lib.llama_model_imatrix_data
        float_pointer = ctypes.POINTER(ctypes.c_float)
        entries = [
            entry(name.encode(), values.ctypes.data_as(float_pointer), values.size)
            for name, values in importances.items()
        ]
        params.imatrix = (entry * (len(entries) + 1))(*entries)  # one without a name ends it
    code = lib.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if code != 0 or not target.exists():
        raise PeerError(f"llama.cpp did not quantize to {kind.name}: {_last_words()}")


class LlamaCpp(Closing):
    """A GGUF file open in llama.cpp, with a KV cache in f32. A context manager.

    Called, it computes a window: it is a `llama2q.evaluate.compare.ScoreWindow`.
    """

    def __init__(
        self,
        path: Path,
        n_ctx: int,
        n_threads: int | None = None,
        watch: Callable[[Any, bool, Any], bool] | None = None,
    ) -> None:
        """Load it.

        Parameters
        ----------
        path : Path
        n_ctx : int
            Tokens of a window.
        n_threads : int or None
        watch : callable or None
            llama.cpp's `cb_eval`: sees the values that are computed.

        Raises
        ------
        PeerError
            If llama.cpp cannot.
        """
        self._lib = _library()
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise PeerError(f"llama.cpp did not load {path.name}: {_last_words()}")
        self._context: Any = None
        self._watch = self._lib.ggml_backend_sched_eval_callback(watch) if watch else None
        try:
            self._context = self._open_context(n_ctx, n_threads or _core.default_threads())
        except PeerError:
            self.close()
            raise
        vocabulary = self._lib.llama_model_get_vocab(self._model)
        self._vocab_size = int(self._lib.llama_vocab_n_tokens(vocabulary))
        self.n_layers = int(self._lib.llama_model_n_layer(self._model))

    def _open_context(self, n_ctx: int, n_threads: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = _F32
        if self._watch is not None:
            params.cb_eval = self._watch
        params.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise PeerError(f"llama.cpp made no context of {n_ctx} tokens: {_last_words()}")
        return context

    def close(self) -> None:
        """Free it."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def __call__(
        self, tokens: Sequence[int], first_row: int
    ) -> Iterator[tuple[NDArray[np.float32], Sequence[int]]]:
        """Compute logits of rows first_row to len(tokens) - 2 of a window, in one piece.

        Raises
        ------
        PeerError
            If llama.cpp fails.
        """
        n_fed = len(tokens) - 1
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        with self._batch(tokens[:n_fed], first_row) as batch:
            code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise PeerError(f"llama.cpp's decode returned {code}: {_last_words()}")
        pointer = ctypes.cast(
            self._lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float)
        )
        rows = np.ctypeslib.as_array(pointer, (n_fed - first_row, self._vocab_size))
        yield rows.copy(), tokens[first_row + 1 :]

    @contextmanager
    def _batch(self, tokens: Sequence[int], first_row: int) -> Iterator[Any]:
        """Lay tokens out as one sequence whose logits are asked for from a row on."""
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for position, token in enumerate(tokens):
                batch.token[position] = token
                batch.pos[position] = position
                batch.n_seq_id[position] = 1
                batch.seq_id[position][0] = 0
                batch.logits[position] = position >= first_row
            yield batch
        finally:
            self._lib.llama_batch_free(batch)


def _library() -> Any:
    """Return llama-cpp-python's low-level interface, its log kept for messages."""
    package = import_peer("llama_cpp")
    package.llama_log_set(_keep_log(package), ctypes.c_void_p(0))
    return package


_callbacks: list[Any] = []


def _keep_log(package: Any) -> Any:
    """Return the one callback, which must outlive every call."""
    if not _callbacks:

        @package.llama_log_callback  # type: ignore[untyped-decorator]
        def keep(level: int, text: bytes, _user_data: Any) -> None:
            if level >= _WARNING:
                _messages.append(text.decode("utf-8", "replace").strip())

        _callbacks.append(keep)
    return _callbacks[0]


def _last_words() -> str:
    return " ".join(_messages) or "it gave no reason"


def import_peer(name: str) -> ModuleType:
    """Import a module of `PACKAGES`, or raise PeerError with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PeerError(
            f"llama.cpp is measured through {' and '.join(PACKAGES)}; {name} is missing: "
            f"pip install {' '.join(PACKAGES)}"
        ) from error
