"""Intervals cover the truth as often as they claim; differences are paired."""

import numpy as np
import pytest

from fourdiffusion.metrics.statistics import bootstrap_interval, paired_difference


@pytest.mark.parametrize("num_objects", [7, 20])
def test_bootstrap_coverage_on_simulated_objects(num_objects: int) -> None:
    generator, hits, runs = np.random.default_rng(0), 0, 400
    for run in range(runs):
        values = generator.normal(2.0, 3.0, num_objects)
        interval = bootstrap_interval(values.tolist(), level=0.9, num_resamples=400, seed=run)
        assert interval is not None
        hits += interval[0] <= 2.0 <= interval[1]
    assert 0.85 <= hits / runs <= 0.96  # 400 draws of a rate of 0.9 scatter by 0.015


def test_interval_holds_the_mean_shrinks_and_is_repeatable() -> None:
    few, many = np.random.default_rng(1).normal(size=8), np.random.default_rng(1).normal(size=200)
    low, high = bootstrap_interval(few.tolist()) or (0, 0)
    assert low < few.mean() < high
    narrow = bootstrap_interval(many.tolist()) or (0, 0)
    assert narrow[1] - narrow[0] < 0.4 * (high - low)
    assert bootstrap_interval(few.tolist()) == (low, high) != bootstrap_interval(few.tolist(), seed=1)
    assert bootstrap_interval([1.0]) is None and bootstrap_interval([2.0, 2.0]) == (2.0, 2.0)


def test_paired_difference_cancels_what_objects_share() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 10, 30)
    a, b = hard + 1 + generator.normal(0, 0.1, 30), hard
    difference = paired_difference(a.tolist(), b.tolist())
    assert difference.mean == pytest.approx(1, abs=0.1) and difference.standard_error < 0.05
    assert difference.standard_error == pytest.approx(np.std(a - b, ddof=1) / np.sqrt(30))
    assert paired_difference([3.0], [1.0]).num_objects == 1
    with pytest.raises(ValueError, match="same objects"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        paired_difference([float("nan")], [1.0])
