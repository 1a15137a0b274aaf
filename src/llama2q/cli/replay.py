"""The command `llama2q replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama2q.cli.console import exit_codes, note, print_json
from llama2q.cli.options import Json, ModelFile, Threads

DIFFERS = 3
"""Exit code where other tokens came."""


def replay(
    receipt: Annotated[
        Path, typer.Argument(metavar="RECEIPT", help="As `generate --receipt` writes it.")
    ],
    file: ModelFile,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Prove that RECEIPT's tokens come from FILE: exit code 0 if so, 3 if others came.

    1: nothing could be proven, as of another model.
    """
    with exit_codes():
        from llama2q.errors import ReceiptError
        from llama2q.generate.receipt import MAX_BYTES, Receipt
        from llama2q.generate.replay import replay as run

        with receipt.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ReceiptError(f"{receipt}: this is not a receipt: {error}") from error
        result = run(Receipt.from_json(text), file, n_threads=threads)
        recorded = result.receipt
        if json:
            print_json(
                {
                    "proven": result.proven,
                    "differences": list(result.differences),
                    "model_id": recorded.model_id,
                    "n_tokens": recorded.n_tokens,
                    "output_sha256": recorded.output_sha256,
                    "token_ids": list(result.token_ids),
                    "text": result.text,
                }
            )
        elif result.proven:
            print(
                f"proven: the same {recorded.n_tokens} tokens (sha256 {recorded.output_sha256}) "
                f"from {file.name}"
            )
        for difference in result.differences:
            note(f"differs: {difference}")
        if not result.proven:
            raise typer.Exit(DIFFERS)
