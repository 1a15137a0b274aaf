"""A private copy of the project in which one text at a time is changed, built and tested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COPIED = ("src", "csrc", "tests", "tools", "CMakeLists.txt", "pyproject.toml", "README.md",
          "LICENSE")  # fmt: skip
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", ".hypothesis")
LIBRARIES = "libllama2q_*.so"
LIMIT_S = 1800


@dataclass(frozen=True)
class Edit:
    """Replace `old`, which must occur exactly once in the file."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Outcome:
    """Counts of one pytest run."""

    passed: int
    failed: int
    errors: int
    skipped: int
    output: str


class Workbench:
    """The copy. With isas it builds its own extension, else it borrows the installed one.

    With libraries it also builds those that stand in for CUDA's.
    """

    def __init__(
        self, project: Path, folder: Path, isas: Sequence[str] = (), *, libraries: bool = False
    ) -> None:
        self.root = folder / "project"
        self.root.mkdir()
        self._build = folder / "build" if isas else None
        for name in COPIED:
            source = project / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=LEFT_OUT)
            elif source.exists():
                shutil.copy2(source, self.root / name)
        shared = project.parent / "shared"
        if shared.is_dir():
            (folder / "shared").symlink_to(shared, target_is_directory=True)
        if self._build is None:
            self._borrow()
        else:
            self._configure(isas, libraries)
            self.build()
        self._check_import()

    def _package(self) -> Path:
        return self.root / "src" / "llama2q"

    def _borrow(self) -> None:
        from llama2q import _core

        extension = Path(_core.__file__)
        for library in (extension, *extension.parent.glob(LIBRARIES)):
            shutil.copy2(library, self._package())

    def _configure(self, isas: Sequence[str], libraries: bool) -> None:
        import pybind11

        self._run(
            "cmake", "-S", self.root, "-B", self._build, "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DLLAMA2Q_ISAS={';'.join(isas)}",
            f"-DLLAMA2Q_TEST_LIBRARIES={'ON' if libraries else 'OFF'}",
        )  # fmt: skip

    def build(self) -> None:
        """Build the extension and the tests' libraries, and put them into the copy's package."""
        if self._build is None:
            return
        self._run("cmake", "--build", self._build, "--parallel", "2")
        (extension,) = self._build.glob("**/_core*.so")
        for library in (extension, *self._build.glob(f"**/{LIBRARIES}")):
            target = self._package() / library.name
            target.unlink(missing_ok=True)
            shutil.copy2(library, target)

    def _run(self, *command: str | Path | None) -> None:
        done = subprocess.run(
            [str(part) for part in command], env=self._environment(), capture_output=True,
            text=True, timeout=LIMIT_S,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "LLAMA2Q_ISA"}
        return {
            **kept,
            # cmake and ninja may be installed beside Python and nowhere else.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
            "PYTHONPATH": str(self.root / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _check_import(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "import llama2q._core as core; print(core.__file__)"],
            env=self._environment(), cwd=self.root, capture_output=True, text=True,
        )  # fmt: skip
        if not done.stdout.startswith(str(self.root)):
            raise RuntimeError(
                f"the copy's package is not the one imported: {done.stdout}{done.stderr}"
            )

    @contextmanager
    def edited(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Apply the edits, build, and undo both afterwards."""
        originals = {edit.path: (self.root / edit.path).read_text() for edit in edits}
        try:
            for edit in edits:
                path = self.root / edit.path
                text = path.read_text()
                if text.count(edit.old) != 1:
                    raise ValueError(
                        f"{edit.path} holds {text.count(edit.old)} times what this fault replaces "
                        f"(expected once); adapt tests/teeth to the new text:\n{edit.old}"
                    )
                path.write_text(text.replace(edit.old, edit.new))
            self.build()
            yield
        finally:
            for name, text in originals.items():
                (self.root / name).write_text(text)

    def pytest(self, targets: Sequence[str], *, stop_at_first: bool = True) -> Outcome:
        """Run tests of the copy; targets are relative to its tests folder."""
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
            *(["-x"] if stop_at_first else []), *(f"tests/{target}" for target in targets),
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=self.root, env=self._environment(), capture_output=True, text=True,
            timeout=LIMIT_S,
        )  # fmt: skip
        output = done.stdout[-6000:] + done.stderr[-2000:]
        if not report.exists():
            return Outcome(0, 0, 1, 0, output)
        suites = ET.parse(report).getroot().iter("testsuite")
        total = failed = errors = skipped = 0
        for suite in suites:
            total += int(suite.get("tests", 0))
            failed += int(suite.get("failures", 0))
            errors += int(suite.get("errors", 0))
            skipped += int(suite.get("skipped", 0))
        return Outcome(total - failed - errors - skipped, failed, errors, skipped, output)
