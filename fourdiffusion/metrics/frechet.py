"""Frechet video distance in three formulas that must not be mixed. Each has its own name.

* ``set``: the Frechet distance of two Gaussians fitted to the features of two SETS of clips (Unterthiner et al. 2018).
* ``consistent4d``: what that benchmark's script computes for ONE predicted and ONE true clip. Its ``np.cov`` of a
  (1, 400) array gave, before numpy 2.2, the variance over the 400 logits; the Frechet distance becomes
  |a - b|^2 + (std(a) - std(b))^2 with the sample standard deviation (divided by 399). From numpy 2.2 on that script
  returns NaN; the closed form here does not depend on numpy's version.
* ``mean_only``: |mean(a) - mean(b)|^2, what V2M4's script computes for a single clip.

Letters: N clips, D features of a clip.
"""

import numpy as np
from torch import Tensor

FORMULAS = ("set", "consistent4d", "mean_only")


def gaussian_frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two Gaussians; means [D], covariances [D, D].

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), which
    stays real for singular covariances.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0))
    difference = mean_a - mean_b
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum())


def set_distance(prediction: Tensor, truth: Tensor) -> float:
    """Return the Frechet distance of two sets of features [N, D] and [M, D]; N and M at least 2.

    Where N is small the covariances have rank N - 1, and the value depends on N: compare equal N only.
    """
    a, b = _features(prediction), _features(truth)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"the formula set needs at least 2 clips a side, got {len(a)} and {len(b)}: name another one")
    return gaussian_frechet(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


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
