"""What commands do not do: open a network connection, or log a prompt."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llama2q

SECRET = "Xyzzy plugh"
REFUSE = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        print("a socket was opened:", event, file=sys.stderr)
        raise SystemExit(99)
sys.addaudithook(refuse)
"""


def commands(model: Path, checkpoint: Path, folder: Path) -> list[list[str]]:
    """Return a call of each command that there is."""
    text = folder / "text.txt"
    text.write_text(f"{SECRET} The king had three sons and the sons had a king. " * 60)
    receipt = folder / "receipt.json"
    model_name, small = str(model), ["--max-tokens", "3"]
    return [
        ["chat", model_name, *small, "--no-history"],
        ["generate", model_name, SECRET, *small, "--receipt", str(receipt)],
        ["replay", str(receipt), model_name],
        ["score", model_name, SECRET],
        ["compare", model_name, model_name, str(text), "--ctx", "64", "--tokens", "40"],
        ["export", model_name, "--gguf", str(folder / "model.gguf")],
        ["plan", model_name],
        ["bench", model_name, "--prefill", "8", "--decode", "4", "--repeat", "1"],
        ["verify", model_name],
        ["doctor"],
        ["inspect", model_name],
        ["perplexity", model_name, str(text), "--chunks", "1"],
        ["convert", str(checkpoint), "--output", str(folder / "new.l2q"), "--method", "rtn"],
    ]


def in_empty_namespace() -> list[str]:
    """Return the command that runs another without any network, where that is permitted."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare (util-linux) here: an empty network namespace needs it")
    for prefix in ([unshare, "-n"], [unshare, "-r", "-n"]):
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("this system permits no network namespace to this user")


def program(command: list[str], before: str = "") -> list[str]:
    """Return how Python runs a command, after some code of its own."""
    name, *arguments = command
    module = "llama2q.cli.convert" if name == "convert" else "llama2q.cli.main"
    arguments = arguments if name == "convert" else command
    code = f"{before}\nimport sys\nsys.argv[1:] = {arguments!r}\nfrom {module} import main\nmain()"
    return [sys.executable, "-c", code]


def test_every_command_is_listed(mini_file: Path, mini_checkpoint: Path, tmp_path: Path) -> None:
    from llama2q.cli.main import app

    names = {info.name or info.callback.__name__ for info in app.registered_commands}  # type: ignore[union-attr]
    listed = {command[0] for command in commands(mini_file, mini_checkpoint, tmp_path)}
    assert listed == {*names, "convert"}


@pytest.mark.slow
def test_no_network(mini_file: Path, mini_checkpoint: Path, tmp_path: Path) -> None:
    """In a namespace without a network all commands work."""
    prefix = in_empty_namespace()
    shown = subprocess.run(
        [*prefix, sys.executable, "-c", "import socket; print(len(socket.if_nameindex()))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(shown.stdout) <= 1, "expected the loopback device at most"
    run_all(commands(mini_file, mini_checkpoint, tmp_path), prefix)


def test_no_socket(mini_file: Path, mini_checkpoint: Path, tmp_path: Path) -> None:
    """Not even one that would find nobody: Python's audit events say so on every system."""
    run_all(commands(mini_file, mini_checkpoint, tmp_path), [], REFUSE)


def run_all(calls: list[list[str]], prefix: list[str], before: str = "") -> None:
    for command in calls:
        result = subprocess.run(
            [*prefix, *program(command, before)],
            input=f"{SECRET}\n/stats\n",
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, (command, result.stderr)


def test_the_check_of_sockets_can_fail() -> None:
    code = f"{REFUSE}\nimport socket\nsocket.create_connection(('localhost', 9))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 99
    assert "a socket was opened" in result.stderr


class Records(logging.Handler):
    """Keeps every message, with its arguments and its exception."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record) + repr(record.args))


@pytest.fixture
def records() -> Any:
    """All that any logger of the process says."""
    handler, root = Records(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.texts
    root.removeHandler(handler)
    root.setLevel(level)


def test_prompts_are_not_logged(mini_file: Path, tmp_path: Path, records: list[str]) -> None:
    with llama2q.load(mini_file, n_ctx=64) as llm:
        ids = llm.tokenizer.encode(SECRET)
        made = llm.generate([SECRET, SECRET * 2], max_tokens=5, seed=1, echo=True, logprobs=2)
        with llm.stream(SECRET, max_tokens=4, stop=[SECRET]) as stream:
            list(stream)
        llm.score(SECRET)
        llm.embed(SECRET)
        llm.chat([{"role": "user", "content": SECRET}], max_tokens=3)
        with llm.session() as session:
            session.generate(SECRET, max_tokens=3)
            session.chat([{"role": "user", "content": SECRET}], max_tokens=3)
            session.save(tmp_path / "saved.session")
            session.load(tmp_path / "saved.session")
        llm.logits(ids)
        with pytest.raises(llama2q.errors.ContextLengthError):
            llm.generate(SECRET * 40)
    receipt = made[0].receipt
    assert receipt is not None
    llama2q.replay(receipt, mini_file)
    assert any("KV cache" in text for text in records), "nothing was logged at all"
    for text in records:
        assert "Xyzzy" not in text
        assert "plugh" not in text
        assert str(ids)[1:-1] not in text
        assert json.dumps(made[0].text)[1:-1] not in text


def test_verbose_commands_do_not_show_the_prompt(mini_file: Path) -> None:
    small = ["--max-tokens", "3"]
    for name, arguments in (("generate", [SECRET, *small]), ("score", [SECRET]), ("chat", small)):
        result = subprocess.run(
            [sys.executable, "-m", "llama2q", "-v", name, str(mini_file), *arguments],
            input=SECRET,
            capture_output=True,
            encoding="utf-8",
            check=True,
            timeout=120,
        )
        assert "KV cache" in result.stderr
        assert "Xyzzy" not in result.stderr


def test_no_socket_module_is_needed() -> None:
    """Importing the package loads nothing that speaks over a network."""
    code = "import sys, llama2q; print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "llama2q" in loaded
    assert not loaded & {"http.client", "requests", "urllib3", "httpx", "aiohttp", "ssl"}
