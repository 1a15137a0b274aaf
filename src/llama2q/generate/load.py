"""`load`: a model file, ready to be asked."""

from __future__ import annotations

from pathlib import Path

from llama2q.devices import DeviceRequest
from llama2q.engine import Engine
from llama2q.generate.llama import Llama
from llama2q.plan import KvChoice
from llama2q.rope_scaling import RopeChoice


def load(
    path: str | Path,
    *,
    n_ctx: int | None = None,
    kv_dtype: KvChoice = "auto",
    n_threads: int | None = None,
    device: str = "auto",
    gpu_layers: int | str = "auto",
    gpu_memory: int | str | None = None,
    stream_prefill: int | str | None = "auto",
    rope_scaling: RopeChoice = None,
    prefix_memory: int | str | None = None,
) -> Llama:
    """Load a model file; the weights are mapped, not read.

    Parameters
    ----------
    path : str or Path
        A `.l2q` file, as `llama2q.convert` writes it.
    n_ctx : int or None
        Most tokens of prompt and completion together; None takes the model's own, or what
        `rope_scaling` makes of it.
    kv_dtype : {"auto", "f32", "f16", "int8"}
        Type of the KV cache. "auto": f32 for an unquantized model; else f16 where weights and
        cache fit the available memory, else int8. The choice is logged.
    n_threads : int or None
        Computing threads, at most as many as there are CPUs for them; None takes the physical cores
        that this process may use.
    device : str
        "auto": GPUs where there are any; "cpu"; "cuda": all GPUs, or an error that says why not;
        "cuda:N": that one. The choice is logged.
    gpu_layers : int or "auto"
        Layers on GPUs, the last ones of the model; "auto": as many as fit.
    gpu_memory : int, str or None
        How much of each GPU's memory may be taken: bytes, or text like "7GB". None: what is free
        but for 512 MiB or 5 %.
    stream_prefill : int, "auto" or None
        Where the CPU has layers beside a GPU: a prompt's passes of at least so many tokens send
        their weights through the GPU, which computes them faster; that takes the GPU's memory of
        one layer. "auto": where the way takes less time than the CPU; None: never.
    rope_scaling : str, mapping or None
        For contexts longer than those of the training: "linear", "ntk" or "yarn", or a mapping as
        {"type": "yarn", "factor": 4.0} (with "yarn" also attention_factor, beta_fast, beta_slow,
        truncate). Without a factor it follows from n_ctx; "ntk" takes a base fixed for the whole
        context. None: what the file says, which "none" turns off.
    prefix_memory : int, str or None
        Most memory of the KV cache that holds texts which nobody uses any more, in case that they
        come again: bytes, or text like "2GB"; 0 keeps none. None: all of the cache that is not
        needed otherwise.

    Returns
    -------
    Llama
        A context manager.

    Raises
    ------
    FormatError
        If the file is not a sound `.l2q` file.
    InvalidArgumentError
        If an argument is outside its range.
    InsufficientMemoryError
        If KV cache and work space do not fit the free memory; the message says what would.
    DeviceError
        If a GPU was asked for by name and cannot be used; the message names what is missing.

    Notes
    -----
    `llama2q.plan` says beforehand what loading needs. Weights that do not fit the memory beside the
    rest are read from the disk again and again: that works, slowly, and is logged as a warning.
    """
    engine = Engine(
        path,
        n_ctx=n_ctx,
        kv_dtype=kv_dtype,
        n_threads=n_threads,
        request=DeviceRequest.of(device, gpu_layers, gpu_memory, stream_prefill),
        rope_scaling=rope_scaling,
        prefix_memory=prefix_memory,
    )
    return Llama(engine)
