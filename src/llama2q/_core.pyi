"""Types of the C++ extension. Arrays are C-contiguous; a wrong dtype or shape is an error."""

from collections.abc import Mapping, Sequence
from mmap import mmap
from typing import Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

__version__: str

_F32: TypeAlias = NDArray[np.float32]
_I32: TypeAlias = NDArray[np.int32]
KvDtype: TypeAlias = Literal["f32", "f16", "int8"]

COMPILER: str
"""Name and version of the C++ compiler."""
BLOCK_SIZE: int
"""Positions per KV block: 64."""
BAND_ROWS: int
STEP_TOKENS: int
"""Rows per band of a weight matrix: 16."""

def isas() -> list[str]:
    """Names of the instruction sets compiled in that this CPU has, slowest first."""

def compiled_isas() -> list[str]:
    """Names of the instruction sets that this build holds, slowest first."""

def cpu_features() -> list[str]:
    """What this CPU and operating system offer that kernels can use."""

def default_isa() -> str:
    """Name of the one used when none is asked for: LLAMA2Q_ISA, or the fastest."""

def default_threads() -> int:
    """Physical cores that this process may use (affinity and cgroup quota respected)."""

def measure_dot_rate(
    isa: str | None = None, n_threads: int | None = None, seconds: float = 0.4
) -> dict[str, float]:
    """Int8 operations (a multiplication and its addition are two) per second of all threads, by the
    way they were done: the instruction set's idioms, operands in registers or from memory. Takes
    about that long; each rate is that of the best 5 ms but one."""

def measure_read_bandwidth(
    isa: str | None = None,
    n_threads: int | None = None,
    n_bytes: int = 536870912,
    seconds: float = 2.0,
) -> dict[str, float]:
    """Bytes per second at which all threads together read n_bytes of memory, by access pattern:
    streams side by side, prefetch distance, shares or pieces, small or huge pages. Each pattern is
    tried, the fastest ones for about that long; each rate is that of the best eighth but one."""

def usable_cpus() -> int:
    """Threads that can run at once: CPUs of the affinity mask, siblings of a core included, at most
    the cgroup's quota."""

class DeviceDescription(TypedDict):
    """A device: bandwidth in bytes per second, 0 if unknown."""

    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    n_multiprocessors: int
    shared_bytes: int
    driver_version: tuple[int, int]
    bytes_per_second: int

class DeviceLibrary:
    """Kernels for devices, in a library that is loaded at run time."""

    def __init__(self, path: str) -> None: ...
    @property
    def targets(self) -> str: ...
    @property
    def n_devices(self) -> int: ...
    def describe(self, index: int) -> DeviceDescription:
        """Name, memory and abilities of a device."""

def device_work_bytes(
    config: Mapping[str, object],
    n_ctx_blocks: int,
    max_sequences: int,
    n_multiprocessors: int,
    shared_bytes: int,
) -> int:
    """Bytes of a model's work space on a device that has so many multiprocessors, and whose blocks
    may have so much shared memory."""

def device_matrix_bytes(matrix: Matrix) -> int:
    """Bytes that a matrix takes on a device."""

class Matrix:
    """A weight matrix [rows, cols] in the file's layout; keeps its arrays alive, copies nothing."""

    @staticmethod
    def int4(
        codes: NDArray[np.uint8],
        scales: NDArray[np.float16],
        grid: NDArray[np.int8],
        rows: int,
        cols: int,
    ) -> Matrix:
        """codes uint8 (n_bands, K/8, 64), scales float16 (n_bands, K/G, 16), grid int8 (16,)."""

    @staticmethod
    def int8(codes: NDArray[np.int8], scales: NDArray[np.float16], rows: int, cols: int) -> Matrix:
        """codes int8 (n_bands, K/4, 64), scales float16 (n_bands, K/G, 16)."""

    @staticmethod
    def dense(
        values: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16],
        rows: int,
        cols: int,
    ) -> Matrix:
        """values (n_bands, cols, 16); uint16 holds bfloat16."""

    @property
    def kind(self) -> Literal["int4", "int8", "f32", "f16", "bf16"]: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def group_size(self) -> int:
        """Columns per scale; 0 for dense."""

