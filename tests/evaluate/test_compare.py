"""Comparisons against the same figures computed at once from both models' logits."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llama2q
from llama2q import Comparison
from llama2q.errors import (
    ContextLengthError,
    DiskSpaceError,
    InsufficientMemoryError,
    InvalidArgumentError,
    NonFiniteError,
    TokenizerError,
    VocabularyMismatchError,
)
from llama2q.evaluate.compare import Reference
from llama2q.format.layout import TOKENIZER
from llama2q.format.reader import L2qFile
from synthetic_l2q import write_l2q

ConvertMini = Callable[..., Path]
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 40
N_CTX = 64
N_WINDOWS = 3
SMALL = {"n_ctx": N_CTX, "n_tokens": 70, "n_threads": 1}
"""Three windows of 31 scored tokens."""


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def same_figures(one: Comparison, other: Comparison) -> bool:
    return dataclasses.replace(one, seconds=0.0) == dataclasses.replace(other, seconds=0.0)


@pytest.mark.parametrize(
    ("protocol", "first_row", "n_tokens"), [("llama.cpp", 32, 70), ("gptq", 0, 130)]
)
def test_against_numpy(
    convert_mini: ConvertMini, protocol: str, first_row: int, n_tokens: int
) -> None:
    a, b = convert_mini(quant="none"), convert_mini()
    found = llama2q.compare(
        a, b, TEXT, protocol=protocol, n_ctx=N_CTX, n_tokens=n_tokens, n_threads=1
    )  # fmt: skip
    p, q, targets = [], [], []
    with (
        llama2q.load(a, n_ctx=N_CTX, kv_dtype="f32") as reference,
        llama2q.load(b, n_ctx=N_CTX, kv_dtype="f32") as candidate,
    ):
        ids = reference.tokenizer.encode(TEXT)
        for i in range(N_WINDOWS):
            window = ids[N_CTX * i : N_CTX * (i + 1)]
            if protocol == "llama.cpp":
                window[0] = 1
            for llm, into in ((reference, p), (candidate, q)):
                logits = llm.logits(window)[first_row:-1].astype(np.float64)
                into.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
            targets.append(window[first_row + 1 :])
    p, q, targets = np.stack(p), np.stack(q), np.stack(targets)
    kl = (p * np.log(p / q)).sum(axis=2)
    p_next, q_next = (np.take_along_axis(x, targets[..., None], 2)[..., 0] for x in (p, q))

    def check(estimate: llama2q.evaluate.divergence.Estimate, values: np.ndarray) -> None:
        assert estimate.value == pytest.approx(values.mean(), rel=1e-9, abs=1e-12)
        error = values.mean(axis=1).std(ddof=1) / math.sqrt(N_WINDOWS)
        assert estimate.standard_error == pytest.approx(error, rel=1e-9, abs=1e-12)

    assert (found.n_windows, found.n_tokens, found.window) == (N_WINDOWS, kl.size, N_CTX)
    check(found.kl_mean, kl)
    check(found.same_top, p.argmax(axis=2) == q.argmax(axis=2))
    check(found.delta_p_mean, q_next - p_next)
    assert found.delta_p_rms.value == pytest.approx(np.sqrt(((q_next - p_next) ** 2).mean()))
    for key, value in found.kl_percentiles.items():
        assert value == pytest.approx(np.percentile(kl, float(key)), rel=1e-8)
    for key, value in found.delta_p_percentiles.items():
        assert value == pytest.approx(np.percentile(q_next - p_next, float(key)), abs=1e-12)
    for estimate, log_p in (
        (found.perplexity_a, -np.log(p_next)),
        (found.perplexity_b, -np.log(q_next)),
        (found.perplexity_ratio, np.log(p_next / q_next)),
    ):
        assert estimate.value == pytest.approx(np.exp(log_p.mean()), rel=1e-9)
        error = log_p.mean(axis=1).std(ddof=1) / math.sqrt(N_WINDOWS)
        assert estimate.standard_error == pytest.approx(estimate.value * error, rel=1e-9)
    assert set(found.kl_percentiles) == {"50", "90", "95", "99", "99.9", "100"}
    assert 0 < found.kl_mean.value < 0.2


def test_a_model_is_itself(convert_mini: ConvertMini, temp: Path) -> None:
    seen = []
    found = llama2q.compare(
        convert_mini(), convert_mini(), TEXT, **SMALL, progress=lambda *now: seen.append(now)
    )
    assert (found.kl_mean.value, found.kl_mean.standard_error) == (0.0, 0.0)
    assert set(found.kl_percentiles.values()) == {0.0}
    assert set(found.delta_p_percentiles.values()) == {0.0}
    assert found.delta_p_rms.value == 0.0
    assert (found.same_top.value, found.same_top.standard_error) == (1.0, 0.0)
    assert found.perplexity_a == found.perplexity_b
    assert (found.perplexity_ratio.value, found.perplexity_ratio.standard_error) == (1.0, 0.0)
    assert found.a == found.b
    assert seen == [(i + 1, 6) for i in range(6)]
    assert list(temp.iterdir()) == []


def test_what_is_said_of_the_models(convert_mini: ConvertMini) -> None:
    found = llama2q.compare(convert_mini(quant="none"), convert_mini(), TEXT, **SMALL)
    assert (found.a.type, found.a.bits_per_weight) == ("bf16", 16.0)
    # Codes of 4 bits and a scale of 16 for each 64; no matrix of the demo model is padded.
    assert (found.b.type, found.b.bits_per_weight) == ("int4/64/nonuniform", 4.25)
    assert found.b.file_bytes == convert_mini().stat().st_size
    with L2qFile(convert_mini()) as file:
        assert found.b.model_id == file.model_id
    assert json.loads(json.dumps(found.to_dict()))["kl_mean"]["value"] == found.kl_mean.value


def test_kv_types(convert_mini: ConvertMini) -> None:
    """Auto suits A for both; with A's type fixed, B's follows unless it has its own."""
    none, int4 = convert_mini(quant="none"), convert_mini()

    def kv_of(a: Path, b: Path, **kv: str) -> tuple[str, str]:
        found = llama2q.compare(a, b, TEXT, **SMALL, **kv)
        return found.a.kv_dtype, found.b.kv_dtype

    assert kv_of(none, int4) == ("f32", "f32")
    assert kv_of(int4, none) == ("f16", "f16")
    assert kv_of(none, int4, kv_dtype="int8") == ("int8", "int8")
    assert kv_of(none, int4, kv_dtype_b="auto") == ("f32", "f16")
    cache = llama2q.compare(int4, int4, TEXT, **SMALL, kv_dtype="f16", kv_dtype_b="int8")
    assert (cache.a.kv_dtype, cache.b.kv_dtype) == ("f16", "int8")
    assert 0 < cache.kl_mean.value < 0.005


def test_one_window_has_no_error(convert_mini: ConvertMini) -> None:
    found = llama2q.compare(
        convert_mini(), convert_mini(group_size=32), TEXT, n_ctx=N_CTX, n_tokens=31
    )
    assert found.n_windows == 1
    assert found.kl_mean.standard_error is None
    assert found.perplexity_b.standard_error is None


def test_rounds_and_kept_logits_change_nothing(convert_mini: ConvertMini, temp: Path) -> None:
    a, b = convert_mini(quant="none"), convert_mini()
    whole = llama2q.compare(a, b, TEXT, **SMALL)
    window_bytes = 4 * 4096 * 31
    for temp_bytes, held, second_total in (
        (1, window_bytes, 6),
        (2 * window_bytes, 2 * window_bytes, 6),
        (3 * window_bytes, 3 * window_bytes, 3),
        (10**9, 3 * window_bytes, 3),
    ):
        with Reference(a, TEXT, **SMALL, temp_bytes=temp_bytes) as reference:
            assert reference.temp_bytes == held
            assert same_figures(reference.compare(b), whole)
            seen = []
            again = reference.compare(b, progress=lambda *now, seen=seen: seen.append(now))
            assert same_figures(again, whole)
            assert seen[-1] == (second_total, second_total)
    assert list(temp.iterdir()) == []


def test_the_whole_text(convert_mini: ConvertMini) -> None:
    text = TEXT[: len(TEXT) // 4]
    with llama2q.load(convert_mini()) as llm:
        n_windows = len(llm.tokenizer.encode(text)) // N_CTX
    for n_tokens in (None, 10**9):
        found = llama2q.compare(
            convert_mini(), convert_mini(), text, n_ctx=N_CTX, n_tokens=n_tokens
        )
        assert (found.n_windows, found.n_tokens) == (n_windows, 31 * n_windows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"protocol": "hf"}, r"protocol is 'hf'; expected one of llama\.cpp, gptq"),
        ({"n_ctx": 3}, "a window of 3 tokens; expected an integer >= 4"),
        ({"n_ctx": 2.5}, "a window of 2.5 tokens"),
        ({"n_tokens": 0}, "n_tokens is 0"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"kv_dtype": "f8"}, "kv_dtype is 'f8'"),
        ({"kv_dtype_b": "f8"}, "kv_dtype is 'f8'"),
        ({"protocol": "gptq"}, r"the text has \d+ tokens; protocol gptq needs 2048 at least"),
    ],
)
def test_wrong_arguments(convert_mini: ConvertMini, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        llama2q.compare(convert_mini(), convert_mini(), TEXT, **wrong)


def test_a_window_beyond_the_context(convert_mini: ConvertMini) -> None:
    with pytest.raises(ContextLengthError, match=r"windows of 100000 tokens; the context of mini"):
        llama2q.compare(convert_mini(), convert_mini(), TEXT, n_ctx=100_000)


def test_other_vocabularies(convert_mini: ConvertMini, tmp_path: Path) -> None:
    with L2qFile(convert_mini()) as file:
        config, tokenizer = file.config, file.array(TOKENIZER).tobytes()
    # One more piece: Protocol Buffers append what follows to a repeated field.
    longer = tokenizer + b"\x0a\x0d\x0a\x06xyzzyq\x15" + struct.pack("<f", -1e4)
    other = tmp_path / "longer.l2q"
    write_l2q(dataclasses.replace(config, vocab_size=4097), longer, other)
    with pytest.raises(VocabularyMismatchError, match=r"longer\.l2q have 4096 and 4097 tokens"):
        llama2q.compare(convert_mini(), other, TEXT, **SMALL)
    piece = "▁the".encode()
    assert piece in tokenizer
    other = tmp_path / "other.l2q"
    write_l2q(config, tokenizer.replace(piece, "▁tqx".encode(), 1), other)
    with pytest.raises(VocabularyMismatchError, match=r"token \d+ is ' the' in mini.* ' tqx' in"):
        llama2q.compare(convert_mini(), other, TEXT, **SMALL)
    assert issubclass(VocabularyMismatchError, TokenizerError)


def test_no_memory(convert_mini: ConvertMini, monkeypatch: pytest.MonkeyPatch) -> None:
    """B is refused before A computes anything."""
    a, b = convert_mini(), convert_mini(quant="none")
    with Reference(a, TEXT, **SMALL) as reference:
        monkeypatch.setattr("llama2q.memory.available_bytes", lambda: 1_000_000)
        with pytest.raises(InsufficientMemoryError, match="does not fit"):
            reference.compare(b, progress=lambda *_: pytest.fail("a window was run"))
    with pytest.raises(InsufficientMemoryError, match="does not fit"):
        Reference(a, TEXT, **SMALL)


def test_no_room_for_the_logits(convert_mini: ConvertMini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskSpaceError, match="the reference's logits need"):
        llama2q.compare(convert_mini(), convert_mini(), TEXT, **SMALL)


def test_an_error_removes_the_temporary_file(
    convert_mini: ConvertMini, temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NonFiniteError("model B gave a logit that is NaN or infinite")

    monkeypatch.setattr(sys.modules[Reference.__module__], "score_rows", fail)
    for temp_bytes in (1, 10**9):
        with (
            pytest.raises(NonFiniteError),
            Reference(convert_mini(), TEXT, **SMALL, temp_bytes=temp_bytes) as reference,
        ):
            reference.compare(convert_mini())
        assert list(temp.iterdir()) == []


def test_memory_does_not_grow_with_the_text(convert_mini: ConvertMini) -> None:
    """Kept logits would take 1 MiB for each window of 128 tokens."""
    peaks = []
    for n_windows in (2, 2, 10):  # the first imports modules
        tracemalloc.start()
        llama2q.compare(
            convert_mini(), convert_mini(), TEXT, n_ctx=128, n_tokens=63 * n_windows, n_threads=1
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 2**19


@pytest.mark.slow
def test_int4_on_wikitext(shared_dir: Path, convert_mini: ConvertMini) -> None:
    """The figure of the study behind the format, which NumPy computed (prose, 60 windows)."""
    from wikitext import as_prose

    text = (shared_dir / "text" / "wikitext-2-test.txt").read_text(encoding="utf-8")
    a, b = convert_mini(quant="none"), convert_mini(grid="uniform")
    found = llama2q.compare(a, b, as_prose(text), n_tokens=60 * 255)
    assert found.kl_mean.standard_error is not None
    assert found.kl_mean.value == pytest.approx(0.02121, abs=4 * found.kl_mean.standard_error)
