"""Measures what a decoding step costs beside the forward pass, at a vocabulary of 32,000.

Prints, in microseconds: the time of a step in Python beyond its calls into C++ (median over the
steps of one generation, for several settings), and the time of the C++ sampler on distributions of
different shapes. The model is a synthetic one with a single small layer.

Run it as `python3 tools/bench_step_overhead.py [--steps N]`, with llama2q installed.
"""

from __future__ import annotations

import argparse
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llama2q
from llama2q import SamplingParams, _core, kernels
from llama2q.config import ModelConfig
from llama2q.generate.batch import Batch, samples_of
from llama2q.generate.prompt import Prompt
from synthetic_l2q import write_l2q

VOCAB_SIZE = 32000
MINI_TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "data" / "mini" / "tokenizer.model"
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top_p 0.9": {},
    "top_p 0.9, penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5},
    "top_p 0.9, logit_bias of 100 tokens": {"logit_bias": dict.fromkeys(range(100, 200), 1.0)},
    "top_p 0.9, logprobs 5": {"logprobs": 5},
    "top_p 0.9, penalties, logprobs 5": {"repetition_penalty": 1.1, "logprobs": 5},
    "top_p 0.9, n 4": {"n": 4},
    "top_p 0.9, a logits processor": {"logits_processors": [lambda ids, logits: logits]},
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300, help="decoding steps per setting")
    steps = int(parser.parse_args(arguments).steps)
    print(f"ISA {_core.default_isa()}, {_core.default_threads()} threads, medians in us")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.l2q"
        write_model(path)
        with llama2q.load(path, kv_dtype="f16", n_threads=1) as llm:
            print(f"\n{'a step':<40}{'in Python':>10}{'C++ step':>10}{'C++ rest':>10}")
            for name, settings in SETTINGS.items():
                python, step, rest = step_times(llm, steps, settings)
                print(f"{name:<40}{python:>10.1f}{step:>10.1f}{rest:>10.1f}")
    print(f"\n{'the sampler':<26}{'top_p 0.9':>10}{'top_k 40':>10}{'all':>10}{'greedy':>10}")
    for name, logits in distributions().items():
        ways: list[dict[str, Any]] = [
            {"top_p": 0.9}, {"top_p": 0.95, "top_k": 40}, {"top_p": 1.0}, {"temperature": 0.0},
        ]  # fmt: skip
        times = [sampler_time(logits, steps, way) for way in ways]
        print(f"{name:<26}" + "".join(f"{microseconds:>10.1f}" for microseconds in times))
    return 0


def write_model(path: Path) -> None:
    """Write a model of one small layer and 32,000 tokens."""
    config = ModelConfig(
        dim=64, hidden_dim=64, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=VOCAB_SIZE,
        norm_eps=1e-5, max_seq_len=2048,
    )  # fmt: skip
    write_l2q(config, large_tokenizer(), path)


def large_tokenizer() -> bytes:
    """Append pieces to the demo model's tokenizer: a serialized protobuf grows by appending."""
    data = MINI_TOKENIZER.read_bytes()
    n_pieces = llama2q.Tokenizer.from_bytes(data).vocab_size
    for i in range(n_pieces, VOCAB_SIZE):
        text = f"\u2581word{i}".encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -float(i))
        data += b"\x0a" + bytes([len(piece)]) + piece
    return data


class Clock:
    """Adds up the time spent in the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


class TimedModel:
    """A model whose `step` is timed."""

    def __init__(self, model: Any, clock: Clock) -> None:
        self._model = model
        self.step = clock.wrap(model.step)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's own."""
        return getattr(self._model, name)


def step_times(
    llm: llama2q.Llama, steps: int, settings: dict[str, Any]
) -> tuple[float, float, float]:
    """Return the median microseconds of a step in Python, in `step`, and in the rest of C++."""
    params = SamplingParams(seed=1, max_tokens=steps, ignore_eos=True, **settings)
    step_clock, rest_clock = Clock(), Clock()
    model: Any = llm.engine._model
    names = ("sample", "edit_logits", "logprobs")
    originals = {name: getattr(_core, name) for name in names}
    llm.engine._model = TimedModel(model, step_clock)  # type: ignore[assignment]
    for name, function in originals.items():
        setattr(_core, name, rest_clock.wrap(function))
    try:
        samples = samples_of(llm.engine, Prompt(llm.engine, [1, 5, 6, 7], params))
        batch = Batch(llm.engine, samples, _core.CancelFlag(), finishes=True)
        times = []
        while not batch.is_done:
            step_clock.seconds = rest_clock.seconds = 0.0
            started = time.perf_counter()
            batch.step()
            total = time.perf_counter() - started
            step, rest = step_clock.seconds, rest_clock.seconds
            times.append((total - step - rest, step, rest))
        batch.release()
    finally:
        llm.engine._model = model
        for name, function in originals.items():
            setattr(_core, name, function)
    python, step, rest = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return python, step, rest


def distributions() -> dict[str, NDArray[np.float32]]:
    """Rows of logits, float32 (1, vocab_size): peaked as text usually is, Zipf's law, flat."""
    rng = np.random.default_rng(0)
    peaked = rng.normal(-2, 2.2, VOCAB_SIZE)
    peaked[rng.integers(0, VOCAB_SIZE, 30)] = rng.normal(12, 2.5, 30)
    zipf = rng.permutation(-1.1 * np.log(np.arange(VOCAB_SIZE) + 2.7))
    flat = rng.normal(0, 0.5, VOCAB_SIZE)
    named = {"peaked (30 likely tokens)": peaked, "Zipf, exponent 1.1": zipf, "flat": flat}
    return {name: row[None].astype(np.float32) for name, row in named.items()}


def sampler_time(logits: NDArray[np.float32], draws: int, settings: dict[str, Any]) -> float:
    """Return the median microseconds of one draw at temperature 1, its call included."""
    times = []
    for position in range(draws):
        started = time.perf_counter()
        kernels.sample(logits, **{"temperature": 1.0, **settings}, seed=1, position=position)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    sys.exit(main())
