"""The options by which commands load a model: declared once, the same in each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from llama2q.cli.options import (
    Context,
    Device,
    GpuLayers,
    GpuMemory,
    Kv,
    KvChoice,
    RopeScaling,
    StreamPrefill,
    Threads,
    layers_of,
    rope_of,
    stream_of,
)

if TYPE_CHECKING:
    from llama2q import Llama


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a user says about loading; each attribute is an option of the command line."""

    ctx: Context = None
    rope_scaling: RopeScaling = None
    kv: Kv = KvChoice.auto
    threads: Threads = None
    device: Device = "auto"
    gpu_layers: GpuLayers = "auto"
    gpu_memory: GpuMemory = None
    stream_prefill: StreamPrefill = "auto"

    def load(self, file: Path) -> Llama:
        """Load a model file; see `llama2q.load`."""
        import llama2q

        return llama2q.load(
            file,
            n_ctx=self.ctx,
            kv_dtype=self.kv.value,
            n_threads=self.threads,
            device=self.device,
            gpu_layers=layers_of(self.gpu_layers),
            gpu_memory=self.gpu_memory,
            stream_prefill=stream_of(self.stream_prefill),
            rope_scaling=rope_of(self.rope_scaling),
        )


DEFAULTS = LoadOptions()


def takes_load_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command of typer each of `LoadOptions` in place of its parameter `loading`."""
    loading = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=getattr(DEFAULTS, name),
            annotation=annotation,
        )
        for name, annotation in get_type_hints(LoadOptions, include_extras=True).items()
    ]
    hints = get_type_hints(command, include_extras=True)
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name == "loading":
            parameters += loading
        else:
            shown = parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
            parameters.append(shown)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = LoadOptions(**{option.name: values.pop(option.name) for option in loading})
        command(**values, loading=options)

    run.__dict__["__signature__"] = Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
