"""One load of a model, and what is measured of it, for bench_cuda.py: a process of its own.

    python3 tools/cuda_bench_worker.py '{"file": "7b.l2q", "load": {"device": "cuda"}, ...}'

prints a line of JSON for each measurement, as soon as there is one; an error is such a line, too.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import statistics
import sys
import time
from typing import Any

import numpy as np

import llama2q
from llama2q import devices
from llama2q.bench import Bench
from llama2q.engine import Engine
from llama2q.kv_sequence import Sequence
from llama2q.plan import kv_bytes_per_token
from llama2q.ragged import Span


def main(arguments: list[str]) -> int:
    job = json.loads(arguments[0])
    options = dict(job["load"])
    known = inspect.signature(llama2q.load).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        emit({"kind": "load", "skipped": f"llama2q.load has no {', '.join(unknown)}"})
        return 0
    try:
        memory = DeviceMemory() if options.get("device", "auto") != "cpu" else None
        started = time.perf_counter()
        llm = llama2q.load(job["file"], prefix_memory=0, **options)
    except Exception as error:
        emit({"kind": "load", "error": f"{type(error).__name__}: {error}"})
        return 0
    with llm:
        seconds = time.perf_counter() - started
        measurer = Measurer(llm, memory)
        emit({"kind": "load", "seconds": seconds, **measurer.facts()})
        for measure in job["measures"]:
            try:
                emit({**measure, **measurer.measure(**measure)})
            except Exception as error:
                emit({**measure, "error": f"{type(error).__name__}: {error}"})
        if memory is not None:
            emit({"kind": "memory", **memory.facts(llm.engine)})
    return 0


def emit(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


class DeviceMemory:
    """What the process takes of device 0; whoever else uses it spoils the figure."""

    def __init__(self) -> None:
        # The first question makes the context, which is nobody's plan.
        self._before = self._least = self._free()

    @staticmethod
    def _free() -> int:
        return devices.library().describe(0)["free_bytes"]

    def sample(self) -> None:
        """Look again."""
        self._least = min(self._least, self._free())

    def facts(self, engine: Engine) -> dict[str, Any]:
        """Return the peak of all samples beside the plan."""
        self.sample()
        planned = sum(share.total_bytes for share in engine.plan.devices if share.index == 0)
        peak = self._before - self._least
        return {
            "peak_bytes": peak,
            "planned_bytes": planned,
            "over_plan": peak / planned - 1 if planned else None,
        }


class Measurer:
    """Measures one loaded model."""

    def __init__(self, llm: llama2q.Llama, memory: DeviceMemory | None) -> None:
        self._llm, self._engine, self._memory = llm, llm.engine, memory
        self._bench = Bench(llm.engine, {})
        matrices = [self._engine.file.matrix(name) for name in self._engine.file.recipe.tensors]
        read = [matrix for matrix in matrices if not matrix.is_table]
        self._weight_bytes = sum(tensor.nbytes for m in read for tensor in m.tensors())
        self._layer_bytes = [0] * self._engine.config.n_layers
        for matrix in read:
            if matrix.name.startswith("layers."):
                layer = int(matrix.name.split(".")[1])
                self._layer_bytes[layer] += sum(tensor.nbytes for tensor in matrix.tensors())

    def facts(self) -> dict[str, Any]:
        """Return what was loaded, and where."""
        engine = self._engine
        shares = engine.plan.devices
        first = shares[0].first_layer if shares else engine.config.n_layers
        on_host = sum(self._layer_bytes[:first])
        if not shares:
            on_host = self._weight_bytes
        return {
            "n_layers": engine.config.n_layers,
            "device_layers": sum(share.n_layers for share in shares),
            "weight_bytes": self._weight_bytes,
            "host_weight_bytes": on_host,
            "device_weight_bytes": self._weight_bytes - on_host,
            "kv_dtype": engine.kv_dtype,
            "kv_bytes_per_token": kv_bytes_per_token(engine.config, engine.kv_dtype),
            "n_threads": engine.n_threads,
            "isa": engine.isa,
            "predicted_tokens_per_second": llama2q.predict(engine.plan),
            "plan": engine.plan.to_dict(),
            "shares": [dataclasses.asdict(share) for share in shares],
        }

    def measure(self, kind: str, **how: Any) -> dict[str, Any]:
        """Measure what a row says; names as the methods'."""
        row: dict[str, Any] = getattr(self, f"_{kind}")(**how)
        if self._memory is not None:
            self._memory.sample()
        return row

    def _decode(
        self, tokens: int, depth: int = 0, sequences: int = 1, repeat: int = 3
    ) -> dict[str, Any]:
        """Compute a token for each sequence, logits to the host; nothing is sampled."""
        self._bench.seconds("decode", 2, depth, sequences)
        times = [self._bench.seconds("decode", tokens, depth, sequences) for _ in range(repeat)]
        seconds = statistics.median(times)
        kv = kv_bytes_per_token(self._engine.config, self._engine.kv_dtype)
        return {
            "seconds": seconds,
            "samples": times,
            "tokens_per_second": sequences / seconds,
            "read_bytes": self._weight_bytes + kv * (depth + (tokens + 1) / 2) * sequences,
        }

    def _largest(self, tokens: int, repeat: int = 3) -> dict[str, Any]:
        """Compute tokens one by one; of the logits the largest comes to the host."""
        engine, times = self._engine, []
        for _ in range(repeat + 1):
            sequence = Sequence(engine.pool, tokens + 2)
            token = 1
            for index in range(tokens + 2):
                if index == 2:
                    started = time.perf_counter()
                _, ids = engine.forward_largest([Span(sequence, [token])], 1)
                token = int(ids[0, 0])
            times.append((time.perf_counter() - started) / tokens)
            sequence.release()
        seconds = statistics.median(times[1:])
        return {"seconds": seconds, "samples": times[1:], "tokens_per_second": 1 / seconds}

    def _prefill(self, tokens: int, repeat: int = 3, warm: bool = True) -> dict[str, Any]:
        """Read a prompt of random tokens; the logits of its last."""
        if warm:
            self._bench.seconds("prefill", tokens)
        times = [self._bench.seconds("prefill", tokens) for _ in range(repeat)]
        seconds = statistics.median(times)
        config = self._engine.config
        layer = sum(
            2 * matrix.n_weights
            for name in self._engine.file.recipe.tensors
            if name.startswith("layers.0.")
            for matrix in [self._engine.file.matrix(name)]
        )
        # Products of weights, of queries and keys, of their weights and values.
        pairs = tokens * (tokens + 1) / 2
        ops = config.n_layers * (layer * tokens + 4 * config.dim * pairs)
        return {
            "seconds": seconds,
            "samples": times,
            "tokens_per_second": tokens / seconds,
            "ops": ops,
        }

    def _generate(self, tokens: int, prompt: int = 16, sequences: int = 1) -> dict[str, Any]:
        """Write greedy text by `generate`, as users have it."""
        random = np.random.default_rng(0)
        ids: list[list[int]] = random.integers(
            3, self._engine.config.vocab_size, (sequences, prompt)
        ).tolist()
        how: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
        self._llm.generate(ids, max_tokens=4, **how)
        started = time.perf_counter()
        completions = self._llm.generate(ids, max_tokens=tokens, **how)
        seconds = time.perf_counter() - started
        decode = max(completion.timings.decode_seconds for completion in completions)
        lengths = [len(completion.token_ids) for completion in completions]
        return {
            "seconds": seconds,
            "decode_seconds": decode,
            "tokens_per_second": sum(n - 1 for n in lengths) / decode if decode else None,
            "generated": sum(lengths),
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