class Embedding:
    """The token embedding table, row-major [vocab_size, dim]; keeps its arrays alive."""

    @staticmethod
    def int8(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> Embedding:
        """codes int8 (vocab_size, dim), scales float16 (vocab_size, ceil(dim / G))."""

    @staticmethod
    def dense(
        values: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16],
    ) -> Embedding:
        """values (vocab_size, dim); uint16 holds bfloat16."""

class CancelFlag:
    """An atomic flag that a running step reads between layers."""

    def __init__(self) -> None: ...
    def set(self) -> None: ...
    def is_set(self) -> bool: ...

class Model:
    """Weights, KV cache and thread pool; `step` is the one forward call. Calls are serialized."""

    def __init__(
        self,
        *,
        config: Mapping[str, int | float],
        tok_embeddings: Embedding,
        layers: Sequence[Mapping[str, Matrix | _F32]],
        norm: _F32,
        output: Matrix,
        inv_freq: NDArray[np.float64],
        kv_dtype: KvDtype,
        n_blocks: int,
        n_threads: int | None = None,
        isa: str | None = None,
        devices: list[tuple[DeviceLibrary, int, int]] = [],
        n_ctx_blocks: int | None = None,
        attention_factor: float = 1.0,
    ) -> None:
        """config: keys of ModelConfig.to_dict. Keys of a layer: attention_norm, wq, wk, wv, wo,
        ffn_norm, w1_w3 (alternating bands), w2. inv_freq float64 (head_dim / 2,). devices: a
        library, the number of a device and how many layers it gets, the last ones of the model;
        n_ctx_blocks: blocks of the longest sequence (all); attention_factor: on cos and sin of
        RoPE."""

    @property
    def n_blocks(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def kv_dtype(self) -> KvDtype: ...
    @property
    def notes(self) -> list[str]:
        """What devices had to do without."""

    @property
    def work_bytes(self) -> int:
        """Bytes of work space held now; it grows with the first steps."""

    def step(
        self,
        token_ids: _I32,
        positions: _I32,
        sequence_of_token: _I32,
        block_tables: _I32,
        output_rows: _I32,
        output: Literal["logits", "hidden"] = "logits",
        cancel: CancelFlag | None = None,
    ) -> _F32:
        """The ragged step.

        token_ids, positions, sequence_of_token (n,); block_tables (n_sequences, max_blocks), -1
        where a sequence has no block; output_rows (m,) strictly ascending indices of tokens.
        Returns float32 (m, vocab_size) or, for "hidden", (m, dim) after the final norm.
        """

    def step_largest(
        self,
        token_ids: _I32,
        positions: _I32,
        sequence_of_token: _I32,
        block_tables: _I32,
        output_rows: _I32,
        k: int,
        cancel: CancelFlag | None = None,
    ) -> tuple[_F32, _I32]:
        """A step that returns, of each output row, the k largest logits alone (k <= 64), chosen
        where they are computed: float32 (m, k), descending, and their ids, int32 (m, k); of equal
        logits the lower id comes first."""

    def set_layer_stream(self, from_tokens: int) -> None:
        """From now on, the first device computes the host's layers, too, in passes of that many
        tokens or more: their weights visit it one layer after the other."""

    def copy_blocks(self, source: _I32, destination: _I32) -> None:
        """Copy K and V of block source[i] to destination[i] in every layer."""

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in all layers."""

    def read_blocks(self, blocks: _I32) -> NDArray[np.uint8]:
        """K and V of blocks (n,) in every layer, as they lie in the cache: (n, block_bytes)."""

    def write_blocks(self, blocks: _I32, data: NDArray[np.uint8]) -> None:
        """Put what read_blocks returned, (n, block_bytes), into blocks (n,)."""

    def read_ahead(
        self,
        file: int,
        map: mmap,
        layers: Sequence[tuple[int, int, bool]],
        window_bytes: int,
        loading: Literal["map", "read"] = "map",
    ) -> None:
        """From now on, steps read the weights of layers ahead of their use.

        file: a descriptor of the mapped file, duplicated; map: the read-only map that the weights
        lie in; layers: for each its first byte, the byte after its last, and whether it is dropped
        after use (Linux); window_bytes: how much of these may be in memory at once; loading:
        "map", or "read" to read the file in several threads, where the map is slow.
        """

    # The ops, for calibration and tests; x, q and so on are float32 (n, width).
    def embed(self, token_ids: _I32) -> _F32: ...
    def qkv(
        self, layer: int, x: _F32, positions: _I32, sequence_of_token: _I32, block_tables: _I32
    ) -> _F32:
        """RMSNorm, wq/wk/wv, RoPE; appends K and V to the cache; returns q (n, dim)."""

    def attend(
        self, layer: int, q: _F32, positions: _I32, sequence_of_token: _I32, block_tables: _I32
    ) -> _F32: ...
    def project(self, layer: int, attended: _F32, x: _F32) -> _F32:
        """Return x + wo @ attended."""

    def gate_up(self, layer: int, x: _F32) -> _F32:
        """RMSNorm, w1/w3, SwiGLU; returns (n, hidden_dim)."""

    def down(self, layer: int, hidden: _F32, x: _F32) -> _F32:
        """Return x + w2 @ hidden."""

    def output(self, x: _F32, output: Literal["logits", "hidden"] = "logits") -> _F32: ...

def work_bytes(
    config: Mapping[str, int | float],
    group_size: int,
    n_threads: int,
    n_tokens: int,
    n_rows: int,
    isa: str | None = None,
) -> int:
    """Bytes that a model's work space grows to by steps of n_tokens tokens and n_rows rows at most;
    group_size 0 if all matrices are dense. Model.work_bytes is what it holds now."""

def kv_bytes(config: Mapping[str, int | float], kv_dtype: KvDtype, n_blocks: int) -> int:
    """Bytes of a KV cache whose blocks have all been written."""

def sample(
    logits: _F32,
    temperature: NDArray[np.float32],
    top_p: NDArray[np.float32],
    top_k: _I32,
    min_p: NDArray[np.float32],
    seed: NDArray[np.uint64],
    sequence_index: _I32,
    position: _I32,
    isa: str | None = None,
) -> _I32:
    """One token per row of logits (n, vocab_size); the other arrays are (n,). temperature 0 is
    argmax; top_k 0 is off; ties go to the lower id. Draw: Philox4x32-10 of (seed, sequence_index,
    position)."""

def edit_logits(
    logits: _F32,
    bias_ids: _I32,
    biases: _F32,
    seen_ids: _I32,
    counts: _I32,
    repetition: float,
    frequency: float,
    presence: float,
    banned_ids: _I32,
) -> None:
    """Bias, penalties and bans on one row of logits (vocab_size,), in place. bias_ids and biases
    (n_biases,); seen_ids (n_seen,), the distinct tokens of prompt and output, counts (n_seen,) how
    often each is in the output. The order of the operations: csrc/README.md, point 7."""

def logprobs(
    logits: _F32, chosen: _I32, k: int, isa: str | None = None
) -> tuple[_I32, _F32, _F32, _I32]:
    """Of rows of raw logits (n, vocab_size) with a chosen token each (n,): ids (n, k) and
    log-probabilities (n, k) of the k likeliest in order of rank, log-probability (n,) and rank
    (n,), from 1, of the chosen."""

def quantize_int4(
    weights: _F32 | NDArray[np.float16] | NDArray[np.uint16],
    group_size: int,
    grid: NDArray[np.int8],
    n_threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Round to nearest. weights (rows, cols), uint16 holds bfloat16. Returns codes and scales in
    the file's layout. NaN or Inf raise NonFiniteWeightError with row and column."""

def search_int4(
    weights: _F32 | NDArray[np.float16] | NDArray[np.uint16],
    group_size: int,
    grid: NDArray[np.int8],
    importance: _F32 | None = None,
    isa: str | None = None,
    n_threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """As quantize_int4, each group's scale chosen by the squared error that it causes, weighed by
    importance (cols,): llama2q.quant.search is the definition."""

def feed_back_int4(
    weights: _F32 | NDArray[np.float16] | NDArray[np.uint16],
    group_size: int,
    grid: NDArray[np.int8],
    factors: _F32,
    importance: _F32,
    correction: _F32 | None = None,
    isa: str | None = None,
    n_threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """As search_int4, columns from the last to the first, and the error of each, by which it
    differs from its weights, handed on to those before it: GPTQ. factors (cols, cols): the inputs'
    second moments H = L @ D @ L.T as ldl leaves them, with L.T above the diagonal; importance
    (cols,): the diagonal of H; correction (cols, rows): the sum over inputs x of x d^T, d what the
    outputs should be beyond weights @ x. csrc/calibrate/feedback.h has the formula. Needs 3 * 768
    * cols bytes per thread. The same bits for any number of threads and instruction set."""

def quantize_int8(
    weights: _F32 | NDArray[np.float16] | NDArray[np.uint16],
    group_size: int,
    n_threads: int | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float16]]: ...
def quantize_rows_int8(
    weights: _F32 | NDArray[np.float16] | NDArray[np.uint16],
    group_size: int,
    n_threads: int | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """As quantize_int8, but row-major: codes (rows, cols), scales (rows, ceil(cols / G))."""

def pack_dense(
    weights: _F32 | NDArray[np.float16] | NDArray[np.uint16], n_threads: int | None = None
) -> _F32 | NDArray[np.float16] | NDArray[np.uint16]:
    """(rows, cols) to (n_bands, cols, 16), same dtype. NaN or Inf raise NonFiniteWeightError."""

# Linear algebra of calibration, in place; the same bits on any instruction set and for any number
# of threads (csrc/README.md). What is written may overlap nothing that is read.
def add_product(
    c: _F32,
    a: _F32,
    b: _F32,
    subtract: bool = False,
    isa: str | None = None,
    n_threads: int | None = None,
) -> None:
    """c += a.T @ b, or c -= a.T @ b. c (m, n), a (k, m), b (k, n)."""

def add_gram(h: _F32, x: _F32, isa: str | None = None, n_threads: int | None = None) -> None:
    """h += x.T @ x on and below the diagonal; what is above is neither read nor written. h (k, k),
    x (n, k)."""

def ldl(h: _F32, isa: str | None = None, n_threads: int | None = None) -> int:
    """Replace a symmetric matrix h (n, n) by its factors: h = L @ D @ L.T, L unit lower triangular
    (below the diagonal of h, without its ones), D diagonal (on it). What is above the diagonal is
    neither read nor written. Returns -1, or the index of the first pivot D[i] that is not greater
    than 0 or not finite, where it stopped: h then holds no factors. Needs 1024 * n bytes beside h,
    and 0.8 MiB per thread. Signals are looked at between blocks of 128 columns."""

def mirror_lower(h: _F32, n_threads: int | None = None) -> None:
    """Copy what is below the diagonal of h (n, n) above it, in place."""

# Kernels on plain arrays, for tests and for anyone (llama2q.kernels documents them).
def matmul(
    x: _F32, matrix: Matrix, isa: str | None = None, n_threads: int | None = None
) -> _F32: ...
def quantize_activations(
    x: _F32, group_size: int, isa: str | None = None
) -> tuple[NDArray[np.int8], _F32]: ...
def rms_norm(x: _F32, weight: _F32, eps: float, isa: str | None = None) -> _F32: ...
def rope(
    x: _F32,
    positions: _I32,
    inv_freq: NDArray[np.float64],
    isa: str | None = None,
    attention_factor: float = 1.0,
) -> _F32:
    """x (n, n_heads, head_dim), interleaved pairs."""

def swiglu(gate: _F32, up: _F32, isa: str | None = None) -> _F32: ...
def exp(x: _F32, isa: str | None = None) -> _F32: ...
def attention(
    q: _F32,
    k: _F32,
    v: _F32,
    positions: _I32,
    kv_dtype: KvDtype = "f32",
    isa: str | None = None,
    n_threads: int | None = None,
) -> _F32:
    """Causal attention of q (n, n_heads, head_dim) at positions (n,) over keys and values
    (n_keys, n_kv_heads, head_dim) at positions 0..n_keys-1."""
