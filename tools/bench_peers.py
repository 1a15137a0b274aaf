"""Measures llama2q against llama.cpp on this machine, row by row in turn.

Builds llama.cpp once per tier of instructions (its source comes with llama-cpp-python from PyPI),
writes a model of Llama 2's 7B shape with random weights for both sides, and prints medians, ratios
and shares of the machine's limits. The peer is measured with flash attention and without, with an
f16 and a q8_0 KV cache; each row takes its best. ik_llama.cpp is not on PyPI and is left out.

    python3 tools/bench_peers.py --quick
    python3 tools/bench_peers.py --write docs/performance.md --json build/peers/results.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peers_build
import peers_checks
import peers_report
from llama2q import _core
from llama2q.bench import BenchSettings, measure_limits
from machine import describe_machine
from peers_driver import BATCH_N_CTX, Job, Ours, Peer, Setting
from peers_models import Models
from synthetic_shapes import SHAPES

SETTINGS = (Setting("f16", True), Setting("f16", False), Setting("q8_0", True))
_ROW_SECONDS = 60.0
"""A row's third turn and those after it are left out if they would take longer than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a run measures.

    Attributes
    ----------
    prefill, depths, steps, sequences : tuple of int
    decode : int
        Tokens decoded per sample.
    repeat : int
        Samples of each row.
    tier_prefill : int
        The prompt that the tiers below the native one are compared on.
    checks : bool
        Cold loads, and llama-bench beside the driver.
    """

    prefill: tuple[int, ...]
    depths: tuple[int, ...]
    steps: tuple[int, ...]
    sequences: tuple[int, ...]
    decode: int = 16
    repeat: int = 3
    tier_prefill: int = 512
    checks: bool = True


FULL = Scope(
    prefill=(128, 512, 2048),
    depths=(0, 1024, 4000),
    steps=(1, 2, 4, 8, 16),
    sequences=(1, 2, 4, 8),
)
QUICK = Scope(
    prefill=(128, 512),
    depths=(0, 1024),
    steps=(1, 4, 8),
    sequences=(1, 4),
    repeat=2,
    tier_prefill=128,
    checks=False,
)


KINDS = ("prefill", "decode", "step", "batch", "load")
"""What --kinds takes."""


@dataclass(slots=True)
class Result:
    """What both sides did in a row.

    Attributes
    ----------
    job : Job
    tier, model : str
    turns : dict
        Tokens per second of each turn: setting of the peer -> "peer" or our KV type -> samples.
    bounds : dict
        Our KV type -> (what bounds the row, the seconds of a call that this takes).
    """

    job: Job
    tier: str
    model: str
    turns: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bounds: dict[str, tuple[str | None, float | None]] = field(default_factory=dict)


class Run:
    """Collects results of a tier while both sides take turns."""

    def __init__(self, tier: peers_build.Tier, model: str, results: list[Result]) -> None:
        self._tier = tier
        self._model = model
        self._results = results
        self._by_job: dict[Job, Result] = {}

    def measure(
        self, job: Job, peer: Peer, setting: Setting, ours: Mapping[str, Ours], n: int
    ) -> None:
        """Let both sides take n turns at a row, fewer if that takes long."""
        result = self._by_job.get(job)
        if result is None:
            result = self._by_job[job] = Result(job, self._tier.name, self._model)
        calls = job.tokens if job.kind in ("decode", "batch") else 1
        sides: dict[str, Peer | Ours] = {"peer": peer, **ours}
        turns: dict[str, list[float]] = {name: [] for name in sides}
        total = 0.0
        for turn in range(n):
            if turn > 1 and total * (turn + 1) / turn > _ROW_SECONDS:
                break
            for name, side in sides.items():
                seconds = side.seconds(job)
                total += seconds * calls
                turns[name].append(job.rate(seconds))
        if not result.turns:
            self._results.append(result)
        result.turns[setting.name] = turns
        result.bounds = {name: side.share(job, 1.0) for name, side in ours.items()}
        say(peers_report.short_line(result, setting.name))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_tier(
    scope: Scope,
    tier: peers_build.Tier,
    models: Models,
    n_threads: int,
    limits: dict[str, float],
    settings: tuple[Setting, ...],
    results: list[Result],
) -> None:
    """Measure a tier with all settings of the peer; the first one has all rows."""
    driver = peers_build.build_driver(tier)
    run = Run(tier, models.ours.name, results)
    common: dict[str, Any] = {"n_threads": n_threads, "isa": tier.isa, "limits": limits}
    for index, setting in enumerate(settings):
        with ExitStack() as stack:
            peer = stack.enter_context(Peer(driver, models.gguf, setting, n_threads=n_threads))
            kinds: tuple[_core.KvDtype, ...] = ("f16", "int8")
            ours: dict[str, Ours] = {
                kv: stack.enter_context(Ours(models.ours, kv, **common)) for kv in kinds
            }
            for job in jobs_of(scope, index == 0):
                both = job.kind == "decode" and job.depth
                sides = ours if both else {"f16": ours["f16"]}
                run.measure(job, peer, setting, sides, scope.repeat if index == 0 else 1)
    if scope.sequences:
        setting = settings[0]
        n_most = max(scope.sequences)
        with ExitStack() as stack:
            n_ctx = BATCH_N_CTX
            peer = stack.enter_context(
                Peer(
                    driver, models.gguf, setting,
                    n_threads=n_threads, n_ctx=n_ctx * n_most * 2, n_sequences=n_most,
                )
            )  # fmt: skip
            side = stack.enter_context(
                Ours(models.ours, "f16", n_ctx=n_ctx, n_sequences=n_most, **common)
            )
            for n in scope.sequences:
                job = Job("batch", scope.decode, 0, n)
                run.measure(job, peer, setting, {"f16": side}, scope.repeat)


def jobs_of(scope: Scope, with_steps: bool) -> Iterator[Job]:
    """Yield rows in an order in which the peer's cache grows once, and is cut from then on."""
    for n in sorted(scope.prefill):
        yield Job("prefill", n)
    for depth in sorted(scope.depths, reverse=True):
        yield Job("decode", scope.decode, depth)
    if with_steps:
        for n in scope.steps:
            yield Job("step", n)


