"""llama.cpp beside us: what is asked of it, what is read from its files, its refusals.

A stand-in takes the place of llama-cpp-python; where that is installed, the last tests run it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import llama_cpp_peer
import quality
from evaluate.fake_llama_cpp import VOCAB, FakeLlamaCpp, needs_llama_cpp
from llama2q.engine import Engine
from llama2q.evaluate.comparison import ComparedModel
from llama2q.evaluate.windows import scored_logits
from llama_cpp_peer import LlamaCpp, PeerError, PeerFile, PeerType

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 200
Q4_K_M = PeerType("Q4_K_M", 15)


def test_a_window(fake: FakeLlamaCpp, tmp_path: Path) -> None:
    with LlamaCpp(tmp_path / "m.gguf", 8, n_threads=3) as score:
        assert fake.params.n_ctx == fake.params.n_batch == fake.params.n_ubatch == 8
        assert fake.params.n_threads == fake.params.n_threads_batch == 3
        assert fake.params.type_k == fake.params.type_v == 0
        for tokens in ([1, 4, 2, 3], [1, 0, 0, 0]):
            ((logits, targets),) = score(tokens, 1)
            assert targets == tokens[2:]
            assert logits[:, 0].tolist() == [10 + tokens[1], 20 + tokens[2]]
            assert logits.shape == (2, VOCAB)
            assert fake.calls == [("clear", "memory", True), "free batch"]
            fake.calls.clear()
        fake.code = 1
        with pytest.raises(PeerError, match="decode returned 1: it gave no reason"):
            list(score([1, 2, 3], 1))
    assert fake.calls[-3:] == ["free batch", ("free", "context"), ("free", "model")]


def test_what_does_not_open(fake: FakeLlamaCpp, tmp_path: Path) -> None:
    fake.opens = False
    with pytest.raises(PeerError, match="no context of 8 tokens"):
        LlamaCpp(tmp_path / "m.gguf", 8)
    assert fake.calls == [("free", "model")]
    fake.loads = False
    with pytest.raises(PeerError, match=r"did not load m\.gguf"):
        LlamaCpp(tmp_path / "m.gguf", 8)


def test_quantize(fake: FakeLlamaCpp, tmp_path: Path) -> None:
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    source.write_bytes(b"weights")
    llama_cpp_peer.quantize(source, target, Q4_K_M, n_threads=2)
    assert (fake.params.ftype, fake.params.nthread) == (15, 2)
    assert not hasattr(fake.params, "token_embedding_type")
    assert target.read_bytes() == b"weights"
    llama_cpp_peer.quantize(source, target, PeerType("Q4_K_M+Q8_0", 15, 8))
    assert (fake.params.token_embedding_type, fake.params.output_tensor_type) == (8, 8)
    fake.code = 1
    with pytest.raises(PeerError, match="did not quantize to Q4_K_M: tensor too odd"):
        llama_cpp_peer.quantize(source, target, Q4_K_M)


def test_importances_are_handed_over(fake: FakeLlamaCpp, tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    source.write_bytes(b"weights")
    given = {"blk.0.attn_q.weight": np.float32([1, 2, 3]), "output.weight": np.float32([4])}
    llama_cpp_peer.quantize(source, tmp_path / "b.gguf", Q4_K_M, 1, given)
    entries = fake.params.imatrix
    found = {each.name.decode(): each.data[: each.size] for each in entries[:2]}
    assert found == {"blk.0.attn_q.weight": [1, 2, 3], "output.weight": [4]}
    assert len(entries) == 3
    assert entries[2].name is None


def test_bits_are_counted_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two matrices of a layer, 4.5 bits of 256 x 256 and 6.5625 of 256 x 512."""

    def tensor(name: str, kind: str, bits: float, *shape: int) -> Any:
        n = math.prod(shape)
        return SimpleNamespace(
            name=name, tensor_type=SimpleNamespace(name=kind), shape=shape,
            n_elements=n, n_bytes=int(bits * n / 8),
        )  # fmt: skip

    tensors = [
        tensor("token_embd.weight", "Q4_K", 4.5, 256, 1000),
        tensor("blk.0.attn_norm.weight", "F32", 32, 256),
        tensor("blk.0.attn_q.weight", "Q4_K", 4.5, 256, 256),
        tensor("blk.0.ffn_down.weight", "Q6_K", 6.5625, 256, 512),
        tensor("output.weight", "Q6_K", 6.5625, 256, 1000),
    ]
    gguf = SimpleNamespace(GGUFReader=lambda path: SimpleNamespace(tensors=tensors))
    monkeypatch.setitem(sys.modules, "gguf", gguf)  # type: ignore[arg-type]
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(1234))
    found = PeerFile.of(path)
    assert found.types == "1 Q4_K, 1 Q6_K, token_embd Q4_K, output Q6_K"
    assert found.model.bits_per_weight == (4.5 + 2 * 6.5625) / 3
    assert (found.model.type, found.model.file_bytes) == ("Q4_K + Q6_K", 1234)


