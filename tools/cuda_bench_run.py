"""How bench_cuda.py runs its parts: each by itself, in time, its rows written as they come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
_LOG_BYTES = 200_000
"""Of a command's output, its end, in the log."""


class Recorder:
    """Rows in `results.jsonl`, the output of commands in `log.txt`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.rows: list[Row] = []
        self._lock = threading.Lock()
        self._results: TextIO = (folder / "results.jsonl").open("w", encoding="utf-8")
        self._log: TextIO = (folder / "log.txt").open("w", encoding="utf-8")

    def close(self) -> None:
        """Close the files."""
        self._results.close()
        self._log.close()

    def add(self, part: str, row: Mapping[str, Any]) -> Row:
        """Write a row of a part."""
        full = {"part": part, **row}
        with self._lock:
            self.rows.append(full)
            self._results.write(json.dumps(full) + "\n")
            self._results.flush()
        return full

    def log(self, title: str, text: str) -> None:
        """Keep what a command printed."""
        with self._lock:
            self._log.write(f"==== {title}\n{text[-_LOG_BYTES:]}\n")
            self._log.flush()

    def of(self, part: str, **wanted: Any) -> list[Row]:
        """Return the rows of a part that have these values."""
        return [
            row
            for row in self.rows
            if row["part"] == part and all(row.get(key) == value for key, value in wanted.items())
        ]


class PartError(Exception):
    """A part cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes
    ----------
    out, work : Path
        Where the results go, and large files and builds.
    parts : tuple of str
        Keys of those that run.
    shapes : tuple of str
        Models, of synthetic_shapes.py.
    dry : bool
        Tiny sizes and the emulation: shows that everything runs.
    built : Path or None
        A finished build to take.
    installed : bool
        Take the package that this Python finds.
    llama_cpp : Path or None
        Its source folder or archive.
    profile : str or None
        The op to be profiled.
    deadline : float
        Seconds from the start after which nothing is begun.
    commit : str
        What is measured; empty asks git.
    """

    out: Path
    work: Path
    parts: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ("7b", "13b", "70b")
    dry: bool = False
    built: Path | None = None
    installed: bool = False
    llama_cpp: Path | None = None
    profile: str | None = None
    deadline: float = 530.0
    commit: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended; `code` is None if its time was up."""

    code: int | None
    output: str
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether it did not end well."""
        return self.code != 0

    def why(self) -> str:
        """Say how it ended, with its last lines."""
        how = "its time was up" if self.code is None else f"exit code {self.code}"
        lines = self.output.strip().splitlines()
        return f"{how}: {' / '.join(line.strip() for line in lines[-6:])}"[:1500]


def _program_folders() -> list[str]:
    """Return the folders of PATH, and where NVIDIA's programs are if they are not there."""
    more = [Path("/usr/local/cuda/bin"), *sorted(Path("/opt/nvidia").glob("nsight-compute/*"))]
    return [os.environ.get("PATH", ""), *(str(folder) for folder in more if folder.is_dir())]


