"""Runs a target under atheris; the arguments are libFuzzer's.

LLAMA2Q_FUZZ_TARGET names the target, checkpoint or l2q: not an argument, since libFuzzer starts
itself again with its arguments when it merges.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[1]


def main() -> None:
    sys.path.insert(0, str(TESTS))
    name = os.environ["LLAMA2Q_FUZZ_TARGET"]
    with atheris.instrument_imports(include=["llama2q"]):
        target = importlib.import_module(f"fuzz.fuzz_{name}")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return bytes(target.mutate(data, max_size, seed, atheris.Mutate))

    # To merge, libFuzzer starts its first argument as a command, which a script is not.
    itself = f"{sys.executable} {Path(__file__).resolve()}"
    atheris.Setup([itself, *sys.argv[1:]], target.run_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
