"""Frechet distances against closed forms, scipy in float64, and what numpy 1.26 made of a single clip."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from fourdiffusion.metrics.frechet import consistent4d_distance, mean_distance, set_distance


def features(seed: int, num: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(num, width, generator=generator, dtype=torch.float64) @ mixing + 0.3 * seed


def test_set_distance_equals_scipy() -> None:
    a, b = features(1, 40), features(2, 60)
    mean_a, mean_b = a.mean(0).numpy(), b.mean(0).numpy()
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = np.real(sqrtm(cov_a @ cov_b))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert set_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert set_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert set_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_set_distance_of_few_clips_stays_finite_where_the_covariance_is_singular() -> None:
    a, b = features(1, 3, 50), features(2, 3, 50)
    gap = float((a.mean(0) - b.mean(0)).square().sum())
    assert math.isfinite(set_distance(a, b)) and set_distance(a, b) >= gap
    assert set_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_gaussians_with_common_axes_have_a_closed_form() -> None:
    """Sets with exactly these means and covariances: |m|^2 + sum (sqrt(s) - sqrt(t))^2, here in turned axes."""
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    s, t, mean = np.array([1.0, 4, 9, 0.25, 0]), np.array([4.0, 1, 9, 0, 2]), np.arange(5.0)

    def drawn(variances: np.ndarray, mean: np.ndarray, num: int) -> torch.Tensor:
        values = generator.normal(size=(num, 5))
        axes = np.linalg.qr(values - values.mean(0))[0]  # orthonormal, each with mean 0
        return torch.from_numpy(math.sqrt(num - 1) * axes * np.sqrt(variances) @ turn.T + mean)

    value = set_distance(drawn(s, mean, 9), drawn(t, 0 * mean, 14))
    assert value == pytest.approx((mean**2).sum() + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum(), rel=1e-9)


def test_single_clip_formula_of_consistent4d() -> None:
    """The numbers are what the benchmark's script printed under numpy 1.26.4 for these logits (see below)."""
    a = torch.linspace(-3, 5, 400, dtype=torch.float64).sin() * 4
    b = torch.linspace(0, 9, 400, dtype=torch.float64).cos() * 2 + 0.5
    # np.cov of a (1, 400) array was there the scalar that np.cov of the vector is in every version
    variance_a, variance_b = float(np.cov(a.numpy())), float(np.cov(b.numpy()))
    expected = float((a - b).square().sum()) + variance_a + variance_b - 2 * math.sqrt(variance_a * variance_b)
    assert consistent4d_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert consistent4d_distance(a, b) == pytest.approx(NUMPY_126, rel=1e-9)
    assert mean_distance(a[None], b[None]) == pytest.approx(float((a - b).square().sum()))
    assert consistent4d_distance(a, a) == 0


NUMPY_126 = 3659.1919950629467  # its steps under numpy 1.26.4


def test_a_set_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 clips a side, got 1 and 3"):
        set_distance(features(1, 1), features(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        set_distance(features(1, 3) * math.nan, features(2, 3))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        set_distance(features(1, 3)[0], features(2, 3))
