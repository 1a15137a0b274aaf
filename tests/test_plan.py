"""The plan: exact sizes, the choice of the KV type, what would fit instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import llama2q
import synthetic_l2q
from llama2q import _core
from llama2q.config import ModelConfig
from llama2q.engine import Engine
from llama2q.errors import InvalidArgumentError
from llama2q.kv_sequence import Sequence
from llama2q.plan import Plan, kv_bytes_per_token
from llama2q.ragged import Span

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


@pytest.fixture(scope="module")
def model(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini()


def test_kv_sizes_of_7b() -> None:
    assert 4096 * kv_bytes_per_token(LLAMA_7B, "f16") == 2 * GIB
    assert 4096 * kv_bytes_per_token(LLAMA_7B, "f32") == 4 * GIB
    assert 4096 * kv_bytes_per_token(LLAMA_7B, "int8") == GIB + GIB * 2 // 128
    assert _core.kv_bytes(LLAMA_7B.to_dict(), "f16", 64) == 2 * GIB


def test_kv_bytes_are_whole_pages() -> None:
    config = ModelConfig(
        dim=16, hidden_dim=16, n_layers=3, n_heads=8, n_kv_heads=1, vocab_size=8, norm_eps=1e-5
    )
    # 64 positions of 2 int8 values: 128 bytes of K, as many of V, and 128 bytes of scales each.
    assert _core.kv_bytes(config.to_dict(), "int8", 1) == 3 * 4 * 4096
    assert _core.kv_bytes(config.to_dict(), "int8", 33) == 3 * 4 * 8192
    with pytest.raises(InvalidArgumentError, match="n_blocks is 0"):
        _core.kv_bytes(config.to_dict(), "f16", 0)
    with pytest.raises(InvalidArgumentError, match="expected f32, f16 or int8"):
        _core.kv_bytes(config.to_dict(), "f8", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_kv_heads", [1, 4])
@pytest.mark.parametrize(("quant", "group_size"), [("int4", 32), ("int8", 64), ("none", None)])
@pytest.mark.parametrize("hidden_dim", [40, 172])
def test_work_bytes_are_exact(
    mini_checkpoint: Path,
    tmp_path: Path,
    quant: str,
    group_size: int | None,
    n_kv_heads: int,
    hidden_dim: int,
) -> None:
    """What the formula says is what the buffers have grown to."""
    config = ModelConfig(
        dim=48,
        hidden_dim=hidden_dim,
        n_layers=1,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        vocab_size=4096,
        norm_eps=1e-5,
        max_seq_len=1024,
    )
    path = tmp_path / "x.l2q"
    tokenizer = (mini_checkpoint / "tokenizer.model").read_bytes()
    synthetic_l2q.write_l2q(config, tokenizer, path, quant, group_size or 64)
    for n_tokens, n_rows, n_threads in ((1, 1, 1), (100, 3, 2), (512, 512, 1), (900, 1, 3)):
        with Engine(path, n_threads=n_threads, max_sequences=1) as engine:
            model = engine._open_model()
            assert model.work_bytes == 0
            sequence = Sequence(engine.pool, n_tokens)
            engine.forward([Span(sequence, np.ones(n_tokens, np.int32).tolist(), n_rows)])
            assert model.work_bytes == _core.work_bytes(
                config.to_dict(), group_size or 0, engine.n_threads, n_tokens, n_rows
            )
            sequence.release()


def test_work_bytes_refuse() -> None:
    with pytest.raises(InvalidArgumentError, match="expected at least 0, 1, 1 and 0"):
        _core.work_bytes(LLAMA_7B.to_dict(), 64, 0, 1, 1)
    with pytest.raises(InvalidArgumentError, match='config lacks "dim"'):
        _core.work_bytes({}, 64, 1, 1, 1)


def test_message_of_a_plan_that_fits(model: Path) -> None:
    plan = llama2q.plan(model, memory="8GiB", n_ctx=2048)
    assert isinstance(plan, Plan)
    assert plan.message == str(plan)
    assert plan.message.startswith(
        "mini-int4-64-nonuniform int4: weights 4.5 MiB + KV cache 6.0 MiB (2048 tokens, f16) + "
    )
    assert plan.message.endswith(" of 8.0 GiB free: fits.")
    assert plan.weight_bytes == model.stat().st_size
    assert plan.kv_bytes == 6 * 2**20
    assert plan.total_bytes == plan.weight_bytes + plan.anonymous_bytes
    assert plan.to_dict()["fits"] is True
    assert plan.would_fit == ()


def test_message_in_the_style_of_7b() -> None:
    plan = Plan(
        name="llama-2-7b-chat int4",
        n_ctx=4096,
        kv_dtype="int8",
        n_sequences=1,
        weight_bytes=int(3.5 * GIB),
        kv_bytes=GIB,
        work_bytes=80 * 2**20,
        overhead_bytes=20 * 2**20,
        available_bytes=int(6.9 * GIB),
        would_fit=(),
    )
    assert plan.message == (
        "llama-2-7b-chat int4: weights 3.5 GiB + KV cache 1.0 GiB (4096 tokens, int8) + "
        "work 0.1 GiB = 4.6 GiB of 6.9 GiB free: fits."
    )


def test_automatic_kv_type(model: Path, convert_mini: Callable[..., Path]) -> None:
    f16 = llama2q.plan(model, kv_dtype="f16", memory="1GB")
    assert llama2q.plan(model, memory=f16.total_bytes).kv_dtype == "f16"
    assert llama2q.plan(model, memory=f16.total_bytes - 1).kv_dtype == "int8"
    assert llama2q.plan(model, memory=1).kv_dtype == "int8"
    assert llama2q.plan(convert_mini(quant="none"), memory=1).kv_dtype == "f32"


def test_nothing_would_fit(model: Path) -> None:
    plan = llama2q.plan(model, memory="2MiB")
    assert not plan.can_load
    assert plan.message.endswith("Nothing would; free some memory or take a smaller model.")


@given(
    memory=st.integers(1, 120 * 2**20),
    n_ctx=st.integers(1, 4096),
    kv_dtype=st.sampled_from(["auto", "f32", "f16", "int8"]),
    n_sequences=st.integers(1, 4),
)
@example(memory=12 * 10**6, n_ctx=4096, kv_dtype="f32", n_sequences=2)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_said_to_fit_fits(
    model: Path, memory: int, n_ctx: int, kv_dtype: str, n_sequences: int
) -> None:
    plan = llama2q.plan(
        model,
        memory=memory,
        n_ctx=n_ctx,
        kv_dtype=kv_dtype,  # type: ignore[arg-type]
        n_sequences=n_sequences,
    )
    assert plan.n_ctx == n_ctx
    assert kv_dtype in ("auto", plan.kv_dtype)
    assert plan.fits == (plan.total_bytes <= memory)
    assert plan.can_load or not plan.fits
    if plan.fits:
        assert plan.would_fit == ()
    for option in plan.would_fit:
        again = llama2q.plan(
            model,
            memory=memory,
            n_ctx=option.n_ctx,
            kv_dtype=option.kv_dtype,
            n_sequences=option.n_sequences,
        )
        assert again.total_bytes == option.total_bytes < plan.total_bytes
        assert again.fits or (again.can_load and not plan.can_load)
        if option.n_ctx < n_ctx and option.n_ctx + 64 < n_ctx:
            larger = llama2q.plan(
                model,
                memory=memory,
                n_ctx=option.n_ctx + 64,
                kv_dtype=option.kv_dtype,
                n_sequences=option.n_sequences,
            )
            assert not (larger.fits if again.fits else larger.can_load)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_ctx": 4097}, "n_ctx is 4097; the model's context is 4096 tokens at most"),
        ({"n_ctx": 0}, "n_ctx is 0; expected an integer of at least 1"),
        ({"kv_dtype": "f8"}, "kv_dtype is 'f8'"),
        ({"memory": "8"}, "'8' is not a size"),
        ({"memory": 0}, "memory is 0"),
        ({"memory": 1.5}, r"memory is 1\.5"),
        ({"n_sequences": 0}, "n_sequences is 0"),
        ({"n_sequences": None}, "n_sequences is None"),
    ],
)
def test_arguments_out_of_range(model: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        llama2q.plan(model, **arguments)  # type: ignore[arg-type]
