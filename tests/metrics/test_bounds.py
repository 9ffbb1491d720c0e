"""The valid ranges of the metrics: the bounds are accepted, one step further is an error."""

import math

import numpy as np
import pytest
import torch

from fourdiffusion.metrics.image import check_pair, extent, gmsd, psnr, ssim
from fourdiffusion.metrics.statistics import bootstrap_interval, paired_difference


def gray(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape or (3, 12, 12), value)


def test_rounding_beyond_the_range_passes_and_more_does_not() -> None:
    check_pair(gray(1 + 9e-5), gray(-9e-5))
    for value in (1 + 2e-4, -2e-4, math.inf, math.nan):
        for pair in ((gray(value), gray(0.5)), (gray(0.5), gray(value))):
            with pytest.raises(ValueError, match="must be finite and in"):
                check_pair(*pair)


def test_pictures_have_at_least_three_dimensions_and_one_shape() -> None:
    for pair in ((gray(0.5, 4, 4), gray(0.5, 4, 4)), (gray(0.5, 3, 4, 4), gray(0.5, 3, 4, 5))):
        with pytest.raises(ValueError, match="must have one shape"):
            check_pair(*pair)


def test_psnr_by_hand() -> None:
    assert psnr(gray(0.6), gray(0.5)).item() == pytest.approx(20, abs=1e-4)
    assert psnr(gray(0.6), gray(0.5), 0.5).item() == pytest.approx(20 + 20 * math.log10(0.5), abs=1e-4)
    assert psnr(gray(0.5), gray(0.5)).item() == 100
    nearly = gray(0.5).double() + 1e-6
    assert psnr(nearly, gray(0.5).double()).item() == 100  # 120 dB, cut at 100


def test_extent_is_of_each_picture() -> None:
    images = torch.stack([gray(0.25), gray(0.5)])
    images[0, 1, 3, 4], images[1, 2, 0, 0] = 0.75, 0.125
    assert extent(images).tolist() == [0.5, 0.375]


def test_a_window_as_large_as_the_picture_fits() -> None:
    assert ssim(gray(0.5, 3, 11, 11), gray(0.5, 3, 11, 11)).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="window of 11"):
        ssim(gray(0.5, 3, 20, 10), gray(0.5, 3, 20, 10))


def test_ssim_by_hand_of_one_window() -> None:
    """A window of one pixel has no variance; a window of the whole picture is the formula itself."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 3, 3, generator=generator, dtype=torch.float64)
    taps = torch.exp(-torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64) / (2 * 0.8**2))
    weight = torch.outer(taps, taps) / taps.sum() ** 2
    mx, my = (weight * x).sum(), (weight * y).sum()
    vx, vy = (weight * x * x).sum() - mx**2, (weight * y * y).sum() - my**2
    cov = (weight * x * y).sum() - mx * my
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    found = ssim(x.float(), y.float(), window=3, sigma=0.8, data_range=2.0)
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_gmsd_takes_three_channels() -> None:
    for channels in (1, 4):
        with pytest.raises(ValueError, match="needs RGB"):
            gmsd(gray(0.5, channels, 8, 8), gray(0.5, channels, 8, 8))


def test_the_interval_is_the_studentized_bootstrap() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    array = np.array(values)
    drawn = array[np.random.default_rng(3).integers(0, 4, (500, 4))]
    errors = drawn.std(1, ddof=1) / 2
    t = (drawn.mean(1)[errors > 0] - array.mean()) / errors[errors > 0]
    error = array.std(ddof=1) / 2
    high, low = np.quantile(t, [0.05, 0.95])
    expected = (array.mean() - low * error, array.mean() - high * error)
    assert bootstrap_interval(values, 0.9, 500, 3) == pytest.approx(expected)
    assert bootstrap_interval(values) == bootstrap_interval(values, 0.95, 2000, 0)


def test_two_values_are_enough_and_one_is_not() -> None:
    assert bootstrap_interval([1.0]) is None and bootstrap_interval([1.0, 3.0]) is not None
    assert math.isnan(paired_difference([1.0], [2.0]).standard_error)
    two = paired_difference([1.0, 4.0], [2.0, 2.0])
    assert (two.mean, two.standard_error, two.num_objects) == (0.5, pytest.approx(1.5), 2)
    for wrong in ([], [[1.0]], [1.0, math.inf]):
        with pytest.raises(ValueError, match="finite numbers"):
            bootstrap_interval(wrong)  # type: ignore[arg-type]
