"""Parts of bench_cuda.py that show that the device computes what it should."""

from __future__ import annotations

import shutil
import sys
import xml.etree.ElementTree as ElementTree

from cuda_bench_build import CHECKS
from cuda_bench_run import ROOT, Context, Done

TESTS = ROOT / "tests" / "cuda" / "test_device.py"
_TOOLS = ("memcheck", "racecheck")


def check(context: Context) -> None:
    """Compare kernels with float64 and exact integers, then whole models with the CPU."""
    if context.programs is not None and not context.settings.dry:
        for name in CHECKS:
            _run_program(context, "check", name, [], min(60, context.part_left() / 2))
    _run_tests(context)


def sanitize(context: Context) -> None:
    """Run the programs again, and a small model, under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer", path=context.environment()["PATH"])
    if tool is None or context.settings.dry:
        why = "a dry run" if context.settings.dry else "there is no compute-sanitizer"
        context.recorder.add("sanitize", {"skipped": why})
        return
    programs = [name for name in CHECKS[1:] if context.programs is not None]
    todo = [(how, name) for how in _TOOLS for name in (*programs, "model")]
    for done, (how, name) in enumerate(todo):
        # What is left is shared out evenly.
        seconds = context.part_left() / (len(todo) - done)
        sanitizer = [tool, "--tool", how, "--error-exitcode", "9", "--print-limit", "20"]
        if name == "model":
            _run_model(context, sanitizer, how, seconds)
        else:
            _run_program(context, "sanitize", name, sanitizer, seconds, tool=how)


def _run_program(
    context: Context, part: str, name: str, before: list[str], seconds: float, **more: str
) -> None:
    assert context.programs is not None
    program = context.programs / name
    if not program.is_file():
        context.recorder.add(part, {"program": name, **more, "error": "it was not built"})
        return
    done = context.run(f"{part} {name}", [*before, program], seconds)
    lines = done.output.splitlines()
    failed = [line for line in lines if line.startswith("FAILED")]
    row = {
        "program": name,
        **more,
        "passed": sum(line.startswith("ok ") for line in lines),
        "failed": failed,
        "seconds": done.seconds,
    }
    context.recorder.add(part, {**row, **_verdict(done, lines)})


def _verdict(done: Done, lines: list[str]) -> dict[str, object]:
    summary = [line for line in lines if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    row: dict[str, object] = {"summary": summary[-1].strip("= ")} if summary else {}
    if done.failed:
        reports = [line.strip("= ") for line in lines if line.startswith("=========")]
        row["error"] = done.why() if not reports else " / ".join(reports[:8])[:1500]
    return row


def _run_model(context: Context, sanitizer: list[str], how: str, seconds: float) -> None:
    command = [
        *(*sanitizer, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("-W", "default"),
        *("-k", "sanitized", str(TESTS)),
    ]
    done = context.run(f"sanitize {how} model", command, seconds)
    row = {"program": "model", "tool": how, "seconds": done.seconds}
    context.recorder.add("sanitize", {**row, **_verdict(done, done.output.splitlines())})


def _run_tests(context: Context) -> None:
    """Run the tests of whole models; a row for each."""
    report = context.settings.work / "device-tests.xml"
    report.unlink(missing_ok=True)
    command = [
        # Other versions of what the tests use may warn of something else.
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"),
        "--tb=short",
        *(f"--junitxml={report}", str(TESTS)),
    ]
    if context.settings.dry:
        command += ["-k", "exact or speculation"]  # the others take minutes there
    done = context.run("tests of a device", command, context.part_left())
    if not report.is_file():
        context.recorder.add("check", {"program": "test_device.py", "error": done.why()})
        return
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        row: dict[str, object] = {
            "test": case.get("name"),
            "seconds": float(case.get("time") or 0),
            "outcome": "passed",
        }
        for kind in ("skipped", "failure", "error"):
            found = case.find(kind)
            if found is not None:
                row["outcome"] = "failed" if kind == "failure" else kind
                row["message"] = (found.get("message") or found.text or "")[:1500]
        for item in case.iter("property"):
            row[str(item.get("name"))] = item.get("value")
        context.recorder.add("check", row)
    if done.code not in (0, 1):
        context.recorder.add("check", {"program": "test_device.py", "error": done.why()})
