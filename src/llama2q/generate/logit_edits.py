"""What a request does to its logits before a token is drawn: processors, bias, penalties, bans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.errors import InvalidArgumentError, NonFiniteError
from llama2q.sampling import SamplingParams

_NO_IDS = np.empty(0, np.int32)


class TokenCounts:
    """The distinct tokens of prompt and output, and how often each is in the output."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._slots = {token: slot for slot, token in enumerate(dict.fromkeys(prompt_ids))}
        self._ids = np.array([*self._slots, *[0] * 64], np.int32)
        self._counts = np.zeros(len(self._ids), np.int32)

    def add(self, token: int) -> None:
        """Count a token of the output."""
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token
        self._counts[slot] += 1

    @property
    def ids(self) -> NDArray[np.int32]:
        """Token ids, int32 (n_distinct,)."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.int32]:
        """Times in the output, int32 (n_distinct,)."""
        return self._counts[: len(self._slots)]


class LogitEdits:
    """Edits of one request, with the state that they need."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], ending_ids: Sequence[int]
    ) -> None:
        """Prepare the edits.

        Parameters
        ----------
        params : SamplingParams
        prompt_ids : sequence of int
        ending_ids : sequence of int
            Tokens that end the text, which `min_tokens` bans.
        """
        self._params = params
        self._bias_ids = np.array([*params.logit_bias], np.int32)
        self._biases = np.array([*params.logit_bias.values()], np.float32)
        self._ending_ids = np.array(ending_ids, np.int32)
        has_penalties = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )
        self._seen = TokenCounts(prompt_ids) if has_penalties else None
        self._token_ids = list(prompt_ids) if params.logits_processors else None
        self._n_output = 0

    @property
    def is_active(self) -> bool:
        """Whether the next token's logits are edited."""
        return (
            self._seen is not None
            or self._token_ids is not None
            or len(self._bias_ids) > 0
            or self._n_output < self._params.min_tokens
        )

    def add(self, token: int) -> None:
        """Count a token of the output."""
        self._n_output += 1
        if self._seen is not None:
            self._seen.add(token)
        if self._token_ids is not None:
            self._token_ids.append(token)

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Edit one row of logits, float32 (vocab_size,), in place.

        Raises
        ------
        InvalidArgumentError
            If a logits processor returns something else than logits.
        NonFiniteError
            If it returns NaN or +inf.
        """
        if self._token_ids is not None:
            for i, processor in enumerate(self._params.logits_processors):
                result = processor(list(self._token_ids), logits)
                check_processed(f"logits_processors[{i}]", result, logits.shape)
                if result is not logits:
                    logits[:] = result
        params, seen = self._params, self._seen
        is_banning = self._n_output < params.min_tokens
        if seen is None and not is_banning and len(self._bias_ids) == 0:
            return
        _core.edit_logits(
            logits,
            self._bias_ids,
            self._biases,
            _NO_IDS if seen is None else seen.ids,
            _NO_IDS if seen is None else seen.counts,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
            self._ending_ids if is_banning else _NO_IDS,
        )


def check_processed(name: str, logits: object, shape: tuple[int, ...]) -> None:
    """Refuse what a logits processor may not return; see `LogitEdits.apply`."""
    if not isinstance(logits, np.ndarray):
        raise InvalidArgumentError(
            f"{name} returned a {type(logits).__name__}; expected logits, float32 {shape}"
        )
    if logits.dtype != np.float32 or logits.shape != shape:
        raise InvalidArgumentError(
            f"{name} returned {logits.dtype} {logits.shape}; expected float32 {shape}"
        )
    # -inf is below +inf, NaN is not.
    allowed = logits < np.inf
    if not allowed.all():
        token = int(np.argmin(allowed))
        raise NonFiniteError(
            f"{name} returned {logits[token]} for token {token}; expected finite logits, or -inf "
            "to ban a token"
        )
