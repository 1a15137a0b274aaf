"""Second moments of inputs and their factors."""

from __future__ import annotations

import numpy as np
import pytest

from llama2q.calibrate import moments as moments_module
from llama2q.calibrate.moments import DAMPING, Moments
from llama2q.errors import CalibrationError


def test_factors_of_damped_moments() -> None:
    """L D L^T is the sum of x x^T and the damping, to float32's precision of it."""
    rng = np.random.default_rng(0)
    windows = [rng.standard_normal((50, 30)).astype(np.float32) for _ in range(3)]
    moments = Moments(30, 2)
    for x in windows:
        moments.add(x)
    factors = moments.factor()
    h = sum(x.astype(np.float64).T @ x for x in windows)
    h += DAMPING * np.trace(h) / 30 * np.eye(30)
    lower = np.tril(factors.ldl, -1).astype(np.float64) + np.eye(30)
    rebuilt = lower * factors.ldl.diagonal() @ lower.T
    np.testing.assert_allclose(rebuilt, h, rtol=0, atol=1e-5 * np.abs(h).max())
    np.testing.assert_array_equal(np.triu(factors.ldl), np.tril(factors.ldl).T)
    np.testing.assert_allclose(factors.importance, np.diag(h), rtol=1e-5)
    assert factors.damping == DAMPING


def test_moments_that_need_more_damping(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One direction holds nearly all of them: float32 cannot tell the rest from zero."""
    monkeypatch.setattr(moments_module, "DAMPING", 1e-7)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 200)).astype(np.float32)
    x[:, :190] += np.float32(3e4) * rng.standard_normal((40, 1)).astype(np.float32)
    factors = Moments(200, 1).add(x).factor()
    assert factors.damping > 1e-7
    assert f"damping is now {factors.damping:g} of their mean" in caplog.text
    lower = np.tril(factors.ldl, -1).astype(np.float64) + np.eye(200)
    h = x.astype(np.float64).T @ x
    h += factors.damping * np.trace(h) / 200 * np.eye(200)
    rebuilt = lower * factors.ldl.diagonal() @ lower.T
    np.testing.assert_allclose(rebuilt, h, rtol=0, atol=1e-4 * np.abs(h).max())


def test_inputs_of_zeros() -> None:
    factors = Moments(20, 1).add(np.zeros((5, 20), np.float32)).factor()
    np.testing.assert_array_equal(factors.ldl, np.eye(20))


def test_moments_that_are_not_finite() -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        Moments(20, 1).add(np.full((5, 20), 1e20, np.float32)).factor()
