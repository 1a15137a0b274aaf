"""llama.cpp's importances: what is gathered, by which names, against the oracle."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import llama2q
import llama_cpp_importances
import llama_cpp_peer
from evaluate.fake_llama_cpp import FakeGgml, FakeLlamaCpp, needs_llama_cpp
from llama2q.converter.gguf_tensors import gguf_name
from llama_cpp_peer import PeerError, PeerType
from reference import Float64Ops, Forward
from reference_weights import load_meta


def test_importances_are_mean_squares(
    fake: FakeLlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every window computes each value with 2 rows; those of the second window are 0."""
    ggml = SimpleNamespace(libggml=FakeGgml())
    monkeypatch.setitem(sys.modules, "llama_cpp._ggml", ggml)  # type: ignore[arg-type]
    names = [f"{name}-{layer}" for name in llama_cpp_importances._READERS for layer in (0, 1)]
    names += ["result_norm", "attn_norm", "Kcur-0", "ffn_swiglu-0-x"]
    size = iter([1.0, 0.0])

    def decode(_context: Any, batch: Any) -> int:
        factor = next(size)
        assert all(batch.logits)
        for i, name in enumerate(names):
            value = (name, np.float32([[i, 1], [0, 3]]) * np.float32(factor))
            if fake.params.cb_eval(value, True, None):
                assert fake.params.cb_eval(value, False, None)
            else:
                assert name in names[-3:]
        return FakeLlamaCpp.llama_decode(fake, _context, batch)

    monkeypatch.setattr(fake, "llama_decode", decode, raising=False)
    found = llama_cpp_importances.importances(tmp_path / "m.gguf", [[1, 2], [1, 3]])
    assert len(found) == 15
    listed = {name: values.tolist() for name, values in found.items() if "blk.0" not in name}
    assert listed == {
        "blk.1.attn_q.weight": [0.25, 2.5],
        "blk.1.attn_k.weight": [0.25, 2.5],
        "blk.1.attn_v.weight": [0.25, 2.5],
        "blk.1.attn_output.weight": [2.25, 2.5],
        "blk.1.ffn_gate.weight": [6.25, 2.5],
        "blk.1.ffn_up.weight": [6.25, 2.5],
        "blk.1.ffn_down.weight": [12.25, 2.5],
        "output.weight": [16, 2.5],
    }
    size = iter([1.0])
    names.remove("kqv_out-1")
    with pytest.raises(PeerError, match="computed no value named kqv_out-1"):
        llama_cpp_importances.importances(tmp_path / "m.gguf", [[1, 2]])


@dataclass(frozen=True)
class Recording(Float64Ops):
    """The oracle, which keeps the sums of squares of what each matrix reads."""

    squares: dict[int, Any] = field(default_factory=dict)

    def matmul(self, x: Any, matrix: Any) -> Any:
        self.squares[id(matrix)] = self.squares.get(id(matrix), 0) + (x * x).sum(axis=0)
        return super().matmul(x, matrix)


@needs_llama_cpp
def test_importances_of_llama_cpp_itself(mini_checkpoint: Path, tmp_path: Path) -> None:
    """Against the oracle: float32 in another order of sums."""
    source, exported, wide = (tmp_path / name for name in ("m.l2q", "m.gguf", "f32.gguf"))
    llama2q.convert(mini_checkpoint, source, quant="none")
    llama2q.export_gguf(source, exported)
    llama_cpp_peer.quantize(exported, wide, llama_cpp_peer.TYPES[0])
    texts = [[1, 400, 30, 2000, 7, 4095], [1, 17, 230]]
    found = llama_cpp_importances.importances(wide, texts)
    weights, ops = load_meta(mini_checkpoint), Recording()
    for tokens in texts:
        Forward(weights, ops).step(np.array(tokens))
    assert len(found) == 43
    for name, matrix in weights.matrices.items():
        if name != "tok_embeddings.weight":
            key = gguf_name(name)
            np.testing.assert_allclose(found[key], ops.squares[id(matrix)] / 9, rtol=1e-4)
    llama_cpp_peer.quantize(exported, wide, PeerType("Q4_K_M", 15), importances=found)
    plain = tmp_path / "plain.gguf"
    llama_cpp_peer.quantize(exported, plain, PeerType("Q4_K_M", 15))
    assert plain.stat().st_size < wide.stat().st_size + 4096
    assert plain.read_bytes() != wide.read_bytes()