def run_same_weights(
    scope: Scope,
    models: Models,
    n_threads: int,
    limits: dict[str, float],
    results: list[Result],
) -> None:
    """Measure prefill and decode of the file that holds the peer's own weights."""
    tier = peers_build.TIERS["native"]
    run = Run(tier, models.same.name, results)
    with (
        Peer(peers_build.build_driver(tier), models.gguf, SETTINGS[0], n_threads=n_threads) as peer,
        Ours(models.same, "f16", n_threads=n_threads, isa=None, limits=limits) as side,
    ):
        for job in jobs_of(replace(scope, prefill=scope.prefill and (scope.tier_prefill,)), False):
            if job.depth:
                continue
            run.measure(job, peer, SETTINGS[0], {"f16": side}, scope.repeat)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    scope = QUICK if chosen.quick else FULL
    if chosen.repeat is not None:
        scope = replace(scope, repeat=chosen.repeat)
    scope = replace(
        scope,
        prefill=(chosen.prefill or scope.prefill) if "prefill" in chosen.kinds else (),
        depths=(chosen.depths or scope.depths) if "decode" in chosen.kinds else (),
        steps=scope.steps if "step" in chosen.kinds else (),
        sequences=scope.sequences if "batch" in chosen.kinds else (),
    )
    n_threads = chosen.threads or _core.default_threads()
    notes = [
        f"llama.cpp: {peers_build.PACKAGE} {peers_build.VERSION}, Q4_0 with output {chosen.output}",
        "ik_llama.cpp: left out, it is not on PyPI",
    ]
    tiers = []
    for tier in peers_build.TIERS.values():
        if tier.name not in chosen.tiers:
            continue
        if tier.is_available:
            tiers.append(tier)
        else:
            notes.append(f"tier {tier.name}: left out, this CPU or build does not have it")
    for tier in tiers:
        peers_build.build_driver(tier)
    say("models: " + str(peers_build.FOLDER / "models"))
    models = Models.ensure(peers_build.FOLDER / "models", chosen.shape, chosen.file, chosen.output)
    report = peers_report.Report(describe_machine(), notes=notes)
    results: list[Result] = []
    try:
        measure(chosen, scope, tiers, models, n_threads, report, results)
    except KeyboardInterrupt:
        notes.append("interrupted: what is missing was not measured")
    report.rows.extend(map(peers_report.line_of, results))
    print(report.table())
    if chosen.json:
        chosen.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if chosen.plot:
        say(report.plot(chosen.plot))
    if chosen.write:
        report.write_into(chosen.write)
    return 0


