"""Loads a model, fills its KV cache, and prints by how many bytes anonymous memory grew.

Run as `python memory_probe.py FILE N_CTX KV_DTYPE N_SEQUENCES`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import llama2q
from llama2q.generate.batch import PROMPT_TOKENS_PER_STEP
from llama2q.kv_sequence import Sequence
from llama2q.ragged import Span


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def main() -> None:
    path, n_ctx, kv_dtype, n_sequences = sys.argv[1:]
    before = anonymous_bytes()
    llm = llama2q.load(path, n_ctx=int(n_ctx), kv_dtype=kv_dtype)  # type: ignore[arg-type]
    n_tokens = int(n_ctx)
    sequences = [Sequence(llm.engine.pool, n_tokens) for _ in range(int(n_sequences))]
    ids = np.arange(n_tokens) % llm.config.vocab_size
    for sequence in sequences:
        for start in range(0, n_tokens, PROMPT_TOKENS_PER_STEP):
            llm.engine.forward([Span(sequence, ids[start : start + PROMPT_TOKENS_PER_STEP])])
    for sequence in sequences:
        sequence.rewind(n_tokens - 1)
    llm.engine.forward([Span(sequence, [1]) for sequence in sequences])
    print(anonymous_bytes() - before)


if __name__ == "__main__":
    main()
