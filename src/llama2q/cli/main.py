"""The command `llama2q`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from llama2q.cli.bench import bench
from llama2q.cli.chat import chat
from llama2q.cli.compare import compare
from llama2q.cli.console import ProgressBar, exit_codes, note, print_json, set_up
from llama2q.cli.doctor import doctor
from llama2q.cli.export import export
from llama2q.cli.generate import generate
from llama2q.cli.inspect import describe, print_description, print_licences
from llama2q.cli.loading import DEFAULTS, LoadOptions, takes_load_options
from llama2q.cli.options import Json, ModelFile, Protocol, TextFile
from llama2q.cli.plan import plan
from llama2q.cli.replay import replay
from llama2q.cli.score import score
from llama2q.cli.verify import verify

app = typer.Typer(
    help="Run Llama 2 from one quantized .l2q file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        from llama2q import __version__

        print(f"llama2q {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on stderr what was chosen.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    set_up(verbose)


@app.command()
def inspect(
    file: ModelFile,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    licences: Annotated[
        bool, typer.Option("--licences", help="Print the licence texts in the file.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what is in FILE; reads its header only."""
    with exit_codes():
        from llama2q.format.reader import L2qFile

        with L2qFile(file) as opened:
            description = describe(opened, tensors=tensors, licences=licences)
        if json:
            print_json(description)
        elif licences:
            print_licences(description)
        else:
            print_description(description)


@app.command()
@takes_load_options
def perplexity(
    file: ModelFile,
    text: TextFile,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="llama.cpp: chunks of 512, the second half scored; gptq: windows of 2048."
        ),
    ] = Protocol.llama_cpp,
    chunks: Annotated[int | None, typer.Option(help="Only the first N chunks.")] = None,
    loading: LoadOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Measure how well FILE predicts TEXT."""
    with exit_codes():
        from llama2q.evaluate.perplexity import perplexity as measure

        content = text.read_bytes().decode("utf-8", "replace")
        with (
            loading.load(file) as llm,
            ProgressBar("perplexity", "chunks") as bar,
        ):
            result = measure(llm, content, protocol=protocol.value, n_chunks=chunks, progress=bar)
            values: dict[str, Any] = {**asdict(result), "kv_dtype": llm.engine.kv_dtype}
        if json:
            print_json(values)
        else:
            print(f"{result.perplexity:.4f} +/- {result.standard_error:.4f}")
        note(
            f"{result.n_tokens} tokens scored in {result.n_chunks} chunks, protocol "
            f"{result.protocol}, KV {values['kv_dtype']}, {result.seconds:.1f} s"
        )


for command in (chat, generate, replay, score, compare, export, plan, bench, verify, doctor):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()
