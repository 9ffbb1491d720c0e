"""Frechet video distance in three formulas that are not comparable. Each has its own name.

* ``set``: the Frechet distance of two Gaussians fitted to the features of two SETS of clips (Unterthiner et al. 2018).
* ``consistent4d``: the formula of that benchmark's script for ONE predicted and ONE true clip. Its ``np.cov`` of a
  (1, 400) array gave, before numpy 2.2, the variance over the 400 logits; the Frechet distance becomes
  |a - b|^2 + (std(a) - std(b))^2 with the sample standard deviation (divided by 399). From numpy 2.2 on that script
  returns NaN; the closed form here does not depend on numpy's version.
* ``mean_only``: |mean(a) - mean(b)|^2, the formula of V2M4's script for a single clip.

Letters: N clips, D features of a clip.
"""

import numpy as np
from torch import Tensor

FORMULAS = ("set", "consistent4d", "mean_only")


def set_distance(prediction: Tensor, truth: Tensor) -> float:
    """Return the Frechet distance of two sets of features [N, D] and [M, D]; N and M at least 2.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). With C_a = A'A and C_b = B'B, A and B the centered features over
    the roots of N - 1 and M - 1, the trace of the root is the sum of the singular values of AB': no matrix square
    root, and exact for N below D, where the covariances are singular and the value depends on N: compare equal N only.
    """
    a, b = _features(prediction), _features(truth)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"the formula set needs at least 2 clips a side, got {len(a)} and {len(b)}: name another one")
    mean_a, mean_b = a.mean(0), b.mean(0)
    centered_a, centered_b = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    root = np.linalg.svd(centered_a @ centered_b.T, compute_uv=False).sum()
    gap = mean_a - mean_b
    return float(gap @ gap + (centered_a**2).sum() + (centered_b**2).sum() - 2 * root)


def consistent4d_distance(prediction: Tensor, truth: Tensor) -> float:
    """Return |a - b|^2 + (std(a) - std(b))^2 of ONE pair of features [D]; std over the D entries, divided by D - 1."""
    a, b = _features(prediction[None])[0], _features(truth[None])[0]
    return float(((a - b) ** 2).sum() + (a.std(ddof=1) - b.std(ddof=1)) ** 2)


def mean_distance(prediction: Tensor, truth: Tensor) -> float:
    """Return |mean(a) - mean(b)|^2 of two sets of features [N, D] and [M, D]; one clip a side is enough."""
    a, b = _features(prediction), _features(truth)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum())


def _features(values: Tensor) -> np.ndarray:
    """Return float64 [N, D]; ValueError for another shape or values that are not finite."""
    array = values.detach().cpu().double().numpy()
    if array.ndim != 2 or array.shape[1] < 2 or len(array) < 1:
        raise ValueError(f"features must be [N, D], got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError("features hold values that are not finite: the clips behind them are damaged")
    return array
