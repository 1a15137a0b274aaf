"""The command `llama2q score`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from llama2q.cli.console import exit_codes, note, print_json
from llama2q.cli.options import (
    Context,
    Device,
    GpuLayers,
    GpuMemory,
    Json,
    Kv,
    KvChoice,
    ModelFile,
    RopeScaling,
    Threads,
    layers_of,
    rope_of,
)


def score(
    file: ModelFile,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to score; - is stdin.")],
    ctx: Context = None,
    rope_scaling: RopeScaling = None,
    kv: Kv = KvChoice.auto,
    threads: Threads = None,
    device: Device = "auto",
    gpu_layers: GpuLayers = "auto",
    gpu_memory: GpuMemory = None,
    json: Json = False,
) -> None:
    """Say how likely FILE finds TEXT: a line per token, its log-probability and its text."""
    with exit_codes():
        import llama2q

        if text == "-":
            text = sys.stdin.buffer.read().decode("utf-8", "replace")
        with llama2q.load(
            file,
            n_ctx=ctx,
            kv_dtype=kv.value,
            n_threads=threads,
            device=device,
            gpu_layers=layers_of(gpu_layers),
            gpu_memory=gpu_memory,
            rope_scaling=rope_of(rope_scaling),
        ) as llm:
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
