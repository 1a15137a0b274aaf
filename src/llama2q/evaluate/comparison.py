"""What a comparison of two models finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from llama2q import _core
from llama2q.evaluate.divergence import (
    DELTA_P_PERCENTILES,
    KL_PERCENTILES,
    Estimate,
    TokenScores,
    percentiles,
)
from llama2q.evaluate.windows import Protocol
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import OUTER_MATRICES


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedModel:
    """One side of a comparison.

    Attributes
    ----------
    path, model_id : str
    type : str
        Type of the layers' matrices, as in "int4/64/nonuniform"; several are joined by " + ".
    bits_per_weight : float
        Stored bits of the layers' matrices per weight, scales and padding included.
    file_bytes : int
    kv_dtype : {"f32", "f16", "int8"}
    """

    path: str
    model_id: str
    type: str
    bits_per_weight: float
    file_bytes: int
    kv_dtype: _core.KvDtype

    @classmethod
    def of(cls, file: L2qFile, kv_dtype: _core.KvDtype) -> Self:
        """Read what the header of a file says."""
        names = [name for name in file.recipe.tensors if name not in OUTER_MATRICES]
        matrices = [file.matrix(name) for name in names]
        stored = sum(tensor.nbytes for matrix in matrices for tensor in matrix.tensors())
        types = dict.fromkeys(str(matrix.stored) for matrix in matrices)
        return cls(
            path=str(file.path),
            model_id=file.model_id,
            type=" + ".join(types),
            bits_per_weight=8 * stored / sum(matrix.n_weights for matrix in matrices),
            file_bytes=file.file_bytes,
            kv_dtype=kv_dtype,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A candidate B against a reference A.

    Attributes
    ----------
    a, b : ComparedModel
    protocol : {"llama.cpp", "gptq"}
    window, n_windows, n_tokens : int
        Tokens of a window, windows run, tokens scored in all of them.
    kl_mean : Estimate
        KL divergence of B's predictions from A's, in nats a token.
    kl_percentiles : dict of str to float
        50, 90, 95, 99, 99.9 and 100 (the largest).
    same_top : Estimate
        Share of the tokens at which both find the same token likeliest, 0 to 1.
    delta_p_mean, delta_p_rms : Estimate
        Probability of the token that follows, under B less under A.
    delta_p_percentiles : dict of str to float
        0 (the smallest) to 100 (the largest).
    perplexity_a, perplexity_b, perplexity_ratio : Estimate
        The ratio is B's over A's; its error is that of the paired difference.
    seconds : float
        Wall time.

    Notes
    -----
    Standard errors are over the windows; see `llama2q.evaluate.divergence.Estimate`.
    """

    a: ComparedModel
    b: ComparedModel
    protocol: Protocol
    window: int
    n_windows: int
    n_tokens: int
    kl_mean: Estimate
    kl_percentiles: dict[str, float]
    same_top: Estimate
    delta_p_mean: Estimate
    delta_p_rms: Estimate
    delta_p_percentiles: dict[str, float]
    perplexity_a: Estimate
    perplexity_b: Estimate
    perplexity_ratio: Estimate
    seconds: float

    @classmethod
    def of(
        cls,
        scores: TokenScores,
        n_windows: int,
        *,
        a: ComparedModel,
        b: ComparedModel,
        protocol: Protocol,
        window: int,
        seconds: float,
    ) -> Self:
        """Sum the scores of all windows up, which follow each other."""
        n, delta_p = n_windows, scores.delta_p
        return cls(
            a=a,
            b=b,
            protocol=protocol,
            window=window,
            n_windows=n,
            n_tokens=len(scores.kl),
            kl_mean=Estimate.of_mean(scores.kl, n),
            kl_percentiles=percentiles(scores.kl, KL_PERCENTILES),
            same_top=Estimate.of_mean(scores.same_top, n),
            delta_p_mean=Estimate.of_mean(delta_p, n),
            delta_p_rms=Estimate.of_mean(delta_p**2, n).sqrt(),
            delta_p_percentiles=percentiles(delta_p, DELTA_P_PERCENTILES),
            perplexity_a=Estimate.of_mean(scores.nll_a, n).exp(),
            perplexity_b=Estimate.of_mean(scores.nll_b, n).exp(),
            perplexity_ratio=Estimate.of_mean(scores.nll_b - scores.nll_a, n).exp(),
            seconds=seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain dicts, for JSON."""
        return asdict(self)
