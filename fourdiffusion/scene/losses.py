"""Losses and regularizers of a scene, and the ramps of their weights. The losses return one number each.

Letters: R rays, N samples on them.
"""

from typing import Any

import torch
from torch import Tensor

from fourdiffusion.metrics.image import ssim


def facing_away(weights: Tensor, normals: Tensor, directions: Tensor, ray_index: Tensor, num_rays: int) -> Tensor:
    """Return for each ray sum_n w_n max(0, n_n . d)^2, what ``orientation`` averages: [R].

    The weights get no gradient.

    Args:
        weights: [N]. normals: [N, 3], unit. directions: [R, 3], of the rays, unit. ray_index: [N].
    """
    cosine = (normals * directions[ray_index]).sum(-1).clamp(min=0)
    sums = torch.zeros(num_rays, dtype=weights.dtype, device=weights.device)
    return sums.index_add(0, ray_index, weights.detach() * cosine.square())


def orientation(facing_away: Tensor, opacity: Tensor) -> Tensor:
    """Penalize visible normals that face away from the camera (Ref-NeRF, Verbin et al. 2022, eq. 11).

    Args:
        facing_away: [R], of the function of that name. opacity: [R]; the mean is over the rays where it is above 0.
    """
    return facing_away.sum() / (opacity > 0).sum().clamp(min=1)


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Return the mean binary entropy in nats of opacity [R], clamped to [1e-3, 1 - 1e-3]."""
    p = opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def sparsity(opacity: Tensor) -> Tensor:
    """Return the mean of sqrt(opacity^2 + 0.01) over opacity [R] (threestudio's form of a smooth L1)."""
    return (opacity.square() + 0.01).sqrt().mean()


def dssim(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean of 1 - SSIM (window 11, sigma 1.5) of images [N, 3, H, W] in [0, 1]; H and W at least 11."""
    return 1 - ssim(image.clamp(0, 1), target, window=11, sigma=1.5).mean()


class _GivenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0] * gradient, None, None


def with_gradient(images: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Return the loss ``value`` of images as a term whose gradient at ``images`` is ``gradient``, of the same shape.

    For losses that compute their own gradient, such as score distillation.
    """
    if gradient.shape != images.shape:
        raise ValueError(f"the gradient is {list(gradient.shape)}, the images are {list(images.shape)}")
    term: Tensor = _GivenGradient.apply(images, value, gradient)
    return term


def ramp(step: int, start_value: float, end_value: float, num_steps: int, first_step: int = 0) -> float:
    """Return a linear ramp from start_value at first_step to end_value num_steps later, constant before and after.

    With num_steps 0 it is a step function: start_value before first_step, end_value from there on.
    """
    if num_steps <= 0:
        return start_value if step < first_step else end_value
    share = min(max((step - first_step) / num_steps, 0.0), 1.0)
    return start_value + share * (end_value - start_value)
