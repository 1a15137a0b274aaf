"""Runs a receipt again, and tells whether the same tokens come."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from llama2q import _core
from llama2q.engine import Engine
from llama2q.errors import ReceiptError
from llama2q.format.reader import L2qFile
from llama2q.generate.batch import Batch
from llama2q.generate.prompt import Prompt
from llama2q.generate.receipt import CONTRACT_VERSION, Receipt, hash_of
from llama2q.generate.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of a receipt.

    Attributes
    ----------
    receipt : Receipt
    token_ids : tuple of int
        Tokens computed now; one more than recorded where the output did not end there.
    text : str
        Their text.
    differences : tuple of str
        What differs, a sentence each; none proves the receipt.
    """

    receipt: Receipt
    token_ids: tuple[int, ...]
    text: str
    differences: tuple[str, ...]

    @property
    def proven(self) -> bool:
        """Whether the same tokens came."""
        return not self.differences


def replay(receipt: Receipt, path: str | Path, *, n_threads: int | None = None) -> Replay:
    """Compute a receipt's tokens again, on the CPU.

    Parameters
    ----------
    receipt : Receipt
    path : str or Path
        The `.l2q` file.
    n_threads : int or None
        As in `llama2q.load`; changes no token.

    Raises
    ------
    ReceiptError
        If the receipt is of another model or contract, or a GPU took part: nothing is computed.
    FormatError, InvalidArgumentError, InsufficientMemoryError
        As `llama2q.load` raises them.
    """
    if receipt.contract is None:
        raise ReceiptError(
            "a GPU took part in this completion, whose last bits no contract defines: the receipt "
            'cannot be proven. Receipts of models loaded with device="cpu" can'
        )
    if receipt.contract != CONTRACT_VERSION:
        raise ReceiptError(
            f"the receipt was made under version {receipt.contract} of the numeric contract; this "
            f"llama2q computes version {CONTRACT_VERSION}: install one that has the receipt's"
        )
    with L2qFile(path) as file:
        if file.model_id != receipt.model_id:
            raise ReceiptError(
                f"the receipt is of the model {receipt.model_id}; {file.path} is {file.model_id}"
            )
    most = min(receipt.sampling.max_tokens or 1, receipt.n_tokens + 1)
    if receipt.finish_reason == "abort":
        most = receipt.n_tokens
    if most == 0:
        return _compared(receipt, (), "", "abort")
    with Engine(
        path,
        n_ctx=len(receipt.prompt_ids) + most,
        kv_dtype=receipt.kv_dtype,
        n_threads=n_threads,
        max_sequences=1,
        rope_scaling=receipt.rope,
    ) as engine:
        params = replace(
            receipt.sampling,
            seed=receipt.seed,
            max_tokens=most,
            min_tokens=min(receipt.sampling.min_tokens, most),
        )
        request = Request(engine, Prompt(engine, receipt.prompt_ids, params), receipt.index)
        batch = Batch(engine, [request], _core.CancelFlag(), finishes=True)
        try:
            while not batch.is_done:
                batch.step()
        finally:
            batch.release()
        done = request.completion()
    return _compared(receipt, done.token_ids, done.text, done.finish_reason)


def _compared(receipt: Receipt, token_ids: tuple[int, ...], text: str, reason: str) -> Replay:
    differences = []
    n_recorded = receipt.n_tokens
    if hash_of(token_ids[:n_recorded]) != receipt.output_sha256:
        differences.append(
            f"tokens: the {n_recorded} recorded hash to {receipt.output_sha256}, the first "
            f"{min(n_recorded, len(token_ids))} computed now to {hash_of(token_ids[:n_recorded])}"
        )
    if len(token_ids) != n_recorded:
        more = "more than" if len(token_ids) > n_recorded else "instead of"
        differences.append(f"length: {len(token_ids)} tokens computed now, {more} {n_recorded}")
    elif receipt.finish_reason not in ("abort", reason):
        differences.append(
            f"end: finish_reason {receipt.finish_reason!r} was recorded, {reason!r} came now"
        )
    return Replay(receipt=receipt, token_ids=token_ids, text=text, differences=tuple(differences))
