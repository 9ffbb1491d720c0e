"""Silhouette and depth against ground truth. Letters: H W pixels."""

import torch
from torch import Tensor


def alpha_iou(prediction: Tensor, truth: Tensor, threshold: float = 0.5) -> Tensor:
    """Return intersection over union of two silhouettes [..., H, W] in [0, 1] -> [...]; two empty ones give 1."""
    _check(prediction, truth)
    for name, alpha in (("prediction", prediction), ("truth", truth)):
        low, high = float(alpha.min()), float(alpha.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} lies in [{low:.4g}, {high:.4g}]: alpha must be in [0, 1]")
    a, b = prediction > threshold, truth > threshold
    union = (a | b).flatten(-2).sum(-1)
    shared = (a & b).flatten(-2).sum(-1)
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0)


def depth_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the mean absolute difference of two depth maps where both see a surface; NaN where none is shared.

    Depths [..., H, W] are distances along the pixel's unit ray in scene units, inf or 0 where there is no surface.
    No scale is fitted: a scene of another size is wrong. [..., H, W] -> [...]
    """
    _check(prediction, truth)
    both = prediction.isfinite() & truth.isfinite() & (prediction > 0) & (truth > 0)
    error = torch.where(both, (prediction - truth).abs(), 0.0).flatten(-2).sum(-1)
    return error / both.flatten(-2).sum(-1)


def _check(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape or prediction.ndim < 2:
        raise ValueError(f"prediction {list(prediction.shape)} and truth {list(truth.shape)} must have one [..., H, W]")
