"""llama.cpp's importance matrix of a model: the mean square of every column that a matrix reads.

What llama.cpp's own program `imatrix` gathers, over the text that llama2q calibrates with.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.calibrate.text import default_text, windows
from llama2q.format.layout import TOKENIZER
from llama2q.format.reader import L2qFile
from llama2q.tokenizer import Tokenizer
from llama_cpp_peer import LlamaCpp, PeerError, import_peer

N_TOKENS = 20_000
WINDOW = 512

_READERS: Mapping[str, tuple[str, ...]] = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "kqv_out": ("attn_output",),
    "ffn_norm": ("ffn_gate", "ffn_up"),
    "ffn_swiglu": ("ffn_down",),
}
"""llama.cpp's name of a value in a layer -> the matrices that are multiplied with it."""
_NODE = re.compile(rf"({'|'.join(_READERS)})-(\d+)")
_LAST, _LAST_READER = "result_norm", "output.weight"

Importances = dict[str, NDArray[np.float32]]


def calibration_windows(model: Path) -> list[list[int]]:
    """Cut the text that comes with llama2q into the tokens of a `.l2q` file's model."""
    with L2qFile(model) as file:
        tokenizer = Tokenizer.from_bytes(file.array(TOKENIZER).tobytes())
    return windows(tokenizer, default_text(), N_TOKENS, WINDOW)


def importances(
    path: Path, texts: Sequence[Sequence[int]], n_threads: int | None = None
) -> Importances:
    """Run a model in llama.cpp and average the squares of what its matrices read.

    Parameters
    ----------
    path : Path
        A GGUF file, unquantized.
    texts : sequence of token lists
        Each is a context of its own.
    n_threads : int or None

    Returns
    -------
    dict
        GGUF's name of a matrix -> float32, (in_features,).

    Raises
    ------
    PeerError
        If llama.cpp computes under other names than are known here.
    """
    sums = _Sums()
    with LlamaCpp(path, max(map(len, texts)), n_threads, watch=sums.watch) as model:
        for tokens in texts:
            for _ in model([*tokens, 0], 0):  # the last one is never fed
                pass
        return sums.means(model.n_layers)


class _Sums:
    """Sums of squares, by llama.cpp's names of values."""

    def __init__(self) -> None:
        ggml = import_peer("llama_cpp._ggml").libggml
        self._name = ggml.ggml_get_name
        self._name.restype, self._name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self._data = ggml.ggml_get_data_f32
        self._data.restype = ctypes.POINTER(ctypes.c_float)
        self._data.argtypes = [ctypes.c_void_p]
        self._n_rows = ggml.ggml_nrows
        self._n_rows.restype, self._n_rows.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        self._size = ggml.ggml_nelements
        self._size.restype, self._size.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._rows: dict[str, int] = {}

    def watch(self, tensor: Any, ask: bool, _user_data: Any) -> bool:
        """Tell llama.cpp which values are wanted; take them when they are there."""
        name = self._name(tensor).decode()
        wanted = name == _LAST or _NODE.fullmatch(name) is not None
        if wanted and not ask:
            n = self._n_rows(tensor)
            shape = (n, self._size(tensor) // n)
            values = np.ctypeslib.as_array(self._data(tensor), shape).astype(np.float64)
            self._sums[name] = self._sums.get(name, 0.0) + (values**2).sum(axis=0)
            self._rows[name] = self._rows.get(name, 0) + n
        return wanted or not ask

    def means(self, n_layers: int) -> Importances:
        """Average, by the matrices that read the values."""
        found: Importances = {}
        readers = {
            f"{value}-{layer}": [f"blk.{layer}.{name}.weight" for name in names]
            for layer in range(n_layers)
            for value, names in _READERS.items()
        }
        for value, names in {**readers, _LAST: [_LAST_READER]}.items():
            if value not in self._sums:
                raise PeerError(
                    f"llama.cpp computed no value named {value}; expected what version 0.3.36 of "
                    "llama-cpp-python computes for a Llama model"
                )
            mean = (self._sums[value] / self._rows[value]).astype(np.float32)
            found.update(dict.fromkeys(names, mean))
        return found
