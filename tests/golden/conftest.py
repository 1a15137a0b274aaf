"""Fixtures of the golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from golden.make_golden import RECIPES, make


@pytest.fixture(scope="session")
def golden_files(
    convert_mini: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Files of kernels and of steps, recorded by this machine's extension."""
    mini = {quant: convert_mini(quant, group_size) for quant, group_size in RECIPES.items()}
    return make(tmp_path_factory.mktemp("golden"), mini)
