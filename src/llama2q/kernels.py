"""The kernels on NumPy arrays: what the engine runs, for anyone to use.

Every function takes and returns C-contiguous arrays and follows the numeric contract of
csrc/README.md: the result is the same bit for bit on every instruction set and for any number of
threads. Wrong dtypes, shapes and strides raise `InvalidArgumentError`; nothing is converted.

`isa` names the instruction set ("scalar", "avx2", ...; see `isas`); None takes the fastest, or what
the environment variable LLAMA2Q_ISA says. `n_threads` None takes the physical cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q._core import Embedding, Matrix
from llama2q.errors import InvalidArgumentError
from llama2q.quant.grids import grid_values

__all__ = [
    "Embedding",
    "Matrix",
    "attention",
    "default_isa",
    "edit_logits",
    "exp",
    "isas",
    "logprobs",
    "matmul",
    "quantize",
    "quantize_activations",
    "rms_norm",
    "rope",
    "sample",
    "swiglu",
]

KvDtype = Literal["f32", "f16", "int8"]
Weights = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]


def isas() -> list[str]:
    """Names of the instruction sets that this build and CPU offer, slowest first."""
    return _core.isas()


def default_isa() -> str:
    """Name of the instruction set used when none is asked for.

    Raises
    ------
    UnsupportedIsaError
        LLAMA2Q_ISA names one that is unknown or that this CPU lacks.
    """
    return _core.default_isa()


def quantize(
    weights: Weights,
    quant: Literal["int4", "int8", "none"] = "int4",
    *,
    group_size: int = 64,
    grid: str = "nonuniform",
    n_threads: int | None = None,
) -> Matrix:
    """Round a weight matrix to nearest and lay it out in bands (src/llama2q/FORMAT.md).

    Parameters
    ----------
    weights : float32, float16 or uint16 (bfloat16 bits), (out_features, in_features)
        The matrix.
    quant : {"int4", "int8", "none"}
        Target type; "none" keeps the values.
    group_size : int
        Columns that share a scale: 32, 64 or 128. Ignored for "none".
    grid : {"nonuniform", "uniform"}
        Values of the int4 codes. Ignored otherwise.
    n_threads : int or None
        Threads.

    Returns
    -------
    Matrix
        For `matmul`.

    Raises
    ------
    NonFiniteWeightError
        A weight is NaN or infinite.
    QuantizationError
        A group is too large for a float16 scale.
    InvalidArgumentError
        Wrong dtype, shape, group size, grid or quant.
    """
    if weights.ndim != 2:
        raise InvalidArgumentError(f"weights have shape {weights.shape}; expected (rows, cols)")
    rows, cols = weights.shape
    if quant == "int4":
        values = grid_values(grid)
        codes, scales = _core.quantize_int4(weights, group_size, values, n_threads)
        return Matrix.int4(codes, scales, values, rows, cols)
    if quant == "int8":
        codes8, scales = _core.quantize_int8(weights, group_size, n_threads)
        return Matrix.int8(codes8, scales, rows, cols)
    if quant == "none":
        return Matrix.dense(_core.pack_dense(weights, n_threads), rows, cols)
    raise InvalidArgumentError(f"quant is {quant!r}; expected int4, int8 or none")


def matmul(
    x: NDArray[np.float32],
    matrix: Matrix,
    *,
    isa: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.float32]:
    """Multiply `x @ matrix.T`; for a quantized matrix x is quantized per group to int8 first.

    Parameters
    ----------
    x : float32, (n, in_features)
        Rows.
    matrix : Matrix
        (out_features, in_features).
    isa, n_threads
        See the module.

    Returns
    -------
    float32, (n, out_features)

    Raises
    ------
    NonFiniteError
        x holds NaN or an infinite value.
    """
    return _core.matmul(x, matrix, isa, n_threads)


def quantize_activations(
    x: NDArray[np.float32], group_size: int, *, isa: str | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize rows to int8 with one scale per group: d = amax / 127, q = rint(x * (127 / amax)).

    Parameters
    ----------
    x : float32, (n, cols)
        Rows.
    group_size : int
        32, 64 or 128.

    Returns
    -------
    codes : int8, (n, K)
        K is cols rounded up to whole groups; absent columns are 0.
    scales : float32, (n, K / group_size)

    Raises
    ------
    NonFiniteError
        x holds NaN or an infinite value.
    """
    return _core.quantize_activations(x, group_size, isa)


def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float, *, isa: str | None = None
) -> NDArray[np.float32]:
    """Root-mean-square normalization (Zhang and Sennrich, 2019), as Meta's `RMSNorm`.

    Parameters
    ----------
    x : float32, (n, dim)
        Rows.
    weight : float32, (dim,)
        Factor per column.
    eps : float
        Added to the mean square.

    Returns
    -------
    float32, (n, dim)
    """
    return _core.rms_norm(x, weight, eps, isa)


