"""Shows llama2q at work: installs it, converts the demo model, streams text from it.

Run it as `python3 tools/demo.py`; it needs Python 3.11 or newer and a C++20 compiler.
"""

from __future__ import annotations

import subprocess
import sys
import time

import own_venv

CHECKPOINT = own_venv.ROOT / "tests" / "data" / "mini"
OUTPUT = own_venv.ROOT / "build" / "demo" / "mini-int4.l2q"
PROMPT = "Once upon a time"


def main() -> int:
    if own_venv.is_inside():
        show()
        return 0
    own_venv.ensure()
    command = [str(own_venv.PYTHON), __file__]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


def show() -> None:
    """Convert, load, stream; then say how fast and how big it was."""
    import psutil

    import llama2q

    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ llama2q-convert {CHECKPOINT.relative_to(own_venv.ROOT)} --quant int4", flush=True)
    report = llama2q.convert(CHECKPOINT, OUTPUT, quant="int4", overwrite=True)
    print(
        f"{report.path.relative_to(own_venv.ROOT)}: {report.input_bytes / 1e6:.1f} MB -> "
        f"{report.output_bytes / 1e6:.1f} MB in {report.seconds:.2f} s"
    )
    print(f'$ llama2q generate {OUTPUT.name} "{PROMPT}"', flush=True)
    started = time.perf_counter()
    with llama2q.load(OUTPUT) as llm:
        load_seconds = time.perf_counter() - started
        print(PROMPT, end="", flush=True)
        with llm.stream(PROMPT, max_tokens=200, seed=2) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
        result = stream.completion
        resident = psutil.Process().memory_info().rss
    print(
        f"\n\n{result.usage.completion_tokens} tokens at {result.timings.tokens_per_second:.0f} "
        f"tokens/s; loaded in {1000 * load_seconds:.0f} ms; {resident / 1e6:.0f} MB resident "
        "(Python and NumPy included)"
    )
    print(
        "The demo model has 6.8 million parameters: it writes English and nothing worth believing."
    )


if __name__ == "__main__":
    sys.exit(main())
