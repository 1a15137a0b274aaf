"""What a model needs of this machine's memory, before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from llama2q import _core
from llama2q import memory as system_memory
from llama2q.config import ModelConfig
from llama2q.devices import CPU_ONLY, Device, DeviceRequest
from llama2q.errors import DeviceError, InvalidArgumentError
from llama2q.format.reader import L2qFile
from llama2q.kv_blocks import BLOCK
from llama2q.memory import format_size, parse_size
from llama2q.needs import Alternative, Needs, alternatives, choose_kv_dtype, choose_n_sequences
from llama2q.placement import place
from llama2q.read_ahead import ReadAhead, read_ahead_for
from llama2q.rope_scaling import RopeChoice, RopeScaling, choose_rope
from llama2q.split import DeviceShare

KvChoice: TypeAlias = Literal["auto", "f32", "f16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a model needs and what there is; sizes in bytes.

    Attributes
    ----------
    name : str
        Model and quantization.
    n_ctx : int
        Tokens of a context.
    kv_dtype : {"f32", "f16", "int8"}
    n_sequences : int
        Full contexts in the KV cache.
    weight_bytes : int
        The mapped file.
    kv_bytes : int
        The KV cache when all contexts are full; it is committed as it is used.
    work_bytes : int
        Buffers of a forward call and its logits.
    overhead_bytes : int
        What loading adds to the process beside these: tokenizer, modules, threads.
    available_bytes : int
        Memory that can be had.
    would_fit : tuple of Alternative
        Empty if the plan fits; best first. They hold the weights too, unless nothing can.
    read_ahead : ReadAhead or None
        Which layers are read from disk at each step, where the weights do not fit (on Linux).
    devices : tuple of DeviceShare
        GPUs and their layers, in the order of these; what is said above is the host's share.
    stream_tokens : int or None
        Passes of so many tokens send the host's layers through the first GPU.
    read_bytes : int
        Weights that a step of one token reads on the host.
    all_on_gpu_bytes : int or None
        What one GPU would take for all layers, where there are GPUs and layers that do not fit.
    rope : RopeScaling
        What acts in this context.
    """

    name: str
    n_ctx: int
    kv_dtype: _core.KvDtype
    n_sequences: int
    weight_bytes: int
    kv_bytes: int
    work_bytes: int
    overhead_bytes: int
    available_bytes: int
    would_fit: tuple[Alternative, ...]
    read_ahead: ReadAhead | None = None
    devices: tuple[DeviceShare, ...] = ()
    stream_tokens: int | None = None
    read_bytes: int = 0
    all_on_gpu_bytes: int | None = None
    rope: RopeScaling = field(default_factory=RopeScaling)

    @property
    def anonymous_bytes(self) -> int:
        """What cannot be read again from the file: all but the weights."""
        return self.kv_bytes + self.work_bytes + self.overhead_bytes

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.anonymous_bytes

    @property
    def fits(self) -> bool:
        """Whether everything stays in memory."""
        return self.total_bytes <= self.available_bytes

    @property
    def can_load(self) -> bool:
        """Whether all but the weights stays in memory; weights that do not are read repeatedly."""
        return self.anonymous_bytes <= self.available_bytes

    @property
    def message(self) -> str:
        """The plan in a sentence or two."""
        shares = [f"{share}." for share in self.devices]
        if self.all_on_gpu_bytes is not None:
            size = format_size(self.all_on_gpu_bytes)
            shares.append(f"The CPU has the first layers; all of them would take {size} of a GPU.")
        if self.stream_tokens is not None:
            shares.append(
                f"The CPU's layers visit the GPU for {self.stream_tokens} tokens of a prompt or "
                "more."
            )
        return " ".join([*shares, self._host_message])

    @property
    def _host_message(self) -> str:
        total = self.total_bytes

        def size(n_bytes: int) -> str:
            return format_size(n_bytes, total)

        contexts = f"{self.n_sequences} x " if self.n_sequences > 1 else ""
        text = (
            f"{self.name}: weights {size(self.weight_bytes)} + KV cache {size(self.kv_bytes)} "
            f"({contexts}{self.n_ctx} tokens, {self.kv_dtype}) + work "
            f"{size(self.work_bytes + self.overhead_bytes)} = {size(total)} of "
            f"{format_size(self.available_bytes)} free: "
        )
        if self.fits:
            return text + "fits."
        if self.can_load:
            text += f"the weights do not fit beside the rest{self._from_disk()}"
        else:
            text += "does not fit, even with the weights left on disk"
        if not self.would_fit:
            return text + ". Nothing would; free some memory or take a smaller model."
        options = "; or ".join(self._describe(option) for option in self.would_fit)
        return f"{text}. Would fit: {options}."

    def _from_disk(self) -> str:
        if self.read_ahead is None:
            return " and will be read from disk at each step"
        streamed = self.read_ahead.streamed_bytes
        return (
            f": {format_size(streamed, self.total_bytes)} of them "
            f"({len(self.read_ahead.streamed)} of {self.read_ahead.n_layers} layers), read ahead "
            "of their use, will be read from disk at each step"
        )

    def _describe(self, option: Alternative) -> str:
        parts = []
        if option.n_sequences != self.n_sequences:
            parts.append(f"{option.n_sequences} context{'s' * (option.n_sequences > 1)}")
        if option.n_ctx != self.n_ctx:
            parts.append(f"a context of {option.n_ctx} tokens")
        if option.kv_dtype != self.kv_dtype:
            parts.append(f"a KV cache in {option.kv_dtype}")
        size = format_size(option.total_bytes, self.total_bytes)
        if option.total_bytes > self.available_bytes:
            beside = format_size(option.total_bytes - self.weight_bytes, self.total_bytes)
            size = f"{beside} beside weights that are read from disk at each step"
        return f"{' and '.join(parts)} ({size})"

    def __str__(self) -> str:
        """Return `message`."""
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and what follows from them, for JSON."""
        return {
            **asdict(self),
            "rope": self.rope.to_dict(),
            "anonymous_bytes": self.anonymous_bytes,
            "total_bytes": self.total_bytes,
            "fits": self.fits,
            "can_load": self.can_load,
            "message": self.message,
        }


def plan(
    path: str | Path,
    *,
    n_ctx: int | None = None,
    kv_dtype: KvChoice = "auto",
    memory: int | str | None = None,
    n_sequences: int = 1,
    device: str = "auto",
    gpu_layers: int | str = "auto",
    gpu_memory: int | str | None = None,
    stream_prefill: int | str | None = "auto",
    gpu_bandwidth: int | str | None = None,
    rope_scaling: RopeChoice = None,
) -> Plan:
    """Say what a model would need; reads the file's header only.

    Parameters
    ----------
    path : str or Path
        A `.l2q` file.
    n_ctx : int or None
        Tokens of a context; None takes the model's own.
    kv_dtype : {"auto", "f32", "f16", "int8"}
        Type of the KV cache; "auto" as in `llama2q.load`.
    memory : int, str or None
        Plan for so much free memory: bytes, or text like "8GB" or "7.5GiB". None measures what is
        free here, within the limit of the process's cgroup.
    n_sequences : int
        Full contexts that the KV cache holds.
    device, gpu_layers, gpu_memory, stream_prefill, rope_scaling
        As in `llama2q.load`. With gpu_memory and without a GPU: the plan for one that has so much.
    gpu_bandwidth : int, str or None
        Of the memory of GPUs, in bytes per second or text like "1008GB", for `llama2q.predict`;
        None: what they say.

    Returns
    -------
    Plan

    Raises
    ------
    FormatError
        If the file is not a sound `.l2q` file.
    InvalidArgumentError
        If an argument is outside its range.
    """
    if isinstance(memory, str):
        memory = parse_size(memory)
    check_count("memory", memory)
    if isinstance(gpu_bandwidth, str):
        gpu_bandwidth = parse_size(gpu_bandwidth)
    check_count("gpu_bandwidth", gpu_bandwidth)
    if n_sequences is None:
        raise InvalidArgumentError("n_sequences is None; expected an integer of at least 1")
    check_count("n_sequences", n_sequences)
    request = DeviceRequest.of(device, gpu_layers, gpu_memory, stream_prefill)
    with L2qFile(path) as file:
        return plan_for(
            file,
            n_ctx=n_ctx,
            kv_choice=kv_dtype,
            available=memory,
            n_sequences=n_sequences,
            request=request,
            devices=_imagined(request, gpu_bandwidth),
            rope_scaling=rope_scaling,
        )


def _imagined(request: DeviceRequest, bandwidth: int | None) -> list[Device]:
    """Return the GPUs to plan for: one that is not here, if it is known how much memory it has."""
    try:
        found = request.find()
    except DeviceError:
        if request.gpu_memory is None:
            raise
        found = []
    size = request.gpu_memory
    if not found and size is not None and request.device != "cpu" and request.gpu_layers != 0:
        found = [Device(index=0, name="a GPU", total_bytes=size, free_bytes=size, room_bytes=size)]
    if bandwidth is None:
        return found
    return [replace(device, bytes_per_second=bandwidth) for device in found]


def plan_for(
    file: L2qFile,
    *,
    n_ctx: int | None = None,
    kv_choice: KvChoice = "auto",
    available: int | None = None,
    n_sequences: int | None = None,
    n_threads: int | None = None,
    isa: str | None = None,
    request: DeviceRequest = CPU_ONLY,
    devices: Sequence[Device] | None = None,
    rope_scaling: RopeChoice = None,
) -> Plan:
    """Plan for an open file; see `plan`.

    Parameters
    ----------
    n_sequences : int or None
        None takes as many contexts as 80 % of the memory hold beside the weights, 1 to 8.
    n_threads : int or None
        Computing threads that are asked for, see `threads_for`.
    isa : str or None
        Instruction set; None takes LLAMA2Q_ISA or the fastest.
    request : DeviceRequest
        GPUs that may be used.
    devices : sequence of Device or None
        To plan for; None looks for them.
    rope_scaling : str, mapping or None
        As in `llama2q.load`.
    """
    config = file.config
    if kv_choice not in get_args(KvChoice):
        raise InvalidArgumentError(
            f"kv_dtype is {kv_choice!r}; expected one of {', '.join(get_args(KvChoice))}"
        )
    check_count("n_ctx", n_ctx)
    rope, n_ctx = choose_rope(rope_scaling, file.metadata.rope, config, n_ctx)
    if available is None:
        available = system_memory.available_bytes()
    needs = Needs.of(file, threads_for(n_threads), isa)
    shares: tuple[DeviceShare, ...] = ()
    stream_tokens: int | None = None
    all_on_gpu: int | None = None
    if devices is None:
        devices = request.find()
    if devices:
        placement = place(
            file,
            devices,
            request,
            n_ctx=n_ctx,
            kv_dtypes=_kv_dtypes(file, kv_choice),
            n_sequences=n_sequences,
            n_threads=threads_for(n_threads),
        )
        shares, stream_tokens = placement.shares, placement.stream_tokens
        if placement.n_layers < config.n_layers and request.gpu_layers == "auto":
            all_on_gpu = placement.whole_bytes
        needs = needs.beside_devices(file, placement.n_layers)
    if shares:
        kv_dtype, n_sequences = placement.kv_dtype, placement.n_sequences
    elif kv_choice == "auto":
        kv_dtype = choose_kv_dtype(needs, file.recipe.quant, n_ctx, available)
    else:
        kv_dtype = kv_choice
    if n_sequences is None:
        n_sequences = choose_n_sequences(needs, n_ctx, kv_dtype, available)
    chosen = Alternative(
        n_ctx=n_ctx,
        kv_dtype=kv_dtype,
        n_sequences=n_sequences,
        total_bytes=needs.total(n_ctx, kv_dtype, n_sequences),
    )
    room = available - needs.anonymous(n_ctx, kv_dtype, n_sequences)
    return Plan(
        name=_name(file),
        n_ctx=n_ctx,
        kv_dtype=kv_dtype,
        n_sequences=n_sequences,
        weight_bytes=needs.weights,
        kv_bytes=needs.kv(n_ctx, kv_dtype, n_sequences),
        work_bytes=needs.work(n_ctx, n_sequences),
        overhead_bytes=needs.overhead,
        available_bytes=available,
        would_fit=alternatives(needs, chosen, available),
        read_ahead=read_ahead_for(file, room, needs.n_host_layers),
        devices=shares,
        stream_tokens=stream_tokens,
        read_bytes=needs.step_weights(file),
        all_on_gpu_bytes=all_on_gpu,
        rope=rope,
    )


def _kv_dtypes(file: L2qFile, choice: KvChoice) -> tuple[_core.KvDtype, ...]:
    """Return the types that a choice leaves, best first."""
    if choice != "auto":
        return (choice,)
    return ("f32",) if file.recipe.quant == "none" else ("f16", "int8")


def threads_for(n_threads: int | None) -> int:
    """Return how many threads will compute where so many are asked for.

    None takes the physical cores that this process may use. No more than there are CPUs to run
    them: those beyond would only wait for each other.
    """
    return min(n_threads or _core.default_threads(), _core.usable_cpus())


def kv_bytes_per_token(config: ModelConfig, kv_dtype: _core.KvDtype) -> int:
    """Bytes of keys and values of one token over all layers."""
    return _core.kv_bytes(config.to_dict(), kv_dtype, BLOCK) // BLOCK**2


def check_count(name: str, value: int | None) -> None:
    """Refuse what is neither None nor an integer of at least 1."""
    if value is not None and (type(value) is not int or value < 1):
        raise InvalidArgumentError(f"{name} is {value!r}; expected an integer of at least 1")


def _name(file: L2qFile) -> str:
    """Name model and quantization, as in "llama-2-7b-chat int4"."""
    quant = file.recipe.quant
    kind = quant if quant != "none" else next(iter(file.recipe.tensors.values())).type
    return f"{file.path.stem.removesuffix(f'-{kind}')} {kind}"
