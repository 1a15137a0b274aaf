"""The command `llama2q score`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from llama2q.cli.console import exit_codes, note, print_json
from llama2q.cli.loading import DEFAULTS, LoadOptions, takes_load_options
from llama2q.cli.options import Json, ModelFile


@takes_load_options
def score(
    file: ModelFile,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to score; - is stdin.")],
    loading: LoadOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Say how likely FILE finds TEXT: a line per token, its log-probability and its text."""
    with exit_codes():
        if text == "-":
            text = sys.stdin.buffer.read().decode("utf-8", "replace")
        with loading.load(file) as llm:
            result = llm.score(text)
            kv_dtype = llm.engine.kv_dtype
            texts = [llm.tokenizer.text_of(token) for token in result.token_ids]
        if json:
            print_json(asdict(result))
        else:
            for token, value, piece in zip(
                result.token_ids[1:], result.logprobs, texts[1:], strict=True
            ):
                print(f"{value:10.4f} {token:>6} {piece!r}")
        note(
            f"{len(result.logprobs)} tokens scored, total {result.total:.4f}, perplexity "
            f"{result.perplexity:.4f}; KV {kv_dtype}"
        )
