"""What only `tools/test.py --all` runs on the wheel: it is built and runs where it should.

The wheel of tools/build_wheel.py is installed into a fresh environment, in a network namespace
without a network and with no compiler on the PATH, and tested there; then it runs on an emulated
CPU without AVX, where its file and its tokens must be those of this CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import build_wheel
import check_cuda
import check_wheel
import native_build
import own_venv

DIST = build_wheel.BUILD / "dist"
FRESH = build_wheel.BUILD / "fresh"
FRESH_PYTHON = FRESH / "bin" / "python"
WHEELHOUSE = build_wheel.BUILD / "wheelhouse"
BESIDE = build_wheel.BUILD / "beside"
"""A folder with the tests and without the sources."""
QEMU = "qemu-x86_64-static"
OLD_CPU = "Nehalem"
"""The oldest CPU that NumPy's wheels run on (x86-64-v2): SSE4.2, no AVX."""
EVERY_ISA = ["scalar", "avx2", "avxvnni", "avx512vnni"]

_TEST_NEEDS = ("gguf", "hypothesis", "jinja2", "pytest", "pytest-timeout", "safetensors")
_LEFT_OUT = (
    # They read the project's sources or compile them.
    "tests/test_teeth.py",
    # Thousands of inputs, of which none meets the compiled text in a way of its own.
    "tests/fuzz",
    "tests/format/test_hostile.py",
    "tests/hostile",
)
_PLATFORMS = {
    "linux": ("manylinux_x86_64", "manylinux_aarch64"),
    "macos": ("macosx_x86_64", "macosx_arm64"),
    "windows": ("win_amd64",),
}
_PYTHONS = ("cp311", "cp312", "cp313", "cp314", "cp315")


def steps() -> list[tuple[str, Callable[[], int]]]:
    """Return the name and the function of each check; a function returns an exit code."""
    return [
        ("workflows and cibuildwheel's settings", workflows),
        (f"wheel for {build_wheel.PLATFORM}", lambda: build_wheel.build(DIST)),
        ("wheel without compiler and network", fresh),
        ("wheel on a CPU without AVX (emulated)", old_cpu),
    ]


