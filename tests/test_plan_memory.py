"""The plan against the memory that a process is measured to take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import llama2q
import synthetic_l2q
from llama2q.config import ModelConfig

PROBE = Path(__file__).with_name("memory_probe.py")

WIDE = ModelConfig(
    dim=512,
    hidden_dim=512,
    n_layers=8,
    n_heads=8,
    n_kv_heads=8,
    vocab_size=4096,
    norm_eps=1e-5,
)
GROUPED = ModelConfig(
    dim=768,
    hidden_dim=1024,
    n_layers=12,
    n_heads=12,
    n_kv_heads=4,
    vocab_size=4096,
    norm_eps=1e-5,
)
CASES = [
    ("mini", "int4", 4096, "f16", 4),
    ("mini", "int4", 2048, "f32", 4),
    ("mini", "int8", 4096, "int8", 4),
    ("mini", "none", 2048, "f32", 2),
    ("wide", "int4", 1024, "f32", 1),
    ("wide", "int4", 2048, "f16", 1),
    ("wide", "int8", 4096, "f16", 1),
    ("wide", "int8", 2048, "int8", 2),
    ("grouped", "int4", 4096, "f32", 1),
    ("grouped", "int4", 2048, "f16", 2),
    ("grouped", "int8", 4096, "int8", 1),
    ("grouped", "none", 1024, "f16", 1),
]


def measure(path: Path, n_ctx: int, kv_dtype: str, n_sequences: int) -> int:
    """Return the growth of a process's anonymous memory, in bytes."""
    arguments = [str(n_ctx), kv_dtype, str(n_sequences)]
    result = subprocess.run(
        [sys.executable, str(PROBE), str(path), *arguments],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=300,
        check=True,
    )
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status tells anonymous memory")
def test_predicted_within_5_percent(
    convert_mini: Callable[..., Path],
    mini_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = (mini_checkpoint / "tokenizer.model").read_bytes()
    lines, worst = [], 0.0
    for name, quant, n_ctx, kv_dtype, n_sequences in CASES:
        if name == "mini":
            path = convert_mini(quant=quant)
        else:
            path = tmp_path / f"{name}-{quant}.l2q"
            config = WIDE if name == "wide" else GROUPED
            if not path.exists():
                synthetic_l2q.write_l2q(config, tokenizer, path, quant)
        plan = llama2q.plan(
            path,
            n_ctx=n_ctx,
            kv_dtype=kv_dtype,  # type: ignore[arg-type]
            n_sequences=n_sequences,
        )
        measured = measure(path, n_ctx, kv_dtype, n_sequences)
        error = plan.anonymous_bytes / measured - 1
        worst = max(worst, abs(error))
        settings = f"{name:<8} {quant:<5} {n_ctx:>5} {kv_dtype:<5} {n_sequences}"
        lines.append(f"{settings} {plan.anonymous_bytes:>12,} {measured:>12,} {error:>+8.2%}")
    with capsys.disabled():
        print(f"\n{'model':<8} quant n_ctx KV    n {'predicted':>12} {'measured':>12} {'error':>8}")
        print("\n".join(lines))
    assert worst < 0.05
