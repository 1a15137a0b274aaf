"""The command `llama2q export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama2q.cli.console import ProgressBar, exit_codes, gigabytes, note, print_json
from llama2q.cli.options import Json, ModelFile
from llama2q.errors import InvalidArgumentError


def export(
    file: ModelFile,
    gguf: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a GGUF file, for llama.cpp.")
    ] = None,
    mlx: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a folder for MLX, a Mac's GPU.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    json: Json = False,
) -> None:
    """Write the model of FILE in another program's form, the same numbers."""
    with exit_codes():
        import llama2q

        with ProgressBar("exporting", "bytes") as bar:
            if gguf is not None and mlx is None:
                report = llama2q.export_gguf(file, gguf, overwrite=force, progress=bar)
            elif mlx is not None and gguf is None:
                report = llama2q.export_mlx(file, mlx, overwrite=force, progress=bar)
            else:
                raise InvalidArgumentError("give either --gguf OUT or --mlx DIR")
        if json:
            print_json(
                {
                    "path": str(report.path),
                    "bytes": report.output_bytes,
                    "seconds": round(report.seconds, 3),
                    "notes": report.notes,
                }
            )
        else:
            print(report.path)
        note(f"{gigabytes(report.output_bytes)} in {report.seconds:.1f} s")
        for text in report.notes:
            note(text)
