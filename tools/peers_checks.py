"""What bench_peers.py measures beside its rows: fairness, loading, memory, the peer's own bench."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llama2q
import peers_build
from llama2q import memory
from peers_driver import N_CTX, Job, Peer, Setting
from peers_models import Models

_SETTING = Setting("f16", True)
_TEXT = (
    "Once upon a time, there was a little dog named Max. Max loved to play with his ball in the "
    "garden. One day, the ball rolled under a big tree, and Max could not find it."
)
_OURS = """
import sys
import llama2q
path, n_ctx, n_threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with llama2q.load(path, n_ctx=n_ctx, kv_dtype="f16", n_threads=n_threads) as llm:
    print("ready", flush=True)
    llm.generate([1], max_tokens=1, temperature=0.0)
    print("token", flush=True)
    sys.stdin.readline()
"""


def fairness(models: Models, n_threads: int) -> dict[str, float]:
    """Run the demo model, the same weights in both formats, over the same text.

    Returns
    -------
    dict
        Share of positions with the same likeliest token, mean KL divergence in nats, perplexities.
    """
    with llama2q.load(models.mini, kv_dtype="f16", n_threads=n_threads) as llm:
        ids = [1, *llm.tokenizer.encode(_TEXT)]
        ours = llm.logits(ids).astype(np.float64)
    driver = peers_build.build_driver(peers_build.TIERS["native"])
    with Peer(driver, models.mini_gguf, _SETTING, n_threads=n_threads, n_ctx=256) as peer:
        theirs = peer.logits(ids, ours.shape[1])
    p, q = _log_softmax(ours), _log_softmax(theirs)
    return {
        "tokens": len(ids),
        "same_argmax": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "kl_divergence": float((np.exp(p) * (p - q)).sum(1).mean()),
        "perplexity_ours": _perplexity(p, ids),
        "perplexity_peer": _perplexity(q, ids),
    }


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def _perplexity(log_p: NDArray[np.float64], ids: list[int]) -> float:
    return float(np.exp(-log_p[np.arange(len(ids) - 1), ids[1:]].mean()))


def loads(models: Models, n_threads: int, *, cold: bool, repeat: int) -> list[dict[str, Any]]:
    """Time both sides from the start of the process until ready, and until the first token.

    Cold: the file's pages are dropped from the page cache before (those that no other process
    has mapped).
    """
    sides = {"llama2q": (_load_ours, models.ours), "llama.cpp": (_load_peer, models.gguf)}
    rows = []
    for is_cold in (False, True) if cold else (False,):
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(1 if is_cold else repeat + 1):
            for name, (load, path) in sides.items():
                if is_cold:
                    drop_pages(path)
                samples[name].append(load(path, n_threads))
        for name, found in samples.items():
            counted = found if is_cold else found[1:]
            row = {key: statistics.median(s[key] for s in counted) for key in counted[0]}
            rows.append({"side": name, "pages": "cold" if is_cold else "warm", **row})
    return rows


def drop_pages(path: Path) -> None:
    """Ask the system to forget a file's pages."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _load_ours(path: Path, n_threads: int) -> dict[str, Any]:
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", _OURS, path, str(N_CTX), str(n_threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    times = []
    for expected in ("ready", "token"):
        if process.stdout.readline().strip() != expected:
            raise RuntimeError("our side did not load; see stderr")
        times.append(time.perf_counter() - started)
    anonymous, mapped = memory.resident_bytes(process.pid)
    process.communicate("\n")
    return _load_row(times[0], times[1], anonymous, mapped)


def _load_peer(path: Path, n_threads: int) -> dict[str, Any]:
    driver = peers_build.build_driver(peers_build.TIERS["native"])
    with Peer(driver, path, _SETTING, n_threads=n_threads) as peer:
        first = peer.seconds(Job("decode", 1))
        return _load_row(peer.ready_seconds, peer.ready_seconds + first, *peer.resident_bytes())


def _load_row(
    ready: float, token: float, anonymous: int | None, mapped: int | None
) -> dict[str, Any]:
    return {
        "ready_seconds": ready,
        "first_token_seconds": token,
        "anonymous_bytes": anonymous or 0,
        "mapped_bytes": mapped or 0,
    }


def llama_bench(models: Models, n_threads: int) -> str:
    """Run the peer's own benchmark program, which must agree with the driver."""
    program = peers_build.llama_bench()
    if not program.exists():
        return "llama-bench: not built, the driver is unchecked"
    result = subprocess.run(
        [
            *(program, "-m", models.gguf, "-t", str(n_threads), "-fa", "1"),
            *("-p", "512", "-n", "16", "-r", "2", "-o", "json"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    rates = {
        ("prefill 512" if row["n_prompt"] else "decode 16"): row["avg_ts"]
        for row in json.loads(result.stdout)
    }
    text = ", ".join(f"{name} {rate:.2f} tok/s" for name, rate in rates.items())
    return f"llama-bench of the same build, f16, FA, by itself: {text}"
