"""Fixtures of the tests of evaluation."""

from __future__ import annotations

import sys

import pytest

import llama_cpp_peer
from evaluate.fake_llama_cpp import FakeLlamaCpp


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLlamaCpp:
    fake = FakeLlamaCpp()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(llama_cpp_peer, "_callbacks", [])
    llama_cpp_peer._messages.clear()
    return fake
