"""Runs a coverage-guided fuzzing campaign: `python3 tools/fuzz.py checkpoint|l2q|core`.

`checkpoint` and `l2q` feed the two readers (atheris, from PyPI), `core` the C++ entry points under
the address and undefined sanitizers (libFuzzer; needs clang). New inputs go to build/fuzz/NAME,
findings to build/fuzz/findings. `--merge` moves what build/fuzz/NAME adds in coverage into the
corpus that the tests replay, instead of fuzzing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import native_build
import own_venv

HERE = own_venv.ROOT / "tests" / "fuzz"
BUILD = own_venv.ROOT / "build" / "fuzz"
_LIMITS = {
    "checkpoint": ("-timeout=30", "-rss_limit_mb=1500", "-max_len=65536"),
    "l2q": ("-timeout=30", "-rss_limit_mb=1500", "-max_len=65536"),
    "core": ("-timeout=60", "-rss_limit_mb=2000", "-max_len=2048"),
}
"""Seconds and memory that one input may take: more is a finding."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(_LIMITS))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--merge", action="store_true")
    arguments = parser.parse_args()
    name: str = arguments.target
    program = _core_program() if name == "core" else _reader_program(name)
    if program is None:
        return 1
    corpus, found, findings = HERE / "corpus" / name, BUILD / name, BUILD / "findings"
    for folder in (found, findings):
        folder.mkdir(parents=True, exist_ok=True)
    options = [*_LIMITS[name], f"-artifact_prefix={findings}/{name}-"]
    if arguments.merge:
        return native_build.run([*program, "-merge=1", *options, corpus, found])
    dictionary = HERE / f"{name}.dict"
    if dictionary.exists():
        options.append(f"-dict={dictionary}")
    seconds = int(60 * arguments.minutes)
    options += [f"-max_total_time={seconds}", "-print_final_stats=1"]
    code = native_build.run([*program, *options, found, corpus])
    if code:
        print(f"a finding lies in {findings}: fix its cause, then put the input into {corpus}")
    return code


def _reader_program(name: str) -> list[str | Path] | None:
    own_venv.ensure(extras=("test", "fuzz"))
    os.environ["LLAMA2Q_FUZZ_TARGET"] = name
    return [own_venv.PYTHON, HERE / "run_atheris.py"]


def _core_program() -> list[str | Path] | None:
    clang = native_build.find_clang()
    if clang is None:
        return None
    own_venv.ensure(extras=("test",))
    folder = BUILD / "core-build"
    failed = native_build.build(
        folder,
        f"-DCMAKE_CXX_COMPILER={clang}",
        "-DLLAMA2Q_FUZZ=ON",
        "-DLLAMA2Q_FUZZ_ENGINE=ON",
        *native_build.avxvnni_options(),
        "-DLLAMA2Q_SANITIZE=address,undefined",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    )
    return None if failed else [folder / "tests" / "fuzz" / "cpp" / "fuzz_core"]


if __name__ == "__main__":
    sys.exit(main())
