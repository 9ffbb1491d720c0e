"""Measures against closed forms, a reference implementation and their own limits."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity

from fourdiffusion.metrics.image import extent, gmsd, psnr, ssim


def pictures(seed: int = 0, shape: tuple[int, ...] = (2, 3, 3, 40, 36)) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [0.1, 0.5, 1.0])
def test_psnr_of_a_constant_offset(offset: float) -> None:
    truth = torch.zeros(2, 3, 8, 8)
    torch.testing.assert_close(psnr(truth + offset, truth), torch.full((2,), -20 * math.log10(offset)))


def test_psnr_is_per_picture_and_finite_for_equal_pictures() -> None:
    truth = pictures()
    prediction = truth.clone()
    prediction[1, 2] = 1 - truth[1, 2]
    values = psnr(prediction, truth)
    assert values.shape == (2, 3)
    assert (values == 100).sum() == 5 and values[1, 2] < 20


def test_ssim_equals_the_reference_implementation() -> None:
    truth = pictures(0)
    prediction = (0.7 * truth + 0.3 * pictures(1)).clamp(0, 1)
    values = ssim(prediction, truth)
    for v in range(2):
        for f in range(3):
            reference = structural_similarity(
                prediction[v, f].double().numpy(), truth[v, f].double().numpy(), channel_axis=0, data_range=1.0,
                gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            )  # fmt: skip
            assert values[v, f].item() == pytest.approx(reference, abs=1e-6)


def test_ssim_of_flat_pictures_is_its_luminance_term() -> None:
    x, y, c1 = 0.3, 0.8, 0.01**2
    value = ssim(torch.full((3, 16, 16), x), torch.full((3, 16, 16), y))
    assert value.item() == pytest.approx((2 * x * y + c1) / (x * x + y * y + c1), abs=1e-6)


def test_gmsd_against_a_loop() -> None:
    """The definition, pixel by pixel."""
    truth = pictures(2, (3, 12, 10))
    prediction = pictures(3, (3, 12, 10))

    def magnitude(image: torch.Tensor) -> list[list[float]]:
        grey = (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]).tolist()
        rows, columns = 6, 5
        small = [
            [sum(grey[2 * y + j][2 * x + i] for j in (0, 1) for i in (0, 1)) / 4 for x in range(columns)]
            for y in range(rows)
        ]

        def at(y: int, x: int) -> float:
            return small[y][x] if 0 <= y < rows and 0 <= x < columns else 0.0

        def gradient(y: int, x: int) -> float:
            gx = sum(at(y + j, x + 1) - at(y + j, x - 1) for j in (-1, 0, 1)) / 3
            gy = sum(at(y + 1, x + j) - at(y - 1, x + j) for j in (-1, 0, 1)) / 3
            return math.hypot(gx, gy)

        return [[gradient(y, x) for x in range(columns)] for y in range(rows)]

    c = 170 / 255**2
    flat1, flat2 = (sum(magnitude(image), []) for image in (prediction, truth))
    similarity = [(2 * a * b + c) / (a * a + b * b + c) for a, b in zip(flat1, flat2, strict=True)]
    mean = sum(similarity) / len(similarity)
    expected = math.sqrt(sum((value - mean) ** 2 for value in similarity) / len(similarity))
    assert gmsd(prediction, truth).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("measure, best", [(psnr, 100.0), (ssim, 1.0), (gmsd, 0.0)])
def test_best_value_symmetry_and_order(measure, best: float) -> None:
    truth, noise = pictures(0, (3, 32, 32)), pictures(1, (3, 32, 32))
    assert measure(truth, truth).item() == pytest.approx(best, abs=1e-6)
    little, much = ((1 - w) * truth + w * noise for w in (0.1, 0.6))
    assert measure(little, truth).item() == pytest.approx(measure(truth, little).item(), abs=1e-5)
    assert abs(measure(little, truth).item() - best) < abs(measure(much, truth).item() - best)


@pytest.mark.parametrize("measure", [psnr, ssim, gmsd])
def test_refuses_other_ranges_and_shapes(measure) -> None:
    truth = pictures(0, (3, 16, 16))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        measure(truth * 255, truth)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        measure(truth, truth * math.nan)
    with pytest.raises(ValueError, match="one shape"):
        measure(truth[:, :8], truth)


def test_ssim_names_a_window_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="window of 11"):
        ssim(torch.zeros(3, 10, 20), torch.zeros(3, 10, 20))


def test_another_data_range_is_that_of_pictures_scaled_to_it() -> None:
    truth, prediction = pictures(0) * 0.5 + 0.2, pictures(1) * 0.5 + 0.2
    scaled = ((truth - 0.2) * 2).clamp(0, 1), ((prediction - 0.2) * 2).clamp(0, 1)
    torch.testing.assert_close(psnr(prediction, truth, 0.5), psnr(scaled[1], scaled[0]))
    assert extent(truth).shape == (2, 3) and float(extent(truth).max()) <= 0.5
    value = ssim(prediction, truth, data_range=extent(truth))
    reference = structural_similarity(
        prediction[1, 2].double().numpy(), truth[1, 2].double().numpy(), channel_axis=0,
        data_range=float(extent(truth)[1, 2]), gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert value[1, 2].item() == pytest.approx(reference, abs=1e-6)
