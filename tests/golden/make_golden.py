"""Writes the golden files of this checkout: `python tests/golden/make_golden.py FOLDER`.

kernels.golden and steps.golden, which the driver in tests/golden/cpp replays. The results in them
are those of this machine's scalar kernels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import llama2q  # noqa: E402
from golden import kernels, steps  # noqa: E402
from golden.container import write_golden  # noqa: E402

MINI = HERE.parent / "data" / "mini"
RECIPES = {"int4": 64, "int8": 32, "none": 64}
"""quant -> group size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made if need be")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_golden(folder / "kernels.golden", kernels.cases())
    with tempfile.TemporaryDirectory() as temporary:
        mini = {quant: Path(temporary) / f"{quant}.l2q" for quant in RECIPES}
        for quant, path in mini.items():
            method = "rtn" if quant == "int4" else None
            llama2q.convert(MINI, path, quant=quant, group_size=RECIPES[quant], method=method)
        write_golden(folder / "steps.golden", steps.cases(mini))


if __name__ == "__main__":
    main()
