"""All hostile checkpoints, and the tool that writes them.

    python3 -m hostile.cases FOLDER [NAME ...]

(with src, tests and tools on PYTHONPATH) writes each case, or those named, to FOLDER/NAME and
prints what must come of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hostile import archives, folders, gguf, hugging_face, params, pickles, tensors
from hostile.bench import Bench, CannotMakeError, Case

CASES: dict[str, Case] = {}
for _module in (pickles, archives, tensors, params, folders, hugging_face, gguf):
    for _name, _case in _module.CASES.items():
        if _name in CASES:
            raise ValueError(f"two cases are named {_name}")
        CASES[_name] = _case


def main(target: Path, names: list[str]) -> None:
    sound = Bench.write_sound(target / "sound")
    for name in names or CASES:
        case = CASES[name]
        folder = target / name
        folder.mkdir()
        try:
            place = case.make(Bench(folder, sound))
        except CannotMakeError as error:
            print(f"{name}: left out: {error}")
        else:
            print(f"{name}: {place}: {case.error.__name__}: {case.sentence}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
