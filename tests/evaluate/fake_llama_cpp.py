"""A stand-in for llama-cpp-python's low-level interface, and what its tests share."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

VOCAB = 5

needs_llama_cpp = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("llama_cpp", "gguf")),
    reason="pip install llama-cpp-python gguf",
)


class Entry(ctypes.Structure):
    """Importances of a matrix, as llama.cpp takes them."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


class FakeLlamaCpp(SimpleNamespace):
    """llama.cpp whose logit of a token t at position p is 10 p + t in column 0, then +1 each."""

    __version__ = "0"
    LLAMA_FLASH_ATTN_TYPE_DISABLED = 0
    llama_log_callback = staticmethod(lambda function: function)
    ggml_backend_sched_eval_callback = staticmethod(lambda function: function)
    llama_model_imatrix_data = Entry

    def __init__(self, **codes: Any) -> None:
        super().__init__(calls=[], code=0, loads=True, opens=True, params=None, **codes)

    def llama_log_set(self, callback: Any, _data: Any) -> None:
        self.log = callback

    def llama_model_quantize_default_params(self) -> Any:
        return SimpleNamespace()

    def llama_model_quantize(self, source: bytes, target: bytes, params: Any) -> int:
        self.params = params
        if self.code == 0:
            Path(target.decode()).write_bytes(Path(source.decode()).read_bytes())
        self.log(2, b"said in passing\n", None)
        self.log(4, b"tensor too odd\n", None)
        return self.code

    def llama_model_default_params(self) -> Any:
        return SimpleNamespace()

    llama_context_default_params = llama_model_default_params

    def llama_model_load_from_file(self, _path: bytes, params: Any) -> Any:
        assert params.n_gpu_layers == 0
        return "model" if self.loads else None

    def llama_init_from_model(self, _model: Any, params: Any) -> Any:
        self.params = params
        return "context" if self.opens else None

    def llama_model_get_vocab(self, _model: Any) -> Any:
        return "vocabulary"

    def llama_vocab_n_tokens(self, _vocabulary: Any) -> int:
        return VOCAB

    def llama_model_n_layer(self, _model: Any) -> int:
        return 2

    def llama_get_memory(self, _context: Any) -> Any:
        return "memory"

    def llama_memory_clear(self, memory: Any, data: bool) -> None:
        self.calls.append(("clear", memory, data))

    def llama_batch_init(self, n: int, embeddings: int, n_sequences: int) -> Any:
        assert (embeddings, n_sequences) == (0, 1)
        fields = ("token", "pos", "n_seq_id", "logits")
        return SimpleNamespace(**{f: [None] * n for f in fields}, seq_id=[[None] for _ in range(n)])

    def llama_batch_free(self, _batch: Any) -> None:
        self.calls.append("free batch")

    def llama_decode(self, _context: Any, batch: Any) -> int:
        assert batch.n_tokens == len(batch.token)
        assert set(batch.n_seq_id) == {1}
        assert batch.seq_id == [[0]] * batch.n_tokens
        rows = zip(batch.token, batch.pos, batch.logits, strict=True)
        wanted = [10 * p + t for t, p, asked in rows if asked]
        self.out = np.float32([[first + i for i in range(VOCAB)] for first in wanted])
        return self.code

    def llama_get_logits(self, _context: Any) -> Any:
        return self.out.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def llama_free(self, context: Any) -> None:
        self.calls.append(("free", context))

    def llama_model_free(self, model: Any) -> None:
        self.calls.append(("free", model))


class FakeGgml:
    """Values are (name, rows)."""

    def __init__(self) -> None:
        pointer = ctypes.POINTER(ctypes.c_float)
        self.ggml_get_name = mock(lambda value: value[0].encode())
        self.ggml_nrows = mock(lambda value: len(value[1]))
        self.ggml_nelements = mock(lambda value: value[1].size)
        self.ggml_get_data_f32 = mock(lambda value: value[1].ctypes.data_as(pointer))


def mock(function: Callable[[Any], Any]) -> Any:
    return Mock(side_effect=function)
