"""Loading: arguments, the KV rule, the size of the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama2q
from llama2q import _core
from llama2q.engine import Engine
from llama2q.errors import InsufficientMemoryError, InvalidArgumentError, NotAnL2qFileError


def test_auto_is_logged(
    mini_file: Path, convert_mini: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llama2q")
    for path, kv_dtype in ((mini_file, "f16"), (convert_mini(quant="none"), "f32")):
        with Engine(path) as opened:
            assert opened.kv_dtype == kv_dtype
        assert f"KV cache {kv_dtype} (chosen)" in caplog.text


@pytest.mark.parametrize(
    ("available", "n_contexts"), [(20 * 2**20, 1), (40 * 2**20, 1), (70 * 2**20, 3), (2**40, 8)]
)
def test_size_of_the_cache(
    mini_file: Path, monkeypatch: pytest.MonkeyPatch, available: int, n_contexts: int
) -> None:
    monkeypatch.setattr("llama2q.memory.available_bytes", lambda: available)
    with Engine(mini_file, kv_dtype="f16") as opened:
        # 4096 tokens of 3072 bytes each: 12 MiB a context, beside 12 MiB of weights and work space.
        assert opened.pool.n_blocks == 64 * n_contexts == 64 * opened.plan.n_sequences


def test_refused_before_anything_is_allocated(
    mini_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> None:
        pytest.fail("the model was built")

    monkeypatch.setattr("llama2q.memory.available_bytes", lambda: 16 * 2**20)
    monkeypatch.setattr("llama2q.engine.build_model", build)
    message = r" free: does not fit, even with the weights left on disk\. Would fit: "
    for kv_dtype in ("f16", "f32"):
        with pytest.raises(InsufficientMemoryError, match=message) as caught:
            llama2q.load(mini_file, kv_dtype=kv_dtype)
        assert isinstance(caught.value, MemoryError)
    with pytest.raises(InsufficientMemoryError, match="Would fit: 2 contexts "):
        Engine(mini_file, n_ctx=512, kv_dtype="f16", max_sequences=8)


def test_explicit_settings_are_kept(mini_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2q.memory.available_bytes", lambda: 20 * 2**20)
    with Engine(mini_file) as chosen, Engine(mini_file, kv_dtype="f16", n_ctx=1000) as given:
        assert (chosen.kv_dtype, chosen.n_ctx) == ("int8", 4096)
        assert (given.kv_dtype, given.n_ctx) == ("f16", 1000)


def test_weights_larger_than_memory_warn(
    mini_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llama2q.memory.available_bytes", lambda: 20 * 2**20)
    caplog.set_level(logging.WARNING, "llama2q")
    with Engine(mini_file, kv_dtype="f16"):
        pass
    assert "will be read from disk at each step. Would fit: " in caplog.text


def test_no_more_threads_than_cpus(mini_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    n_cpus = _core.usable_cpus()
    caplog.set_level(logging.WARNING, "llama2q")
    with Engine(mini_file, n_threads=n_cpus) as engine:
        assert engine.n_threads == n_cpus
    assert caplog.text == ""
    with Engine(mini_file, n_threads=n_cpus + 3) as engine:
        assert engine.n_threads == n_cpus
    assert f"n_threads is {n_cpus + 3}; this process may use {n_cpus} CPUs" in caplog.text


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
