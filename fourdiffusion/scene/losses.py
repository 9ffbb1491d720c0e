"""Regularisers and photometric losses of a scene, and the ramps of their weights. All return one number."""

from torch import Tensor

from fourdiffusion.metrics.image import ssim


def orientation(weights: Tensor, normals: Tensor, directions: Tensor, opacity: Tensor) -> Tensor:
    """Punishes visible normals that face away from the camera (Ref-NeRF, Verbin et al. 2022, eq. 11).

    sum_n w_n max(0, n_n . d_n)^2 over the number of rays that hit anything; the weights get no gradient.

    Args:
        weights: [N]. normals: [N, 3]. directions: [N, 3], of the samples' rays, unit. opacity: [R].
    """
    facing_away = (normals * directions).sum(-1).clamp(min=0).square()
    return (weights.detach() * facing_away).sum() / (opacity > 0).sum().clamp(min=1)


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean binary entropy in nats of opacity [R], kept off 0 and 1 by 1e-3: pixels become full or empty."""
    p = opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of sqrt(opacity^2 + 0.01) over opacity [R]: less matter (threestudio's form of a smooth L1)."""
    return (opacity.square() + 0.01).sqrt().mean()


def dssim(image: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM, window 11, sigma 1.5, mean over the pictures: [N, 3, H, W] in [0, 1], at least 11 pixels a side."""
    return 1 - ssim(image.clamp(0, 1), target, window=11, sigma=1.5).mean()


def ramp(step: int, start_value: float, end_value: float, num_steps: int, first_step: int = 0) -> float:
    """Linear from start_value at first_step to end_value num_steps later, constant before and after.

    With num_steps 0 it jumps: start_value before first_step, end_value from there on.
    """
    if num_steps <= 0:
        return start_value if step < first_step else end_value
    share = min(max((step - first_step) / num_steps, 0.0), 1.0)
    return start_value + share * (end_value - start_value)
