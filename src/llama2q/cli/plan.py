"""The command `llama2q plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from llama2q.cli.console import exit_codes, print_json
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
    StreamPrefill,
    layers_of,
    rope_of,
    stream_of,
)


def plan(
    file: ModelFile,
    ctx: Context = None,
    rope_scaling: RopeScaling = None,
    kv: Kv = KvChoice.auto,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Plan for so much free memory: 8GB, 7.5GiB."),
    ] = None,
    sequences: Annotated[int, typer.Option(help="Full contexts in the KV cache.")] = 1,
    device: Device = "auto",
    gpu_layers: GpuLayers = "auto",
    gpu_memory: GpuMemory = None,
    gpu_bandwidth: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of the GPU's memory, a second: 1008GB."),
    ] = None,
    stream_prefill: StreamPrefill = "auto",
    json: Json = False,
) -> None:
    """Say what FILE needs of the memory, and what would fit; exit code 1 if it does not fit."""
    with exit_codes():
        import llama2q

        result = llama2q.plan(
            file,
            n_ctx=ctx,
            kv_dtype=kv.value,
            memory=memory,
            n_sequences=sequences,
            device=device,
            gpu_layers=layers_of(gpu_layers),
            gpu_memory=gpu_memory,
            gpu_bandwidth=gpu_bandwidth,
            stream_prefill=stream_of(stream_prefill),
            rope_scaling=rope_of(rope_scaling),
        )
        speed = llama2q.predict(result)
        if json:
            print_json({**result.to_dict(), "tokens_per_second": speed})
        else:
            print(result)
            if speed is not None:
                print(f"About {speed:.3g} tokens/s predicted, one sequence at a short context.")
            elif result.fits:
                print("No prediction of tokens/s: --gpu-bandwidth is not known.")
        if not result.fits:
            raise typer.Exit(1)
