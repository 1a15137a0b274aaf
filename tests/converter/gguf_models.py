"""A model of odd sizes and mixes of types, for tests of whole GGUF files."""

from __future__ import annotations

from converter.gguf_files import Kind
from synthetic_shapes import SyntheticShape

ODD = SyntheticShape(dim=96, n_layers=2, n_heads=4, n_kv_heads=1, multiple_of=32, vocab_size=4096)
"""wk and wv have 24 rows: a band and a half."""
LLAMA_CPP = {"": Kind.Q4_0, "output": Kind.Q6_K}
"""What llama.cpp makes of Q4_0."""
MIXED = {
    "": Kind.Q4_0, "tok": Kind.IQ4_NL, "wk": Kind.Q8_0, "wv": Kind.F16, "wo": Kind.IQ4_NL,
    "w2": Kind.Q8_0, "w3": Kind.Q8_0, "output": Kind.BF16,
}  # fmt: skip
