"""Arguments and options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llama2q.errors import InvalidArgumentError


class KvChoice(StrEnum):
    """Types of the KV cache."""

    auto = "auto"
    f32 = "f32"
    f16 = "f16"
    int8 = "int8"


class Protocol(StrEnum):
    """Protocols of perplexity."""

    llama_cpp = "llama.cpp"
    gptq = "gptq"


ModelFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .l2q model file.")]
TextFile = Annotated[Path, typer.Argument(metavar="TEXT", help="A text file, UTF-8.")]
Context = Annotated[
    int | None, typer.Option("--ctx", help="Context in tokens; the model's own if not given.")
]
Kv = Annotated[KvChoice, typer.Option("--kv", help="Type of the KV cache.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Computing threads; all physical cores if not given."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda (all GPUs) or cuda:N.", show_default=True)
]
GpuLayers = Annotated[
    str, typer.Option(metavar="N", help="Layers on GPUs; auto: as many as fit.", show_default=True)
]
GpuMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory of each GPU that may be taken: 24GB, 7.5GiB."),
]
StreamPrefill = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="Send the CPU's layers through the GPU for so many tokens of a prompt; auto, none.",
        show_default=True,
    ),
]


RopeScaling = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE[:FACTOR]",
        help="For contexts beyond the model's: linear, ntk or yarn; none turns the file's own off. "
        "Without a factor it follows from --ctx.",
    ),
]


def rope_of(text: str | None) -> str | dict[str, str | float] | None:
    """Read --rope-scaling."""
    kind, colon, factor = (text or "").partition(":")
    if not colon:
        return text
    try:
        return {"type": kind, "factor": float(factor)}
    except ValueError:
        raise InvalidArgumentError(
            f"--rope-scaling is {text!r}; expected TYPE or TYPE:FACTOR, as yarn:4"
        ) from None


def stream_of(text: str) -> int | str | None:
    """Return the number that --stream-prefill has, None for "none", or what is neither."""
    return None if text == "none" else layers_of(text)


def layers_of(text: str) -> int | str:
    """Return the number that --gpu-layers has, or what is none."""
    return int(text) if text.isdecimal() else text
