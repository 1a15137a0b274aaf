"""The command `llama2q bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llama2q.cli.console import ProgressBar, exit_codes, gigabytes, print_json
from llama2q.cli.options import Json, Kv, KvChoice, ModelFile, Threads
from llama2q.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llama2q.bench import BenchReport, BenchRow


def bench(
    file: ModelFile,
    prefill: Annotated[
        str, typer.Option(metavar="N,..", help="Lengths of prompts; empty for none.")
    ] = "512",
    decode: Annotated[
        int, typer.Option(metavar="N", help="Tokens decoded one by one; 0 for none.")
    ] = 32,
    depth: Annotated[
        str, typer.Option(metavar="N,..", help="Tokens in the cache before decoding and steps.")
    ] = "0",
    step: Annotated[
        str, typer.Option(metavar="N,..", help="Tokens of one sequence in one forward call.")
    ] = "",
    batch: Annotated[
        str, typer.Option(metavar="N,..", help="Sequences that decode together.")
    ] = "",
    kv: Kv = KvChoice.auto,
    threads: Threads = None,
    repeat: Annotated[int, typer.Option(help="Measure each so often; the median counts.")] = 1,
    json: Json = False,
) -> None:
    """Measure how fast FILE runs here, and how near that is to what the machine can do.

    Tokens are random. Close other programs first: figures of a busy machine mean little.
    """
    with exit_codes():
        from llama2q.bench import BenchSettings
        from llama2q.bench import bench as measure

        settings = BenchSettings(
            prefill=parse_numbers("--prefill", prefill),
            decode=decode,
            depth=parse_numbers("--depth", depth),
            step=parse_numbers("--step", step),
            batch=parse_numbers("--batch", batch),
            kv_dtype=kv.value,
            n_threads=threads,
            repeat=repeat,
        )
        with ProgressBar("bench", "rows") as bar:
            report = measure(file, settings, bar)
        if json:
            print_json(report.to_dict())
        else:
            print(table(report))


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read "128,512"; an empty text is no number at all.

    Raises
    ------
    InvalidArgumentError
        If a part is no integer.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) < 10):
            raise InvalidArgumentError(
                f"{option} is {text!r}; expected numbers with commas between, as in 128,512"
            )
    return tuple(map(int, parts))


def table(report: BenchReport) -> str:
    """Lay the report out for people."""
    lines = [
        f"{report.file}: {report.quant}, KV {report.kv_dtype}, {report.isa}, "
        f"{report.n_threads} threads, loaded in {report.load_seconds:.2f} s"
    ]
    if report.limits:
        lines.append(
            f"limits: reads {report.limits['read_bytes_per_second'] / 1e9:.1f} GB/s, int8 dots "
            f"{report.limits['int8_ops_per_second'] / 1e9:.0f} GOPS"
        )
    memory = f"memory: peak {gigabytes(report.peak_rss_bytes)}"
    if report.anonymous_bytes is not None and report.mapped_bytes is not None:
        memory += (
            f"; now {gigabytes(report.anonymous_bytes)} its own, "
            f"{gigabytes(report.mapped_bytes)} mapped from files"
        )
    lines += [memory, "", f"{'':<30}{'tokens/s':>10}{'ms a call':>11}   share of the limit"]
    lines += [_line(row) for row in report.rows]
    return "\n".join(lines)


def _line(row: BenchRow) -> str:
    name = {
        "prefill": f"prompt of {row.tokens}",
        "decode": f"decode {row.tokens}",
        "step": f"step of {row.tokens}",
        "batch": f"decode {row.tokens}, {row.sequences} sequences",
    }[row.kind]
    if row.depth:
        name += f" at {row.depth}"
    share = "-"
    if row.share_of_limit is not None:
        share = f"{100 * row.share_of_limit:.0f} % of {row.limit}"
    return f"{name:<30}{row.tokens_per_second:>10.2f}{1000 * row.seconds:>11.1f}   {share}"
