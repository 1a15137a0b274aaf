"""The command `llama2q chat`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama2q.cli.console import exit_codes, note
from llama2q.cli.loading import DEFAULTS, LoadOptions, takes_load_options
from llama2q.cli.options import ModelFile

if TYPE_CHECKING:
    from llama2q.terminal import Lines


class WhenFull(StrEnum):
    """What happens where the context is full."""

    stop = "stop"
    slide = "slide"


@takes_load_options
def chat(
    file: ModelFile,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system prompt.")] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Chat format instead of the file's: llama2-chat, vicuna, zephyr, chatml.",
        ),
    ] = None,
    keep_tags: Annotated[
        bool, typer.Option("--keep-tags", help="Take [INST] and the like in a text as they are.")
    ] = False,
    when_full: Annotated[
        WhenFull, typer.Option(help="Full context: stop, or slide, forgetting the oldest turns.")
    ] = WhenFull.stop,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus; 1 is off.")] = 0.9,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    min_p: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: against tokens of prompt and output; 1 is off.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="Of the first answer; each takes the next one.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where typed lines are kept, mode 0600.")
    ] = None,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep typed lines until the end only.")
    ] = False,
    loading: LoadOptions = DEFAULTS,
) -> None:
    """Talk to FILE in the terminal; /help there lists the commands."""
    with exit_codes():
        import llama2q
        from llama2q.terminal import TerminalChat

        params = llama2q.SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            max_tokens=max_tokens,
            seed=seed,
        )
        with loading.load(file) as llm:
            engine = llm.engine
            note(engine.plan.message)
            note(f"{engine.n_threads} threads, {engine.isa}; chat format {engine.file.template}.")
            TerminalChat(
                llm,
                _lines(history, no_history),
                note,
                params,
                system=system,
                strict=not keep_tags,
                template=template,
                when_full=when_full.value,
            ).run()


def _lines(history: Path | None, no_history: bool) -> Lines:
    from llama2q.terminal import default_history, open_lines

    if no_history:
        return open_lines(None)
    try:
        return open_lines(history or default_history())
    except OSError as error:
        if history is not None:
            raise
        note(f"typed lines are not kept: {error}")
        return open_lines(None)