def measure(
    chosen: argparse.Namespace,
    scope: Scope,
    tiers: list[peers_build.Tier],
    models: Models,
    n_threads: int,
    report: peers_report.Report,
    results: list[Result],
) -> None:
    """Measure everything; what is done stands in the report and the results at any time."""
    report.fairness.update(peers_checks.fairness(models, n_threads))
    say(f"same weights, both sides: {report.fairness}")
    if "load" in chosen.kinds:
        cold = scope.checks
        loads = peers_checks.loads(models, n_threads, cold=cold, repeat=scope.repeat)
        report.loads.extend(loads)
    for index, tier in enumerate(tiers):
        limits = measure_limits(BenchSettings(isa=tier.isa, n_threads=n_threads, limit_seconds=3.0))
        report.limits[tier.name] = limits
        say(f"limits of {tier.name}: {limits}")
        inner = scope
        if index:
            prefill = scope.prefill and (scope.tier_prefill,)
            inner = replace(
                scope, prefill=prefill, depths=scope.depths and (0,), steps=(), sequences=()
            )
        settings = SETTINGS[:2] if index else SETTINGS
        run_tier(inner, tier, models, n_threads, limits, settings, results)
        if not index:
            run_same_weights(scope, models, n_threads, limits, results)
    if scope.checks and "native" in chosen.tiers:
        report.notes.append(peers_checks.llama_bench(models, n_threads))


def whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows: about ten minutes")
    parser.add_argument("--shape", choices=[*SHAPES], default="7b", help="of the model (7b)")
    parser.add_argument("--file", type=Path, help="our .l2q file; made if not given: int4, 64")
    parser.add_argument(
        "--output", choices=["q8_0", "q6_k"], default="q8_0", help="the peer's output matrix"
    )
    parser.add_argument("--tiers", type=lambda text: text.split(","), default=[*peers_build.TIERS])
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), default=KINDS,
        help=f"only these rows: {','.join(KINDS)}",
    )  # fmt: skip
    for name, what in (("prefill", "lengths of prompts"), ("depths", "depths of decoding")):
        parser.add_argument(f"--{name}", type=whole_numbers, help=f"{what} in place of the usual")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, help="samples of each row")
    parser.add_argument("--json", type=Path, default=peers_build.FOLDER / "results.json")
    parser.add_argument("--plot", type=Path, help="write a plot (needs matplotlib)")
    parser.add_argument("--write", type=Path, help="put the table into this Markdown file")
    chosen = parser.parse_args(arguments)
    for name, known in (("tiers", peers_build.TIERS), ("kinds", KINDS)):
        unknown = set(getattr(chosen, name)) - set(known)
        if unknown:
            parser.error(f"unknown {name} {sorted(unknown)}; known: {', '.join(known)}")
    for name in ("threads", "repeat"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; expected at least 1")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
