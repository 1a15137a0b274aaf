"""Converts a checkpoint and prints by how many bytes the process's peak resident size grew.

Run as `python memory_of_conversion.py DIR FILE QUANT METHOD [ADAPTER]`.
"""

from __future__ import annotations

import sys

import llama2q
from llama2q.memory import peak_resident_bytes


def main() -> None:
    source, path, quant, method, *adapter = sys.argv[1:]
    lora = adapter[0] if adapter else None
    convert = llama2q.convert  # imported when it is first asked for
    before = peak_resident_bytes()
    convert(source, path, quant=quant, method=method or None, lora=lora, n_threads=2)
    print(peak_resident_bytes() - before)


if __name__ == "__main__":
    main()
