"""The engine: an open model file, its KV cache, and the one forward call over sequences."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from llama2q import _core, host
from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.devices import CPU_ONLY, DeviceRequest
from llama2q.errors import (
    CancelledError,
    ClosedError,
    ContextLengthError,
    InsufficientMemoryError,
    InvalidArgumentError,
    TokenizerError,
)
from llama2q.format.layout import TOKENIZER
from llama2q.format.reader import L2qFile
from llama2q.kv_blocks import BLOCK, BlockPool, blocks_for
from llama2q.memory import parse_size
from llama2q.plan import KvChoice, Plan, check_count, kv_bytes_per_token, plan_for, threads_for
from llama2q.prefix_cache import root_key
from llama2q.ragged import Span, step_arrays
from llama2q.rope_scaling import RopeChoice
from llama2q.tokenizer import Tokenizer
from llama2q.weights import build_model

_I32: TypeAlias = NDArray[np.int32]
_Result = TypeVar("_Result")

MOST_LARGEST = 64
"""Most logits of a row that `Engine.forward_largest` returns."""

_log = logging.getLogger(__name__)


class Engine(Closing):
    """A loaded model; calls are safe from any thread, steps run one at a time."""

    def __init__(
        self,
        path: str | Path,
        *,
        n_ctx: int | None = None,
        kv_dtype: KvChoice = "auto",
        n_threads: int | None = None,
        isa: str | None = None,
        max_sequences: int | None = None,
        request: DeviceRequest = CPU_ONLY,
        rope_scaling: RopeChoice = None,
        prefix_memory: int | str | None = None,
    ) -> None:
        """Map a `.l2q` file and make its KV cache, whose memory is committed as it is used.

        Parameters
        ----------
        path : str or Path
            The model file.
        n_ctx : int or None
            Most tokens per sequence; None takes the model's own.
        kv_dtype : {"auto", "f32", "f16", "int8"}
            Type of the KV cache. "auto": f32 for an unquantized model; else f16 where one context
            fits beside the weights, else int8.
        n_threads : int or None
            Computing threads, at most as many as there are CPUs for them; None takes the physical
            cores that this process may use.
        isa : str or None
            Instruction set; None takes LLAMA2Q_ISA or the fastest.
        max_sequences : int or None
            Full contexts that the cache holds; None takes what 80 % of the free memory hold beside
            the weights, 1 to 8; with layers on GPUs, as many as cost none of these.
        request : DeviceRequest
            GPUs that may be used.
        rope_scaling : str, mapping or None
            As in `llama2q.load`.
        prefix_memory : int, str or None
            Most memory of the KV cache that holds texts which nobody uses any more, in case that
            they come again: bytes, or text like "2GB"; 0 keeps none. None: all of the cache that
            is not needed otherwise.

        Raises
        ------
        InvalidArgumentError
            If an argument is outside its range.
        FormatError
            If the file is not a sound `.l2q` file.
        InsufficientMemoryError
            If cache and work space do not fit the free memory; the message says what would.
        DeviceError
            If a GPU was asked for by name and cannot be used.
        """
        check_count("n_threads", n_threads)
        check_count("max_sequences", max_sequences)
        kept_bytes = _bytes_of(prefix_memory)
        self._flags: set[_core.CancelFlag] = set()
        self._lock = threading.Lock()
        self._file = L2qFile(path)
        try:
            self._set_up(
                n_ctx, kv_dtype, n_threads, isa, max_sequences, request, rope_scaling, kept_bytes
            )
        except BaseException:
            self._file.close()
            raise

    def _set_up(
        self,
        n_ctx: int | None,
        kv_choice: KvChoice,
        n_threads: int | None,
        isa: str | None,
        max_sequences: int | None,
        request: DeviceRequest,
        rope_scaling: RopeChoice,
        kept_bytes: int | None,
    ) -> None:
        config = self.config
        plan = plan_for(
            self._file,
            n_ctx=n_ctx,
            kv_choice=kv_choice,
            n_sequences=max_sequences,
            n_threads=n_threads,
            isa=isa,
            request=request,
            rope_scaling=rope_scaling,
        )
        if not plan.can_load:
            raise InsufficientMemoryError(plan.message)
        if not plan.fits:
            _log.warning("%s", plan.message)
        n_computing = threads_for(n_threads)
        if n_threads is not None and n_computing < n_threads:
            _log.warning(
                "n_threads is %d; this process may use %d CPUs: computing with %d threads",
                n_threads,
                n_computing,
                n_computing,
            )
        self.plan: Plan = plan
        self.n_ctx = plan.n_ctx
        self.kv_dtype = plan.kv_dtype
        self.tokenizer = Tokenizer.from_bytes(self._file.array(TOKENIZER).tobytes())
        if self.tokenizer.vocab_size != config.vocab_size:
            raise TokenizerError(
                f"{self._file.path}: its tokenizer has {self.tokenizer.vocab_size} pieces; "
                f"tok_embeddings has {config.vocab_size} rows"
            )
        root = root_key(self._file.model_id, plan.kv_dtype, plan.rope)
        block_bytes = BLOCK * kv_bytes_per_token(config, plan.kv_dtype)
        self.pool = BlockPool(
            blocks_for(self.n_ctx) * plan.n_sequences,
            root=root,
            most_cached=None if kept_bytes is None else kept_bytes // block_bytes,
        )
        self._model: _core.Model | None = build_model(
            self._file,
            kv_dtype=plan.kv_dtype,
            n_blocks=self.pool.n_blocks,
            n_threads=n_computing,
            isa=isa,
            read_ahead=plan.read_ahead,
            devices=plan.devices,
            n_ctx_blocks=blocks_for(self.n_ctx),
            stream_tokens=plan.stream_tokens,
            rope=plan.rope,
        )
        for note in self._model.notes:
            _log.warning("%s", note)
        _log.info(
            "%s KV cache %s%s, %d bytes a token, %d context(s); %d threads, %s",
            plan.message,
            plan.kv_dtype,
            " (chosen)" if kv_choice == "auto" else "",
            kv_bytes_per_token(config, plan.kv_dtype),
            plan.n_sequences,
            self._model.n_threads,
            self._model.isa,
        )
        if host.is_translated():
            _log.warning("%s", host.ROSETTA)

    @property
    def config(self) -> ModelConfig:
        """The model's hyperparameters."""
        return self._file.config

    @property
    def file(self) -> L2qFile:
        """The open model file."""
        return self._file

    @property
    def n_threads(self) -> int:
        """Computing threads."""
        return self._open_model().n_threads

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        return self._open_model().isa

    def close(self) -> None:
        """Stop running steps between two layers and let go of weights, cache and file."""
        with self._lock:
            for flag in self._flags:
                flag.set()
            self._model = None
        self._file.close()

    def check_open(self) -> None:
        """Raise ClosedError if `close` was called."""
        self._open_model()

    def _open_model(self) -> _core.Model:
        model = self._model
        if model is None:
            raise ClosedError("this model has been closed; load it again")
        return model

    def check_ids(self, token_ids: AbstractSequence[int]) -> None:
        """Refuse an empty prompt and ids outside the vocabulary.

        Raises
        ------
        InvalidArgumentError
            Naming the first bad id and its index.
        """
        if len(token_ids) == 0:
            raise InvalidArgumentError("the token ids are empty; expected at least one (BOS is 1)")
        ids = np.asarray(token_ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidArgumentError(
                f"token ids of shape {ids.shape} and type {ids.dtype}; expected a list of integers"
            )
        bad = np.flatnonzero((ids < 0) | (ids >= self.config.vocab_size))
        if len(bad):
            raise InvalidArgumentError(
                f"token id {ids[bad[0]]} at index {bad[0]} is outside the vocabulary; "
                f"expected 0 to {self.config.vocab_size - 1}"
            )

    def forward(
        self, spans: AbstractSequence[Span], cancel: _core.CancelFlag | None = None
    ) -> NDArray[np.float32]:
        """Append tokens to sequences in one ragged step.

        The sequences grow only if the whole step succeeds.

        Parameters
        ----------
        spans : sequence of Span
            Each of another sequence.
        cancel : CancelFlag or None
            Stops the step between two layers.

        Returns
        -------
        float32, (n_rows of all spans, vocab_size)
            Logits, in the order of the spans.

        Raises
        ------
        ContextLengthError
            If a sequence would outgrow the context.
        CancelledError
            If the flag was set.
        ClosedError
            If `close` was called, before or meanwhile.
        TruncatedFileError
            If the model file has become shorter or longer meanwhile.
        """
        return self._forward(spans, cancel, "logits")

    def forward_largest(
        self, spans: AbstractSequence[Span], k: int, cancel: _core.CancelFlag | None = None
    ) -> tuple[NDArray[np.float32], _I32]:
        """Take a step like `forward`, of whose logits only the k largest of each row are returned.

        They are chosen where they are computed: where that is a GPU, a row stays there.

        Parameters
        ----------
        k : int
            1 to `MOST_LARGEST`, at most vocab_size.

        Returns
        -------
        float32, (n_rows of all spans, k)
            Descending.
        int32, (n_rows of all spans, k)
            Their token ids; of equal logits the lower id comes first.
        """

        def step(model: _core.Model, flag: _core.CancelFlag) -> tuple[NDArray[np.float32], _I32]:
            return model.step_largest(*step_arrays(spans), k=k, cancel=flag)

        return self._run(spans, cancel, step)

    def forward_hidden(
        self, spans: AbstractSequence[Span], cancel: _core.CancelFlag | None = None
    ) -> NDArray[np.float32]:
        """Take a step like `forward`; return the final norm's output: float32 (n_rows, dim)."""
        return self._forward(spans, cancel, "hidden")

    def _forward(
        self,
        spans: AbstractSequence[Span],
        cancel: _core.CancelFlag | None,
        output: Literal["logits", "hidden"],
    ) -> NDArray[np.float32]:
        def step(model: _core.Model, flag: _core.CancelFlag) -> NDArray[np.float32]:
            return model.step(*step_arrays(spans), output=output, cancel=flag)

        return self._run(spans, cancel, step)

    @property
    def ends_on_device(self) -> bool:
        """Whether a GPU computes the logits."""
        return bool(self.plan.devices)

    def _run(
        self,
        spans: AbstractSequence[Span],
        cancel: _core.CancelFlag | None,
        step: Callable[[_core.Model, _core.CancelFlag], _Result],
    ) -> _Result:
        """Make room for the spans, run a step, and let the sequences grow."""
        model = self._open_model()
        self._file.check_size()
        for span in spans:
            end = span.sequence.n_tokens + len(span.token_ids)
            if end > self.n_ctx:
                raise ContextLengthError(
                    f"a sequence of {end} tokens; the context holds {self.n_ctx}"
                )
            span.sequence.ensure(end)
        flag = cancel or _core.CancelFlag()
        with self._lock:
            self._open_model()
            self._flags.add(flag)
        try:
            result = step(model, flag)
        except CancelledError:
            self.check_open()
            raise
        finally:
            with self._lock:
                self._flags.discard(flag)
        for span in spans:
            span.sequence.append(span.token_ids)
        return result

    def copy_block(self, source: int, destination: int) -> None:
        """Copy keys and values of one block to another, in every layer."""
        ids = np.array([source, destination], np.int32)
        self._open_model().copy_blocks(ids[:1], ids[1:])

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in every layer."""
        return self._open_model().block_bytes

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return keys and values of one block, in every layer: uint8, (block_bytes,)."""
        data: NDArray[np.uint8] = self._open_model().read_blocks(np.array([block], np.int32))[0]
        return data

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Put what `read_block` returned into a block."""
        self._open_model().write_blocks(np.array([block], np.int32), data[None])


def _bytes_of(prefix_memory: int | str | None) -> int | None:
    n_bytes = parse_size(prefix_memory) if isinstance(prefix_memory, str) else prefix_memory
    if n_bytes is not None and (type(n_bytes) is not int or n_bytes < 0):
        raise InvalidArgumentError(
            f"prefix_memory is {prefix_memory!r}; expected bytes, 0 or more, or text like 2GB"
        )
    return n_bytes
