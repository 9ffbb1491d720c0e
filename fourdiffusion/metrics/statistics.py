"""Confidence intervals of means over objects, and paired comparison of methods on the same objects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """Return a confidence interval for the mean of independent values, one per object; None for fewer than 2.

    Studentized bootstrap (Efron and Tibshirani 1993, section 12.5): objects are drawn with replacement, and each draw's
    mean is divided by its own standard error. Unlike the percentile interval it is not too short for few objects.
    """
    array = _finite(values)
    if len(array) < 2:
        return None
    mean, error = array.mean(), array.std(ddof=1) / math.sqrt(len(array))
    if error == 0:
        return float(mean), float(mean)
    generator = np.random.default_rng(seed)
    drawn = array[generator.integers(0, len(array), (num_resamples, len(array)))]
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(len(array))
    kept = errors > 0  # a draw of a single object has zero variance
    t = (drawn.mean(axis=1)[kept] - mean) / errors[kept]
    low, high = np.quantile(t, [(1 + level) / 2, (1 - level) / 2])
    return float(mean - low * error), float(mean - high * error)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over objects, its standard error (NaN for one object), and the number of objects."""

    mean: float
    standard_error: float
    num_objects: int


def paired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Return the difference of two methods on the same objects; ``a`` and ``b``: one value per object, same order."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: a paired difference needs the same objects")
    difference = _finite(a) - _finite(b)
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.nan
    return PairedDifference(float(difference.mean()), error, len(difference))


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"values must be a list of finite numbers, got {list(values)[:4]}")
    return array
