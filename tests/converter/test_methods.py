"""Methods on checkpoints that are no language models."""

from __future__ import annotations

from pathlib import Path

import pytest

import llama2q
from converter.pth_files import Make
from llama2q.errors import Llama2qError


def test_weights_that_no_text_runs_through(make: Make, tmp_path: Path) -> None:
    """Random bit patterns overflow on the way; the error says what takes them."""
    with pytest.raises(Llama2qError, match=r"method='search' \(--fast\)"):
        llama2q.convert(make(), tmp_path / "x.l2q", n_threads=1)
    assert list(tmp_path.glob("*.l2q*")) == []
    llama2q.convert(make(), tmp_path / "x.l2q", n_threads=1, method="search")
