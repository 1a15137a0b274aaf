"""Converts a checkpoint and prints by how many bytes the process's peak resident size grew.

Run as `python memory_of_conversion.py DIR FILE ARGUMENTS`, the arguments of `llama2q.convert` as a
JSON object.
"""

from __future__ import annotations

import json
import sys

import llama2q
from llama2q.memory import peak_resident_bytes


def main() -> None:
    source, path, arguments = sys.argv[1:]
    convert = llama2q.convert  # imported when it is first asked for
    before = peak_resident_bytes()
    convert(source, path, **json.loads(arguments))
    print(peak_resident_bytes() - before)


if __name__ == "__main__":
    main()
