"""Losses and regularizers of a scene, and the ramps of their weights. Losses return scalars.

Letters: R rays, N samples on them.
"""

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from fourdiffusion.metrics.image import ssim

WINDOW = 11  # window of D-SSIM, pixels


def facing_away(weights: Tensor, normals: Tensor, directions: Tensor, ray_index: Tensor, num_rays: int) -> Tensor:
    """Return for each ray sum_n w_n max(0, n_n . d)^2, the integrand of ``orientation``: [R].

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
        facing_away: [R], from ``facing_away``. opacity: [R]; the mean is over the rays with opacity above 0.
    """
    return facing_away.sum() / (opacity > 0).sum().clamp(min=1)


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Return the mean binary entropy in nats of opacity [R], clamped to [1e-3, 1 - 1e-3]."""
    p = opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def sparsity(opacity: Tensor) -> Tensor:
    """Return the mean of sqrt(opacity^2 + 0.01) over opacity [R] (threestudio's form of a smooth L1)."""
    return (opacity.square() + 0.01).sqrt().mean()


def error_over_backgrounds(emitted: Tensor, opacity: Tensor, rgba: Tensor) -> Tensor:
    """Return the squared error of pixels, averaged over all background colors.

    Over a background b they differ by e + m b with e = emitted - alpha * color and m = alpha - opacity. With b uniform
    in [0, 1] the mean of its square is e^2 + e m + m^2 / 3: the expectation over a random background, without noise.

    Args:
        emitted: colors of pixels on black, [R, 3]. opacity: [R]. rgba: of the truth, straight alpha, [R, 4].
    """
    alpha = rgba[:, 3:]
    error, uncovered = emitted - alpha * rgba[:, :3], alpha - opacity[:, None]
    return (error.square() + error * uncovered + uncovered.square() / 3).mean()


def distortion(weights: Tensor, distances: Tensor, lengths: Tensor, ray_index: Tensor, num_rays: int) -> Tensor:
    """Return the spread of each ray's weights, mip-NeRF 360 (Barron et al. 2022), eq. 15: [R], in scene units.

    sum_ij w_i w_j |s_i - s_j| + 1/3 sum_i w_i^2 l_i. The sum over pairs is one over sorted samples: sum_i 2 w_i (s_i
    W_i - S_i), with W_i and S_i the sums of w and w s before i.

    Args:
        weights, distances, lengths: of the samples, near to far within a ray, [N]. ray_index: sorted, [N].
    """
    counts = torch.bincount(ray_index, minlength=num_rays)
    first = (counts.cumsum(0) - counts)[ray_index]  # index of the ray's first sample

    def before(values: Tensor) -> Tensor:
        sums = values.double().cumsum(0) - values
        return (sums - sums[first]).to(values.dtype)

    spread = 2 * weights * (distances * before(weights) - before(weights * distances))
    spread = spread + weights.square() * lengths / 3
    return torch.zeros(num_rays, dtype=weights.dtype, device=weights.device).index_add(0, ray_index, spread)


def dssim(image: Tensor, target: Tensor, border: str = "inside") -> Tensor:
    """Return the mean of 1 - SSIM (window 11, sigma 1.5) of images [N, 3, H, W] in [0, 1]; H and W at least 11.

    ``border``: "inside", over windows inside the images; "zeros", over windows around every pixel, with zero padding,
    as in the released code.
    """
    pad = (WINDOW // 2,) * 4 if border == "zeros" else (0,) * 4
    image, target = (functional.pad(value, pad) for value in (image.clamp(0, 1), target))
    return 1 - ssim(image, target, window=WINDOW, sigma=1.5).mean()


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
    """Return the loss ``value`` as a tensor with the given ``gradient`` with respect to ``images``, of the same shape.

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
