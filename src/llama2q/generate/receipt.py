"""What proves a completion: the same tokens come from the same receipt on any CPU."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from llama2q import _core
from llama2q.engine import Engine
from llama2q.errors import InvalidArgumentError, ReceiptError
from llama2q.rope_scaling import RopeScaling
from llama2q.sampling import SamplingParams

CONTRACT_VERSION = 1
"""Version of the numeric contract (csrc/README.md): what changes a bit of a result raises it."""
FORMAT = "llama2q-receipt"
FORMAT_VERSION = 1
MAX_BYTES = 64 << 20

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "stop_token_ids",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens",
    "ignore_eos",
)  # fmt: skip
_KV_DTYPES = ("f32", "f16", "int8")
_REASONS = ("stop", "length", "abort")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """All that decides the tokens of a completion, and their hash.

    Attributes
    ----------
    model_id : str
        Of the `.l2q` file.
    contract : int or None
        Version of the numeric contract; None where a GPU computed, whose last bits no contract
        defines: such a receipt is a record, and proves nothing.
    kv_dtype : {"f32", "f16", "int8"}
    rope : RopeScaling
        What acted in this context.
    prompt_ids : tuple of int
    sampling : SamplingParams
        The settings that decide tokens. max_tokens is the limit that held; seed is None here.
    seed : int
        Given or drawn.
    index : int
        Sequence index of the sample.
    n_tokens : int
        Tokens of the output.
    finish_reason : {"stop", "length", "abort"}
    output_sha256 : str
        64 hex digits: SHA-256 of the output's ids, 4 bytes each, little-endian.
    """

    model_id: str
    contract: int | None
    kv_dtype: _core.KvDtype
    rope: RopeScaling
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    index: int
    n_tokens: int
    finish_reason: str
    output_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; `from_dict` reads it."""
        sampling = {name: getattr(self.sampling, name) for name in _SAMPLING}
        sampling["logit_bias"] = [
            [token, bias if math.isfinite(bias) else "-inf"]
            for token, bias in sorted(self.sampling.logit_bias.items())
        ]
        for name in ("stop", "stop_token_ids"):
            sampling[name] = list(sampling[name])
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "model_id": self.model_id,
            "contract": self.contract,
            "kv_dtype": self.kv_dtype,
            "rope": self.rope.to_dict(),
            "prompt_ids": list(self.prompt_ids),
            "sampling": sampling,
            "seed": self.seed,
            "index": self.index,
            "n_tokens": self.n_tokens,
            "finish_reason": self.finish_reason,
            "output_sha256": self.output_sha256,
        }

    def to_json(self) -> str:
        """Return one line of JSON; floats are written exactly."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises
        ------
        ReceiptError
            If it is not a receipt, or of another version.
        """
        if len(text) > MAX_BYTES:
            raise ReceiptError(f"the receipt has {len(text)} characters; at most {MAX_BYTES}")

        def refuse(constant: str) -> float:
            raise ValueError(f"{constant} is not a number of JSON")

        try:
            values = json.loads(text, object_pairs_hook=_unique, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise ReceiptError(f"the receipt is not valid JSON: {error}") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read `to_dict`'s form; see `from_json`."""
        _object("the receipt", values)
        if values.get("format") != FORMAT:
            raise ReceiptError(
                "this is not a receipt; `llama2q generate --receipt` writes one, and "
                "`completion.receipt.to_json()` is one"
            )
        if values.get("version") != FORMAT_VERSION:
            raise ReceiptError(
                f"the receipt has version {values.get('version')!r:.40}; this llama2q reads "
                f"{FORMAT_VERSION}: update llama2q"
            )
        values = {key: value for key, value in values.items() if key not in ("format", "version")}
        _exact_keys("the receipt", values, cls.__dataclass_fields__)
        _object("rope", values["rope"])
        try:
            rope = RopeScaling.from_dict(values["rope"])
            sampling = _sampling(values["sampling"])
        except InvalidArgumentError as error:
            raise ReceiptError(f"the receipt holds an impossible setting: {error}") from error
        kv_dtype, reason = values["kv_dtype"], values["finish_reason"]
        if kv_dtype not in _KV_DTYPES or reason not in _REASONS:
            raise ReceiptError(
                f"the receipt has kv_dtype {kv_dtype!r:.40} and finish_reason {reason!r:.40}; "
                f"expected one of {', '.join(_KV_DTYPES)} and of {', '.join(_REASONS)}"
            )
        contract = values["contract"]
        if contract is not None:
            _integer("contract", contract, 1, 2**31)
        limit = sampling.max_tokens or 0
        return cls(
            model_id=_digits("model_id", values["model_id"]),
            contract=contract,
            kv_dtype=kv_dtype,
            rope=rope,
            prompt_ids=_ids(values["prompt_ids"]),
            sampling=sampling,
            seed=_integer("seed", values["seed"], 0, 2**64),
            index=_integer("index", values["index"], 0, 2**31),
            n_tokens=_integer("n_tokens", values["n_tokens"], 0, limit + 1),
            finish_reason=reason,
            output_sha256=_digits("output_sha256", values["output_sha256"]),
        )


def hash_of(token_ids: Sequence[int]) -> str:
    """Return the SHA-256 of ids, as `Receipt.output_sha256` has it."""
    return hashlib.sha256(np.array(token_ids, "<i4").tobytes()).hexdigest()


def receipt_of(
    engine: Engine,
    params: SamplingParams,
    *,
    prompt_ids: Sequence[int],
    limit: int,
    seed: int,
    index: int,
    token_ids: Sequence[int],
    finish_reason: str,
) -> Receipt | None:
    """Return the receipt of a sample; None with logits processors, which no file can hold."""
    if params.logits_processors:
        return None
    settings: dict[str, Any] = {name: getattr(params, name) for name in _SAMPLING}
    settings |= {"max_tokens": limit, "min_tokens": min(params.min_tokens, limit)}
    return Receipt(
        model_id=engine.file.model_id,
        contract=None if engine.plan.devices else CONTRACT_VERSION,
        kv_dtype=engine.kv_dtype,
        rope=engine.plan.rope,
        prompt_ids=tuple(prompt_ids),
        sampling=SamplingParams(**settings),
        seed=seed,
        index=index,
        n_tokens=len(token_ids),
        finish_reason=finish_reason,
        output_sha256=hash_of(token_ids),
    )


def _sampling(values: Any) -> SamplingParams:
    _object("sampling", values)
    _exact_keys("sampling", values, _SAMPLING)
    if values["max_tokens"] is None:
        raise ReceiptError("sampling has no max_tokens; expected the limit that held")
    pairs = values["logit_bias"]
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ReceiptError("logit_bias is no list of pairs of an id and a number")
    if not all(isinstance(values[name], list) for name in ("stop", "stop_token_ids")):
        raise ReceiptError("stop and stop_token_ids are not both lists")
    if any(type(token) is not int for token, _ in pairs):
        raise ReceiptError("logit_bias has an id that is no integer")
    biases = {token: -math.inf if bias == "-inf" else bias for token, bias in pairs}
    if len(biases) < len(pairs):
        raise ReceiptError("logit_bias has an id twice")
    return SamplingParams(**{**values, "logit_bias": biases})


def _object(what: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise ReceiptError(f"{what} is a {type(values).__name__}; expected an object")


def _exact_keys(what: str, values: dict[str, Any], expected: Any) -> None:
    missing, extra = sorted(set(expected) - set(values)), sorted(set(values) - set(expected))
    if missing or extra:
        raise ReceiptError(f"{what}: missing keys {missing}, unknown {extra!r:.80}")


def _integer(name: str, value: Any, low: int, end: int) -> int:
    if type(value) is not int or not low <= value < end:
        raise ReceiptError(f"{name} is {value!r:.40}; expected an integer in [{low}, {end})")
    return value


def _digits(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ReceiptError(f"{name} is {value!r:.80}; expected 64 hex digits")
    return value


def _ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise ReceiptError("prompt_ids is no list of ids, at least one")
    return tuple(_integer("an id of prompt_ids", token, 0, 2**31) for token in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key appears twice")
    return values
