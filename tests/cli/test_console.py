"""Streams of the commands: UTF-8 whatever the console's code page, and a reader that goes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from llama2q.cli.console import is_broken_pipe

ECHO = """
import sys
from llama2q.cli.console import note, set_up
set_up(False)
text = sys.stdin.read()
print(text)
note(text)
"""
TEXT = "\u00e9 \u2581 \U0001f999"


@pytest.mark.parametrize("code_page", ["cp1252", "cp437", "ascii"])
def test_utf8_whatever_the_code_page(code_page: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ECHO],
        input=TEXT.encode() + b" \xff",
        capture_output=True,
        env={
            **os.environ,
            "PYTHONIOENCODING": code_page,
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        timeout=100,
        check=True,
    )
    assert done.stdout.decode().splitlines() == [f"{TEXT} \ufffd"]
    assert done.stderr.decode().splitlines() == [f"{TEXT} \ufffd"]


def test_a_reader_that_goes() -> None:
    einval = OSError(errno.EINVAL, "Invalid argument")
    assert is_broken_pipe(BrokenPipeError(errno.EPIPE, "Broken pipe"), "linux")
    assert is_broken_pipe(einval, "win32")
    assert not is_broken_pipe(einval, "linux")
    assert not is_broken_pipe(OSError(errno.EINVAL, "Invalid argument", "file"), "win32")
    assert not is_broken_pipe(FileNotFoundError(errno.ENOENT, "No such file", "file"), "win32")
