"""Limits and directions of the scene's losses."""

import math

import pytest
import torch

from fourdiffusion.scene import losses


def test_orientation_counts_only_visible_normals_that_face_away() -> None:
    directions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.6, -0.8], [0.0, 0.0, -1.0]], requires_grad=True)
    weights = torch.tensor([0.5, 0.4, 0.25, 0.0], requires_grad=True)
    away = losses.facing_away(weights, normals, directions, torch.tensor([0, 0, 1, 1]), 3)
    assert away.tolist() == pytest.approx([0.5, 0.25 * 0.64, 0.0])
    loss = losses.orientation(away[:2], torch.tensor([0.9, 0.0]))
    assert loss.item() == pytest.approx(0.66)  # over the one ray that hits
    loss.backward()
    assert weights.grad is None and normals.grad is not None


def test_a_given_gradient_is_the_terms_gradient() -> None:
    leaf = torch.rand(2, 3, requires_grad=True)
    gradient = torch.randn(2, 3)
    term = losses.with_gradient(leaf, torch.tensor(7.0), gradient)
    assert term.item() == 7
    (2 * term + leaf.sum()).backward()
    torch.testing.assert_close(leaf.grad, 2 * gradient + 1)
    with pytest.raises(ValueError, match="gradient is"):
        losses.with_gradient(leaf, torch.tensor(7.0), gradient[:1])


def test_opacity_entropy_is_largest_in_the_middle() -> None:
    assert losses.opacity_entropy(torch.full((4,), 0.5)).item() == pytest.approx(math.log(2))
    assert losses.opacity_entropy(torch.tensor([0.0, 1.0])).item() < 0.01
    opacity = torch.tensor([0.0, 1.0, 0.3, 0.7], requires_grad=True)
    losses.opacity_entropy(opacity).backward()
    assert opacity.grad is not None and opacity.grad[2] > 0 > opacity.grad[3] and opacity.grad.isfinite().all()


def test_sparsity() -> None:
    assert losses.sparsity(torch.zeros(3)).item() == pytest.approx(0.1)
    assert losses.sparsity(torch.ones(3)).item() == pytest.approx(math.sqrt(1.01))


def test_dssim() -> None:
    images = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    noisy = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    assert losses.dssim(images, images).item() == pytest.approx(0, abs=1e-6)
    loss = losses.dssim(noisy, images)
    assert 0 < loss.item() < 1
    loss.backward()
    assert noisy.grad is not None
    assert losses.dssim((noisy - 0.01 * noisy.grad.sign()).detach(), images) < loss


def test_dssim_with_zeros_beyond_the_border_counts_the_border() -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[..., :2] = 0.5  # weighs little in windows that lie inside
    assert losses.dssim(image, other, "zeros") > 1.5 * losses.dssim(image, other)
    one, two = (torch.nn.functional.pad(value, (5, 5, 5, 5)) for value in (image, other))
    torch.testing.assert_close(losses.dssim(image, other, "zeros"), losses.dssim(one, two))


def test_error_over_backgrounds_is_the_mean_over_backgrounds() -> None:
    generator = torch.Generator().manual_seed(0)
    rgba, emitted, opacity = (torch.rand(shape, generator=generator) for shape in ((5, 4), (5, 3), (5,)))
    grays = (torch.arange(1000) + 0.5) / 1000
    shown = emitted + (1 - opacity[:, None]) * grays[:, None, None]  # [1000, 5, 3]
    true = rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:]) * grays[:, None, None]
    expected = (shown - true).square().mean()
    torch.testing.assert_close(losses.error_over_backgrounds(emitted, opacity, rgba), expected, rtol=1e-4, atol=0)
    # White fog where the truth is empty cannot be told on white; here it counts.
    fog = losses.error_over_backgrounds(torch.full((1, 3), 0.6), torch.full((1,), 0.6), torch.zeros(1, 4))
    assert fog.item() == pytest.approx(0.36 / 3)


def test_distortion_is_the_sum_over_pairs_of_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    ray_index = torch.tensor([0, 0, 0, 2, 2, 3])  # ray 1 has none
    weights = torch.rand(6, generator=generator, requires_grad=True)
    distances = torch.tensor([0.1, 0.5, 0.7, 0.2, 0.9, 0.4])
    lengths = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1, 0.2])
    found = losses.distortion(weights, distances, lengths, ray_index, 4)
    expected = torch.zeros(4)
    for i in range(6):
        expected[ray_index[i]] += float(weights[i].detach() ** 2 * lengths[i] / 3)
        for j in range(6):
            if ray_index[i] == ray_index[j]:
                expected[ray_index[i]] += float(
                    (weights[i] * weights[j]).detach() * (distances[i] - distances[j]).abs()
                )
    torch.testing.assert_close(found.detach(), expected)
    found[0].backward()
    assert weights.grad is not None and weights.grad[:3].min() > 0 and not weights.grad[3:].any()


def test_ramp() -> None:
    assert [losses.ramp(step, 10, 1000, 5000) for step in (-1, 0, 2500, 5000, 9999)] == [10, 10, 505, 1000, 1000]
    assert [losses.ramp(step, 0, 100, 0, 10_000) for step in (9999, 10_000, 10_001)] == [0, 100, 100]
    assert losses.ramp(15, 0.98, 0.02, 10, first_step=10) == pytest.approx(0.5)
