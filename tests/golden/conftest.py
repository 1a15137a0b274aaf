"""Golden files, recorded by this machine's extension."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from golden import kernels, steps
from golden.container import write_golden
from golden.make_golden import RECIPES


@pytest.fixture(scope="session")
def golden_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of single kernels."""
    path = tmp_path_factory.mktemp("golden") / "kernels.golden"
    write_golden(path, kernels.cases())
    return path


@pytest.fixture(scope="session")
def golden_steps(
    convert_mini: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """File of steps of the demo model."""
    path = tmp_path_factory.mktemp("golden") / "steps.golden"
    mini = {quant: convert_mini(quant, group_size) for quant, group_size in RECIPES.items()}
    write_golden(path, steps.cases(mini))
    return path
