"""Loading: arguments, the KV rule, the size of the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama2q
from llama2q import engine
from llama2q.config import ModelConfig
from llama2q.engine import Engine, choose_kv_dtype, kv_bytes_per_token
from llama2q.errors import InvalidArgumentError, NotAnL2qFileError

LLAMA_7B = ModelConfig(
    dim=4096,
    hidden_dim=11008,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    vocab_size=32000,
    norm_eps=1e-5,
)
GIB = 2**30


def test_kv_sizes_of_7b() -> None:
    assert 4096 * kv_bytes_per_token(LLAMA_7B, "f16") == 2 * GIB
    assert 4096 * kv_bytes_per_token(LLAMA_7B, "f32") == 4 * GIB
    assert 4096 * kv_bytes_per_token(LLAMA_7B, "int8") == GIB + GIB * 2 // 128


def test_kv_rule() -> None:
    def choose(quant: str, available: float) -> str:
        return choose_kv_dtype(LLAMA_7B, quant, 4096, int(3.6e9), int(available * GIB))

    assert choose("none", 1) == "f32"
    assert choose("int4", 8) == "f16"
    assert choose("int4", 5.5) == "int8"
    assert choose("int8", 5.7) == "f16"


def test_auto_is_logged(
    mini_file: Path, convert_mini: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llama2q")
    for path, kv_dtype in ((mini_file, "f16"), (convert_mini(quant="none"), "f32")):
        with Engine(path) as opened:
            assert opened.kv_dtype == kv_dtype
        assert f"KV cache {kv_dtype} (chosen)" in caplog.text


@pytest.mark.parametrize(
    ("available", "n_contexts"), [(0, 1), (29 * 2**20, 1), (70 * 2**20, 4), (2**40, 8)]
)
def test_size_of_the_cache(
    mini_file: Path, monkeypatch: pytest.MonkeyPatch, available: int, n_contexts: int
) -> None:
    monkeypatch.setattr(engine, "_available_bytes", lambda: available)
    with Engine(mini_file, kv_dtype="f16") as opened:
        # 4096 tokens of 3072 bytes each: 12 MiB a context.
        assert opened.pool.n_blocks == 64 * n_contexts


def test_context_is_the_models(mini_file: Path) -> None:
    with llama2q.load(mini_file) as llm:
        assert llm.n_ctx == llm.config.max_seq_len == 4096
    with llama2q.load(mini_file, n_ctx=100) as llm:
        assert llm.n_ctx == 100


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_ctx", 0, "n_ctx is 0; expected an integer of at least 1"),
        ("n_ctx", 4097, "n_ctx is 4097; the model's context is 4096 tokens at most"),
        ("n_threads", 0, "n_threads is 0"),
        ("n_threads", 2.0, r"n_threads is 2\.0"),
        ("kv_dtype", "f8", "kv_dtype is 'f8'; expected one of auto, f32, f16, int8"),
    ],
)
def test_arguments_out_of_range(mini_file: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        llama2q.load(mini_file, **{name: value})


def test_not_a_model(mini_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(NotAnL2qFileError):
        llama2q.load(mini_checkpoint / "tokenizer.model")
    with pytest.raises(FileNotFoundError):
        llama2q.load(tmp_path / "none.l2q")