class OursInstead:
    """Ours in llama.cpp's place: it scores the reference's own file."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int | None) -> None:
        assert path.name == "peer.gguf"
        assert n_ctx == 512
        self._engine = Engine(path.with_name("none.l2q"), n_ctx=n_ctx, kv_dtype="f32")

    def __enter__(self) -> OursInstead:
        return self

    def __exit__(self, *_error: object) -> None:
        self._engine.close()

    def __call__(self, tokens: Sequence[int], first_row: int) -> Any:
        return scored_logits(self._engine, tokens, first_row)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return path


def run(checkpoint: Path, text: Path, *arguments: str | Path) -> int:
    options = ("--text", text, "--tokens", "300", *arguments)
    return quality.main([str(checkpoint), *map(str, options)])


def test_rows_of_the_tool(
    mini_checkpoint: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same windows, reference and divergence: our own logits have none."""
    asked = []

    def quantize(source: Path, target: Path, kind: PeerType, _n: int | None, weights: Any) -> None:
        assert source.read_bytes()[:4] == b"GGUF"
        asked.append((kind.name, weights))
        target.write_bytes(b"")

    model = ComparedModel(
        path="x", model_id="", type="Q4_K + Q6_K", bits_per_weight=4.7, file_bytes=5, kv_dtype="f32"
    )
    monkeypatch.setattr(llama_cpp_peer, "quantize", quantize)
    monkeypatch.setattr(llama_cpp_peer, "version", lambda: "llama-cpp-python 0")
    monkeypatch.setattr(quality, "LlamaCpp", OursInstead)
    monkeypatch.setattr(PeerFile, "of", lambda path: PeerFile(model, "1 Q4_K"))
    monkeypatch.setattr(quality, "importances", lambda path, windows, n_threads: len(windows[0]))
    only, figures = "int8 64,llama.cpp F32,Q4_K_S", text.with_name("figures.json")
    options = ("--peers", "--importances", "--only", only, "--json", figures)
    assert run(mini_checkpoint, text, *options) == 0
    assert asked == [("F32", None), ("Q4_K_S", None), ("Q4_K_S", 512)]
    values = json.loads(figures.read_text(encoding="utf-8"))
    assert values["machine"]["llama.cpp"] == "llama-cpp-python 0"
    ours, *peers = values["rows"]
    assert ours["name"] == "int8 64"
    assert [(row["name"], row["series"]) for row in peers] == [
        ("llama.cpp F32", ""),
        ("llama.cpp Q4_K_S", "llama.cpp"),
        ("llama.cpp Q4_K_S imatrix", "llama.cpp imatrix"),
    ]  # fmt: skip
    for row in peers:
        assert row["n_tokens"] == ours["n_tokens"] == 510
        assert row["kl_mean"]["value"] == row["kl_percentiles"]["100"] == 0
        assert row["same_top"]["value"] == 1
        assert row["perplexity_b"] == row["perplexity_a"] == ours["perplexity_a"]
    printed = capsys.readouterr().out
    assert "\n- llama.cpp Q4_K_S: 1 Q4_K\n" in printed
    assert "path" not in json.dumps(values)


def test_what_is_missing_is_named(
    mini_checkpoint: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(mini_checkpoint, text, "--importances")
    assert "--importances needs --peers" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert run(mini_checkpoint, text, "--peers") == 1
    assert "gguf is missing: pip install llama-cpp-python gguf" in capsys.readouterr().err


@needs_llama_cpp
def test_llama_cpp_itself(mini_checkpoint: Path, text: Path) -> None:
    """F32 is the same model, up to float32 rounding in two orders; Q8_0 is our int8's equal."""
    figures = text.with_name("figures.json")
    only = "int8 32,llama.cpp F32,llama.cpp Q8_0"
    assert run(mini_checkpoint, text, "--peers", "--only", only, "--json", figures) == 0
    ours, same, q8_0 = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert 0 <= same["kl_percentiles"]["100"] < 1e-6
    assert same["b"]["bits_per_weight"] == 32
    assert q8_0["b"]["bits_per_weight"] == ours["b"]["bits_per_weight"] == 8.5
    assert 0.5 < q8_0["kl_mean"]["value"] / ours["kl_mean"]["value"] < 2
