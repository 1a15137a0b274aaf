"""Runs a compiler and keeps what it says beside its output; a launcher for CMake.

`python3 tools/keep_messages.py nvcc ... -o gemv.cu.o` writes gemv.cu.o.messages if nvcc succeeds,
so that a build that has nothing to compile still knows what ptxas said of each kernel. Lines of
ptxas are kept alone, all others shown, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SUFFIX = ".messages"
_OF_PTXAS = re.compile(r"ptxas info +:|\s+\d+ bytes stack frame")


def main(command: list[str]) -> int:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    shown = [line for line in done.stderr.splitlines() if not _OF_PTXAS.match(line)]
    if shown:
        print("\n".join(shown), file=sys.stderr)
    if done.returncode == 0 and "-c" in command:
        output = command[command.index("-o") + 1]
        Path(output + SUFFIX).write_text(done.stderr, encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