def rope(
    x: NDArray[np.float32],
    positions: NDArray[np.int32],
    inv_freq: NDArray[np.float64],
    *,
    attention_factor: float = 1.0,
    isa: str | None = None,
) -> NDArray[np.float32]:
    """Rotate the interleaved pairs (2i, 2i + 1) by position * inv_freq[i] (Su et al., 2021).

    Parameters
    ----------
    x : float32, (n, n_heads, head_dim)
        Queries or keys.
    positions : int32, (n,)
        Position of each row, from 0.
    inv_freq : float64, (head_dim / 2,)
        Radians per position.
    attention_factor : float
        Factor on cos and sin: YaRN's (Peng et al., 2023, section 3.4). Over 0, at most 1000.

    Returns
    -------
    float32, (n, n_heads, head_dim)
    """
    return _core.rope(x, positions, inv_freq, isa, attention_factor)


def swiglu(
    gate: NDArray[np.float32], up: NDArray[np.float32], *, isa: str | None = None
) -> NDArray[np.float32]:
    """Return silu(gate) * up (Shazeer, 2020); float32 arrays of equal shapes."""
    return _core.swiglu(gate, up, isa)


def exp(x: NDArray[np.float32], *, isa: str | None = None) -> NDArray[np.float32]:
    """Exponential of a float32 array; +0 for x <= -87 and exp(87) above 87."""
    return _core.exp(x, isa)


def attention(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    positions: NDArray[np.int32],
    *,
    kv_dtype: KvDtype = "f32",
    isa: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.float32]:
    """Causal attention with an online softmax; query heads share KV heads in groups.

    Parameters
    ----------
    q : float32, (n, n_heads, head_dim)
        Queries.
    k, v : float32, (n_keys, n_kv_heads, head_dim)
        Keys and values of positions 0 to n_keys - 1; n_heads is a multiple of n_kv_heads.
    positions : int32, (n,)
        Position of each query: it sees keys 0 to its own.
    kv_dtype : {"f32", "f16", "int8"}
        Type that K and V are stored in before they are read.
    isa, n_threads
        See the module.

    Returns
    -------
    float32, (n, n_heads, head_dim)

    Raises
    ------
    NonFiniteError
        A key or value is not finite, or beyond 65504 for "f16".
    """
    return _core.attention(q, k, v, positions, kv_dtype, isa, n_threads)


def edit_logits(
    logits: NDArray[np.float32],
    *,
    bias: Mapping[int, float] | None = None,
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
    repetition: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
    banned_ids: Sequence[int] = (),
) -> NDArray[np.float32]:
    """Apply bias, penalties and bans to one row of logits, by vLLM's definitions, in this order.

    `bias` is added; logits of the tokens of prompt and output are divided by `repetition` if
    positive, else multiplied; from those of the output, `frequency` times their count there, then
    `presence`, is subtracted; `banned_ids` become -inf.

    Parameters
    ----------
    logits : float32, (vocab_size,)
    bias : mapping of int to float or None
        By token id; -inf bans.
    prompt_ids, output_ids : sequence of int
    repetition, frequency, presence : float
        1, 0 and 0 are off.
    banned_ids : sequence of int

    Returns
    -------
    float32, (vocab_size,)

    Raises
    ------
    InvalidArgumentError
        An id is outside the vocabulary, or a number not finite.
    """
    counts = {**dict.fromkeys(prompt_ids, 0), **Counter(output_ids)}
    bias = bias or {}
    edited = logits.copy()
    _core.edit_logits(
        edited,
        np.array([*bias], np.int32),
        np.array([*bias.values()], np.float32),
        np.array([*counts], np.int32),
        np.array([*counts.values()], np.int32),
        repetition,
        frequency,
        presence,
        np.array(banned_ids, np.int32),
    )
    return edited


def logprobs(
    logits: NDArray[np.float32], chosen: NDArray[np.int32], k: int = 0, *, isa: str | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Natural log-softmax of rows, for the k likeliest tokens and a chosen one.

    Parameters
    ----------
    logits : float32, (n, vocab_size)
    chosen : int32, (n,)
    k : int
        From 0 to vocab_size.

    Returns
    -------
    ids, values : int32 and float32, (n, k)
        The likeliest, in order of rank (equal ones by id), and their log-probabilities.
    chosen_values, chosen_ranks : float32 and int32, (n,)
        Ranks count from 1.

    Raises
    ------
    NonFiniteError
        A row holds NaN or +inf, or -inf throughout.
    """
    return _core.logprobs(logits, chosen, k, isa)


def sample(
    logits: NDArray[np.float32],
    *,
    temperature: float = 0.6,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    position: int = 0,
    sequence_index: int = 0,
    isa: str | None = None,
) -> NDArray[np.int32]:
    """Draw one token per row; every row is drawn with the same parameters.

    Parameters
    ----------
    logits : float32, (n, vocab_size)
        -inf masks a token.
    temperature : float
        0 takes the largest logit, the lower id on a tie.
    top_p, top_k, min_p
        Cuts of the distribution; 1, 0 and 0 turn them off.
    seed, sequence_index, position : int
        Counter of the random number: Philox4x32-10, one draw per token.

    Returns
    -------
    int32, (n,)

    Raises
    ------
    NonFiniteError
        A row holds NaN or +inf, or -inf throughout.
    """
    n = logits.shape[0]
    return _core.sample(
        logits,
        np.full(n, temperature, np.float32),
        np.full(n, top_p, np.float32),
        np.full(n, top_k, np.int32),
        np.full(n, min_p, np.float32),
        np.full(n, seed, np.uint64),
        np.full(n, sequence_index, np.int32),
        np.full(n, position, np.int32),
        isa,
    )
