"""tools/own_venv.py: when the project is installed again."""

from __future__ import annotations

from pathlib import Path

import pytest

import own_venv


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have run; the project is a folder of its own."""
    run: list[list[str]] = []
    root = tmp_path / "project"
    for name in ("csrc/a.cpp", "tests/cuda/a.cpp", "tests/cuda/test_a.py", "pyproject.toml"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[build-system]\nrequires = []\n", encoding="utf-8")
    monkeypatch.setattr(own_venv, "ROOT", root)
    monkeypatch.setattr(own_venv, "_STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(own_venv, "_works", lambda: True)
    monkeypatch.setattr(own_venv, "_run", lambda command, hint: run.append(list(command)))
    return run


def installs(commands: list[list[str]]) -> list[list[str]]:
    """Return the commands that install the project itself, and forget all."""
    found = [command for command in commands if "--no-build-isolation" in command]
    commands.clear()
    return found


def test_once(commands: list[list[str]]) -> None:
    own_venv.ensure(extras=("test",))
    (command,) = installs(commands)
    assert command[-1].endswith("[test]")
    assert not any(part.startswith("--config-settings") for part in command)
    own_venv.ensure(extras=("test",))
    own_venv.ensure()
    assert installs(commands) == []
    (own_venv.ROOT / "tests/cuda/a.cpp").write_text("1", encoding="utf-8")
    own_venv.ensure()
    assert installs(commands) == []
    (own_venv.ROOT / "csrc/a.cpp").write_text("1", encoding="utf-8")
    own_venv.ensure()
    assert len(installs(commands)) == 1
    own_venv.ensure(extras=("test",))
    assert len(installs(commands)) == 1


def test_libraries_of_tests(commands: list[list[str]]) -> None:
    own_venv.ensure()
    assert len(installs(commands)) == 1
    own_venv.ensure(test_libraries=True)
    (command,) = installs(commands)
    assert "--config-settings=cmake.define.LLAMA2Q_TEST_LIBRARIES=ON" in command
    own_venv.ensure(test_libraries=True)
    own_venv.ensure()
    assert installs(commands) == []
    (own_venv.ROOT / "tests/cuda/test_a.py").write_text("1", encoding="utf-8")
    own_venv.ensure(test_libraries=True)
    assert installs(commands) == []
    (own_venv.ROOT / "tests/cuda/a.cpp").write_text("1", encoding="utf-8")
    own_venv.ensure(test_libraries=True)
    assert len(installs(commands)) == 1