@dataclass(slots=True)
class Context:
    """What parts share.

    Attributes
    ----------
    package : Path or None
        For PYTHONPATH: the package that was built.
    programs : Path or None
        Folder of cuda_limits, cuda_kernels and the checks.
    library : Path or None
        The emulated library, in a dry run.
    """

    settings: Settings
    recorder: Recorder
    started: float = field(default_factory=time.monotonic)
    package: Path | None = None
    programs: Path | None = None
    library: Path | None = None
    background: dict[str, threading.Thread] = field(default_factory=dict)
    running: set[subprocess.Popen[str]] = field(default_factory=set)
    part_ends: float = float("inf")

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.settings.deadline - (time.monotonic() - self.started)

    def part_left(self) -> float:
        """Seconds until the part that runs must end."""
        return max(0.0, min(self.part_ends - time.monotonic(), self.left()))

    def environment(self) -> dict[str, str]:
        """Return the variables of commands: what was built comes first."""
        paths = [str(ROOT / "tools")]
        if self.package is not None:
            paths.insert(0, str(self.package))
        if "PYTHONPATH" in os.environ:
            paths.append(os.environ["PYTHONPATH"])
        variables = {
            **os.environ,
            # cmake and ninja may be installed beside Python and nowhere else.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), *_program_folders()]),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if not self.settings.dry:
            variables["LLAMA2Q_REQUIRE_DEVICE"] = "1"  # tests/cuda/test_device.py skips nothing
        if self.library is not None:
            variables["LLAMA2Q_CUDA_LIBRARY"] = str(self.library)
            variables.setdefault("CUDA_EMULATION_CAPABILITY", "9.0")
        return variables

    def run(
        self,
        title: str,
        command: Sequence[str | Path],
        seconds: float,
        on_line: Callable[[str], None] | None = None,
        folder: Path = ROOT,
    ) -> Done:
        """Run a command; it and what it started end when its time is up.

        Parameters
        ----------
        on_line : callable, optional
            Called with each line of its stdout as it comes.
        """
        started = time.monotonic()
        text = [str(part) for part in command]
        if seconds <= 0:
            return Done(None, "there was no time left to start it", 0.0)
        try:
            process = subprocess.Popen(
                text,
                cwd=folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if on_line is None else subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            return Done(127, f"{text[0]}: {error}", 0.0)
        self.running.add(process)
        collected: list[str] = []

        def read(stream: TextIO | None, handle: Callable[[str], None] | None) -> None:
            if stream is None:
                return
            with stream:
                for line in stream:
                    collected.append(line)
                    if handle is not None:
                        handle(line)

        readers = [
            threading.Thread(target=read, args=(process.stdout, on_line), daemon=True),
            threading.Thread(target=read, args=(process.stderr, None), daemon=True),
        ]
        for reader in readers:
            reader.start()
        code: int | None
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
            self.running.discard(process)
        for reader in readers:
            reader.join(timeout=5)
        done = Done(code, "".join(collected), time.monotonic() - started)
        how = "time was up" if code is None else f"exit code {code}"
        self.recorder.log(f"{title} ({done.seconds:.1f} s, {how}): {' '.join(text)}", done.output)
        return done

    def rows(
        self, part: str, title: str, command: Sequence[str | Path], seconds: float, **common: Any
    ) -> list[Row]:
        """Run a program that prints lines of JSON; its end that is none becomes a row with "error".

        `common` is added to each row.
        """
        found: list[Row] = []

        def take(line: str) -> None:
            if line.startswith("{"):
                try:
                    values = json.loads(line)
                except ValueError:
                    return
                found.append(self.recorder.add(part, {**common, **values}))

        done = self.run(title, command, seconds, take)
        if done.failed:
            error = f"{title}: {done.why()}"
            found.append(self.recorder.add(part, {**common, "error": error}))
        return found

    def start(self, name: str, body: Callable[[], None]) -> None:
        """Run something beside the parts that follow; an error of it becomes a row."""

        def guarded() -> None:
            try:
                body()
            except Exception as error:
                self.recorder.add(name, {"error": f"{type(error).__name__}: {error}"})

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self.background[name] = thread
        thread.start()

    def wait(self, name: str, seconds: float) -> bool:
        """Wait for what was started; whether it has ended (or was never started)."""
        thread = self.background.get(name)
        if thread is None:
            return True
        thread.join(timeout=max(0.0, seconds))
        return not thread.is_alive()


def stop(context: Context) -> None:
    """End what still runs beside the parts."""
    for process in list(context.running):
        _end(process)
    for name in context.background:
        context.wait(name, 10)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill what is left of a process and of those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    process.wait()


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the run.

    Attributes
    ----------
    key : str
        One letter, for --parts.
    estimate, budget : float
        Seconds that it takes, about, and at most.
    needs : tuple of str
        What must have been built: "package", "programs".
    """

    key: str
    name: str
    estimate: float
    budget: float
    run: Callable[[Context], None]
    needs: tuple[str, ...] = ()


def run_part(context: Context, part: Part) -> None:
    """Run a part; whatever happens in it, the next ones run."""
    recorder, started = context.recorder, time.monotonic()
    row: Row = {"name": part.name}
    missing = [need for need in part.needs if getattr(context, need) is None]
    if missing:
        row["skipped"] = f"{' and '.join(missing)} could not be built"
    elif context.left() < 5:
        row["skipped"] = "the time was up"
    else:
        context.part_ends = float("inf") if context.settings.dry else started + part.budget
        try:
            part.run(context)
        except PartError as error:
            row["error"] = str(error)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
    row["seconds"] = time.monotonic() - started
    recorder.add("parts", {"key": part.key, **row})
