"""The command `llama2q verify`."""

from __future__ import annotations

import time
from typing import Any

import typer

from llama2q.cli.console import ProgressBar, exit_codes, gigabytes, note, print_json
from llama2q.cli.options import Json, ModelFile
from llama2q.errors import FormatError


def verify(file: ModelFile, json: Json = False) -> None:
    """Read all of FILE and check hashes, codes, scales and padding; exit code 1 on any fault."""
    with exit_codes():
        from llama2q.format.reader import L2qFile

        started = time.perf_counter()
        faults: list[FormatError] = []
        n_tensors = 0
        try:
            with L2qFile(file) as opened, ProgressBar("verifying", "bytes") as bar:
                n_tensors = len(opened.tensors)
                faults += opened.faults(bar)
        except FormatError as error:
            faults.append(error)
        seconds = time.perf_counter() - started
        n_bytes = file.stat().st_size
        if json:
            values: dict[str, Any] = {
                "path": str(file),
                "sound": not faults,
                "faults": [{"error": type(f).__name__, "message": str(f)} for f in faults],
                "tensors": n_tensors,
                "bytes": n_bytes,
                "seconds": round(seconds, 3),
            }
            print_json(values)
        elif not faults:
            print(
                f"{file.name} is sound: {n_tensors} tensors, {gigabytes(n_bytes)}; hashes, codes, "
                f"scales and padding checked in {seconds:.1f} s"
            )
        else:
            for fault in faults:
                note(f"error: {fault}")
            note(f"{file.name} is damaged: {len(faults)} fault(s); copy or convert it again")
        if faults:
            raise typer.Exit(1)
