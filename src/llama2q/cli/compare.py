"""The command `llama2q compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama2q.cli.console import ProgressBar, exit_codes, gigabytes, note, print_json
from llama2q.cli.options import Json, Kv, KvChoice, Protocol, TextFile, Threads

if TYPE_CHECKING:
    from llama2q.evaluate.comparison import ComparedModel, Comparison
    from llama2q.evaluate.divergence import Estimate


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The reference, a .l2q model file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What is compared with it.")],
    text: TextFile,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="llama.cpp: windows of 512, the second half scored; gptq: windows of 2048."
        ),
    ] = Protocol.llama_cpp,
    ctx: Annotated[
        int | None, typer.Option("--ctx", help="Tokens of a window, in place of the protocol's.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Score only the first windows, so many tokens at least."),
    ] = None,
    kv: Kv = KvChoice.auto,
    kv_a: Annotated[
        KvChoice | None, typer.Option("--kv-a", help="Type of A's KV cache, in place of --kv.")
    ] = None,
    kv_b: Annotated[
        KvChoice | None, typer.Option("--kv-b", help="Type of B's KV cache, in place of --kv.")
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure how far B's predictions on TEXT are from A's.

    KL divergence of B from A, the share of tokens at which both find the same one likeliest, and
    how the probability of TEXT's own tokens changes. --kv auto takes for both what suits A.
    """
    with exit_codes():
        import llama2q

        content = text.read_bytes().decode("utf-8", "replace")
        both = kv if kv is not KvChoice.auto else None
        chosen_b = kv_b or both
        with ProgressBar("comparing", "windows") as bar:
            result = llama2q.compare(
                a,
                b,
                content,
                protocol=protocol.value,
                n_ctx=ctx,
                n_tokens=tokens,
                kv_dtype=(kv_a or kv).value,
                kv_dtype_b=chosen_b.value if chosen_b else None,
                n_threads=threads,
                progress=bar,
            )
        if json:
            print_json(result.to_dict())
        else:
            print(table(result))
        note(f"{result.n_tokens} tokens scored in {result.seconds:.1f} s")


def table(result: Comparison) -> str:
    """Lay a comparison out for people."""
    kl, delta = result.kl_percentiles, result.delta_p_percentiles
    return "\n".join(
        [
            _side("A", result.a),
            _side("B", result.b),
            f"{result.n_windows} windows of {result.window} tokens (protocol {result.protocol}), "
            f"{result.n_tokens} tokens scored; +/- is one standard error, over the windows",
            "",
            f"KL divergence, nats       mean {_figure(result.kl_mean, '.6f')}",
            "".join(f"{_name(key):>14}" for key in kl),
            "".join(f"{value:>14.6f}" for value in kl.values()),
            "",
            f"same likeliest token      {_percent(result.same_top, '.3f')}",
            "",
            f"probability of the text's own token, B less A: mean "
            f"{_percent(result.delta_p_mean, '.4f')}, rms {_percent(result.delta_p_rms, '.3f')}",
            "".join(f"{_name(key):>8}" for key in delta),
            "".join(f"{100 * value:>8.2f}" for value in delta.values()) + "  %",
            "",
            f"perplexity                A {_figure(result.perplexity_a, '.4f')}, "
            f"B {_figure(result.perplexity_b, '.4f')}, B/A "
            f"{_figure(result.perplexity_ratio, '.5f')}",
        ]
    )


def _side(name: str, model: ComparedModel) -> str:
    return (
        f"{name}: {Path(model.path).name}: {model.type}, {model.bits_per_weight:.4g} bits per "
        f"weight of the layers, {gigabytes(model.file_bytes)}, KV {model.kv_dtype}"
    )


def _name(percentile: str) -> str:
    return {"0": "min", "50": "median", "100": "max"}.get(percentile, f"{percentile} %")


def _figure(estimate: Estimate, form: str) -> str:
    if estimate.standard_error is None:
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} +/- {estimate.standard_error:{form}}"


def _percent(estimate: Estimate, form: str) -> str:
    error = estimate.standard_error
    scaled = type(estimate)(100 * estimate.value, None if error is None else 100 * error)
    return f"{_figure(scaled, form)} %"
