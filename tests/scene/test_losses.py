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


def test_ramp() -> None:
    assert [losses.ramp(step, 10, 1000, 5000) for step in (-1, 0, 2500, 5000, 9999)] == [10, 10, 505, 1000, 1000]
    assert [losses.ramp(step, 0, 100, 0, 10_000) for step in (9999, 10_000, 10_001)] == [0, 100, 100]
    assert losses.ramp(15, 0.98, 0.02, 10, first_step=10) == pytest.approx(0.5)
