"""Kills conversions, by SIGKILL, and checks what they leave; prints one JSON object.

    python3 -m interrupter CHECKPOINT FOLDER boundaries EVERY
    python3 -m interrupter CHECKPOINT FOLDER moments COUNT SEED

It forks a process per conversion and stays single-threaded itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import At, hooked, kill
from llama2q.converter.converter import convert
from llama2q.format import L2qFile

MOST_OPERATIONS = 5000
MOST_SECONDS = 120


def in_child(body: Callable[[], None]) -> int:
    """Start `body` in a process of its own; return its id."""
    child = os.fork()
    if child:
        return child
    signal.alarm(MOST_SECONDS)
    try:
        body()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(child: int) -> int:
    """Return the exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Trial:
    """One output file, converted as often as asked."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.checkpoint = checkpoint
        self.path = folder / "x.l2q"
        self.notes = folder.parent / "notes.json"
        # Hundreds of times; calibrating the demo model takes seconds, the tiny one none.
        self.method = "rtn" if checkpoint.name == "mini" else "gptq"

    def convert(self) -> None:
        convert(self.checkpoint, self.path, method=self.method, n_threads=2)

    def clear(self) -> None:
        for place in self.path.parent.iterdir():
            place.unlink()

    def killed_at(self, number: int) -> bool:
        """Convert and kill before the n-th operation; False if there were fewer."""

        def body() -> None:
            with hooked(At(number, kill)):
                self.convert()

        code = wait(in_child(body))
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"operation {number}: exit code {code}")
        return code != 0

    def resume(self) -> dict[str, Any]:
        """Convert to the end; return how many tensors were written for it."""

        def body() -> None:
            at = At(0, lambda: None)
            with hooked(at):
                self.convert()
            self.notes.write_text(json.dumps(at.operations))

        code = wait(in_child(body))
        if code != 0:
            raise RuntimeError(f"resuming: exit code {code}")
        operations = json.loads(self.notes.read_text())
        return {"written": operations.count("write journal")}

    def finished_tensors(self) -> int:
        journal = self.path.with_name("x.l2q.part.journal")
        if not journal.exists():
            return 0
        return max(0, journal.read_bytes().count(b"\n") - 1)

    def check(self, whole: bytes, n_tensors: int, *, exact: bool) -> list[str]:
        """Look at what a kill left, resume, look again; return what is wrong."""
        faults = []
        if self.path.exists():
            if self.path.read_bytes() != whole:
                faults.append("the final name holds another file")
            expected = {"x.l2q", "x.l2q.part.journal"}  # killed before the journal went
        else:
            held = self.finished_tensors()
            written = self.resume()["written"]
            if exact and written != n_tensors - held:
                faults.append(f"{held} of {n_tensors} were finished, {written} written again")
            if self.path.read_bytes() != whole:
                faults.append("the resumed file differs")
            expected = {"x.l2q"}
        left = {place.name for place in self.path.parent.iterdir()}
        if not left <= expected:
            faults.append(f"left behind: {sorted(left)}")
        return faults


def boundaries(trial: Trial, whole: bytes, n_tensors: int, every: int) -> dict[str, Any]:
    """Kill before the first operation, the second, and so on; `every` leaves some out."""
    faults: dict[int, list[str]] = {}
    for number in range(1, MOST_OPERATIONS, every):
        trial.clear()
        if not trial.killed_at(number):
            break
        if found := trial.check(whole, n_tensors, exact=True):
            faults[number] = found
    return {"operations": number - 1, "faults": faults}


def moments(trial: Trial, whole: bytes, n_tensors: int, count: int, seed: int) -> dict[str, Any]:
    """Kill at random moments, at times several in a row before the file is finished."""
    rng = random.Random(seed)
    trial.clear()
    started = time.monotonic()
    wait(in_child(trial.convert))
    duration = time.monotonic() - started
    faults: dict[int, list[str]] = {}
    kills = 0
    while kills < count:
        trial.clear()
        for _ in range(rng.choice((1, 1, 2, 3))):
            if trial.path.exists():
                break
            child = in_child(trial.convert)
            time.sleep(rng.uniform(0, 1.1 * duration))
            os.kill(child, signal.SIGKILL)
            kills += wait(child) == -signal.SIGKILL
        if found := trial.check(whole, n_tensors, exact=False):
            faults[kills] = found
    return {"kills": kills, "faults": faults}


def main(checkpoint: Path, folder: Path, mode: str, *numbers: str) -> None:
    work = folder / "work"
    work.mkdir()
    trial = Trial(checkpoint, work)
    trial.resume()
    whole = trial.path.read_bytes()
    with L2qFile(trial.path) as file:
        file.verify()
        n_tensors = len(file.tensors)
    if mode == "boundaries":
        result = boundaries(trial, whole, n_tensors, *map(int, numbers))
    else:
        result = moments(trial, whole, n_tensors, *map(int, numbers))
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
