"""The command `llama2q doctor`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from llama2q.cli.console import exit_codes, note, print_json
from llama2q.cli.options import Json
from llama2q.memory import format_size

if TYPE_CHECKING:
    from llama2q.doctor import Health


def doctor(
    report: Annotated[
        bool, typer.Option("--report", help="Print a block of Markdown for a bug report.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what this machine offers, test that it computes right, and measure it for a moment.

    Exit code 1 if the self-test fails or LLAMA2Q_ISA names what is not there.
    """
    with exit_codes():
        from llama2q.doctor import examine

        health = examine()
        if json:
            print_json(health.to_dict())
        elif report:
            print(markdown(health))
        else:
            for name, value in rows(health):
                print(f"{name:<12} {value}")
        if not health.ok:
            note(
                "error: the self-test failed: results on this machine cannot be trusted; please "
                "report it with `llama2q doctor --report`"
            )
        if not health.ok or health.isa["chosen"] is None:
            raise typer.Exit(1)


def markdown(health: Health) -> str:
    """Return the report; it names no user, host or path."""
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows(health)]
    return "\n".join(["### llama2q doctor", "", "| | |", "| --- | --- |", *lines])


def rows(health: Health) -> list[tuple[str, str]]:
    """Return (name, text) of each fact."""
    cpu, isa, versions = health.cpu, health.isa, health.versions
    found = [
        ("llama2q", f"{versions['llama2q']}, compiled by {versions['compiler']}"),
        ("Python", f"{versions['python']}, NumPy {versions['numpy']}"),
        ("system", versions["system"]),
        ("CPU", cpu["name"]),
        ("features", " ".join(cpu["features"]) or "not asked on this family"),
        ("ISA", f"{isa['chosen'] or 'none'} ({isa['why']})"),
        ("ISAs", f"compiled {', '.join(isa['compiled'])}; available {', '.join(isa['available'])}"),
        ("cores", _cores(health)),
        ("memory", _memory(health)),
        ("CUDA", health.cuda),
        ("self-test", _self_test(health)),
    ]
    if health.bench:
        bench = health.bench
        found.append(
            (
                "bench",
                f"reads {bench['read_gb_per_second']} GB/s; int8 matmul "
                f"{bench['int8_matmul_gops_per_second']} GOPS; tiny model "
                f"{bench['tiny_model_tokens_per_second']} tokens/s",
            )
        )
    return found + [("warning", warning) for warning in health.warnings]


def _cores(health: Health) -> str:
    cpu = health.cpu
    physical = cpu["physical_cores"]
    text = f"{cpu['threads']} threads used"
    text += f"; {physical} physical, {cpu['logical_cores']} logical"
    if cpu["affinity_cores"] is not None:
        text += f", {cpu['affinity_cores']} allowed"
    quota = cpu["cgroup_quota_cores"]
    return text + (f"; cgroup quota {quota:g} cores" if quota is not None else "; no cgroup quota")


def _memory(health: Health) -> str:
    total, free = health.memory["total_bytes"], health.memory["available_bytes"]
    limit = health.memory["cgroup_limit_bytes"]
    text = f"{format_size(free or 0)} free of {format_size(total or 0)}"
    return text + (
        f"; cgroup limit {format_size(limit)}" if limit is not None else "; no cgroup limit"
    )


def _self_test(health: Health) -> str:
    runs = health.self_test
    failed = Counter(f"{run.quant}, KV {run.kv_dtype}, {run.isa}" for run in runs if not run.ok)
    if failed:
        return f"FAILED in {sum(failed.values())} of {len(runs)} runs: {'; '.join(failed)}"
    return f"passed: {len(runs)} runs give the published bits"
