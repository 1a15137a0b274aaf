"""Runs a target under atheris: `python run_atheris.py checkpoint|l2q [options of libFuzzer]`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[1]


def main() -> None:
    sys.path.insert(0, str(TESTS))
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["llama2q"]):
        target = importlib.import_module(f"fuzz.fuzz_{name}")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return bytes(target.mutate(data, max_size, seed, atheris.Mutate))

    atheris.Setup(sys.argv, target.run_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