def workflows() -> int:
    """Hold the workflows to their schema, and cibuildwheel to the wheels that are to be built."""
    if failed := build_wheel.ensure_tools():
        return failed
    files = sorted((own_venv.ROOT / ".github" / "workflows").glob("*.yml"))
    checker = build_wheel.PYTHON.with_name("check-jsonschema")
    failed = native_build.run([checker, "--builtin-schema", "vendor.github-workflows", *files])
    for platform, architectures in _PLATFORMS.items():
        expected = {f"{python}-{arch}" for python in _PYTHONS for arch in architectures}
        listed = subprocess.run(
            [
                *(str(build_wheel.PYTHON.with_name("cibuildwheel")), "--print-build-identifiers"),
                *("--platform", platform, "--archs", "all"),
            ],
            cwd=own_venv.ROOT,
            env=build_wheel.tools_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = set(listed.split())
        print(f"cibuildwheel, {platform}: {len(found)} wheels")
        if found != expected:
            print(f"expected others: {sorted(found ^ expected)}", file=sys.stderr)
            failed = 1
    return failed


def fresh() -> int:
    """Install the wheel where there is neither a compiler nor a network, and test it there."""
    wheel = build_wheel.wheel_in(DIST)
    pyproject = tomllib.loads((own_venv.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pip = ("-m", "pip", "--disable-pip-version-check", "--quiet")
    shutil.rmtree(BESIDE, ignore_errors=True)
    for name in ("tests", "tools"):
        shutil.copytree(
            own_venv.ROOT / name, BESIDE / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy2(own_venv.ROOT / "pyproject.toml", BESIDE)
    needs: list[str] = [*pyproject["project"]["dependencies"], *_TEST_NEEDS]
    download: list[str | Path] = [build_wheel.PYTHON, *pip, "download", "--only-binary=:all:"]
    failed = native_build.run([*download, "--dest", WHEELHOUSE, *needs]) or native_build.run(
        [sys.executable, "-m", "venv", "--clear", FRESH]
    )
    if failed:
        return failed
    targets = [f"sm_{architecture}" for architecture in check_cuda.ARCHITECTURES]
    targets = targets if check_wheel.has_cuda(wheel) else []
    install: list[str | Path] = [FRESH_PYTHON, *pip, "install", "--no-index", "--find-links"]
    return (
        _alone([*install, WHEELHOUSE, wheel, *_TEST_NEEDS])
        or _alone([FRESH_PYTHON, "-c", _ALONE, json.dumps([EVERY_ISA, targets])])
        or _alone(
            [
                *(FRESH_PYTHON, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"),
                *(f"--ignore={path}" for path in _LEFT_OUT),
            ]
        )
    )


_ALONE = """\
import json, shutil, socket, sys
import llama2q
from llama2q import _core, devices
compilers = [n for n in ("c++", "g++", "gcc", "cc", "clang++", "clang", "zig") if shutil.which(n)]
assert not compilers, f"on the PATH: {compilers}"
assert [name for _, name in socket.if_nameindex()] == ["lo"], socket.if_nameindex()
assert llama2q.__file__.startswith(sys.prefix), llama2q.__file__
isas, targets = json.loads(sys.argv[1])
assert _core.compiled_isas() == isas, _core.compiled_isas()
if targets:
    assert devices.library().targets.split() == targets, devices.library().targets
    print("CUDA kernels for", *targets)
else:
    print("no CUDA kernels in this wheel")
print(llama2q.__file__, _core.COMPILER, *_core.compiled_isas())
"""


def _alone(command: list[str | Path]) -> int:
    """Run a command beside the tests, without a network, with a PATH of one folder."""
    unshare = shutil.which("unshare") or "unshare"
    options = "-n" if os.geteuid() == 0 else "-rn"
    env = {"PATH": str(FRESH / "bin"), "HOME": str(BESIDE), "LANG": "C.UTF-8"}
    return subprocess.run(
        [str(part) for part in (unshare, options, *command)],
        cwd=BESIDE,
        env=env,
        stdin=subprocess.DEVNULL,
        check=False,
    ).returncode


def old_cpu() -> int:
    """Convert and generate on the emulated CPU: the file and the tokens are those of this one."""
    if shutil.which(QEMU) is None:
        print(f"{QEMU} is missing; on Debian: apt install qemu-user-static", file=sys.stderr)
        return 1
    here, there = _probe([]), _probe([QEMU, "-cpu", OLD_CPU])
    faults = [
        f"{name} is {there[name]!r} on {OLD_CPU} and {here[name]!r} here"
        for name in ("model_id", "token_ids", "text")
        if there[name] != here[name]
    ]
    if (there["isas"], there["isa"]) != (["scalar"], "scalar"):
        faults.append(f"{OLD_CPU} was offered {there['isas']} and took {there['isa']}")
    forced = _run_probe([QEMU, "-cpu", OLD_CPU], {"LLAMA2Q_ISA": "avx2"})
    message = 'instruction set "avx2" is not available; this CPU and build offer: scalar.'
    if forced.returncode == 0 or message not in forced.stderr:
        faults.append(f"LLAMA2Q_ISA=avx2 on {OLD_CPU} says: {forced.stdout}{forced.stderr}")
    for fault in faults:
        print(fault, file=sys.stderr)
    tokens = len(there["token_ids"])
    print(f"{OLD_CPU}: {there['isa']}, {there['seconds']} s; here: {here['isa']}; {tokens} tokens")
    return 1 if faults else 0


_PROBE = """\
import json, sys, time
import llama2q
from llama2q import kernels
started = time.monotonic()
report = llama2q.convert(sys.argv[1], sys.argv[2], method="rtn", overwrite=True)
with llama2q.load(sys.argv[2]) as llm:
    result = llm.generate("Once upon a time", temperature=0, max_tokens=24)
print(json.dumps({
    "isas": kernels.isas(), "isa": kernels.default_isa(), "model_id": report.model_id,
    "token_ids": result.token_ids, "text": result.text,
    "seconds": round(time.monotonic() - started, 1)}))
"""


def _probe(prefix: list[str]) -> dict[str, Any]:
    """Run the demo model and return what it did."""
    result = _run_probe(prefix, {})
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    what: dict[str, Any] = json.loads(result.stdout)
    return what


def _run_probe(prefix: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    checkpoint = own_venv.ROOT / "tests" / "data" / "mini"
    output = build_wheel.BUILD / f"mini-{'-'.join(prefix[2:]) or 'here'}.l2q"
    return subprocess.run(
        [*prefix, str(FRESH_PYTHON), "-c", _PROBE, str(checkpoint), str(output)],
        cwd=build_wheel.BUILD,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    sys.exit(any([step() for _, step in steps()]))
