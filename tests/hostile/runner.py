"""Converts hostile checkpoints in one process with little memory; prints one JSON line per case.

    python3 -m hostile.runner FOLDER NAME ...

Memory is bounded by RLIMIT_AS, what a case may take by an alarm that ends the process, and an audit
hook notes what a file made the process do.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import llama2q
from hostile.bench import Bench, CannotMakeError
from hostile.cases import CASES

MORE_BYTES = 384 << 20
"""Address space that all cases together may add, threads' stacks included."""
MORE_SECONDS = 60
"""Wall time after which a case counts as hanging."""
FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile", "pty.spawn",
    "subprocess.Popen", "pickle.find_class", "socket.connect", "socket.getaddrinfo",
    "ctypes.dlopen", "shutil.rmtree", "urllib.Request", "webbrowser.open",
}  # fmt: skip


def limit_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def convert(place: Path, output: Path) -> dict[str, Any]:
    """Convert quickly: reading is what is tried. A GGUF file's own codes are kept."""
    is_gguf = place.is_file() or any(place.rglob("*.gguf"))
    try:
        llama2q.convert(place, output, method=None if is_gguf else "rtn", n_threads=1)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": "none", "message": ""}


def main(folder: Path, names: list[str]) -> None:
    sound = Bench.write_sound(folder / "sound")
    llama2q.convert(sound, folder / "sound.l2q", method="rtn", n_threads=1)  # imports what it needs
    limit_memory()
    watched, events = False, []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if watched and event in FORBIDDEN:
            events.append(f"{event}{arguments!r}"[:200])

    sys.addaudithook(audit)
    for name in names:
        faulthandler.dump_traceback_later(MORE_SECONDS, exit=True)
        place = folder / name
        place.mkdir()
        output = folder / f"{name}-out"
        output.mkdir()
        try:
            source = CASES[name].make(Bench(place, sound))
        except CannotMakeError as error:
            result: dict[str, Any] = {"skip": str(error)}
        else:
            events.clear()
            modules = set(sys.modules)
            started = time.process_time()
            watched = True
            result = convert(source, output / "x.l2q")
            watched = False
            result["seconds"] = time.process_time() - started
            result["events"] = events.copy()
            result["modules"] = sorted(set(sys.modules) - modules)
            result["left"] = sorted(path.name for path in output.iterdir())
            result["canary"] = Path(os.environ["LLAMA2Q_CANARY"]).exists()
        print(json.dumps({"name": name, **result}), flush=True)
        shutil.rmtree(place, ignore_errors=True)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
