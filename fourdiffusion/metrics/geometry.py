"""Metrics of silhouette, depth and cross-view consistency with the truth. Letters: V views, F frames, H W pixels."""

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from fourdiffusion.cameras import rays
from fourdiffusion.metrics.image import check_pair

OCCLUSION = 0.02  # share of the distance by which a visible point may lie behind a view's surface


def alpha_iou(prediction: Tensor, truth: Tensor, threshold: float = 0.5) -> Tensor:
    """Return intersection over union of two silhouettes [..., H, W] in [0, 1] -> [...]; two empty ones give 1."""
    _check(prediction, truth)
    for name, alpha in (("prediction", prediction), ("truth", truth)):
        low, high = float(alpha.min()), float(alpha.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} is in [{low:.4g}, {high:.4g}]: alpha must be in [0, 1]")
    a, b = prediction > threshold, truth > threshold
    union = (a | b).flatten(-2).sum(-1)
    shared = (a & b).flatten(-2).sum(-1)
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0)


def depth_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the mean absolute difference of two depth maps where both have a surface; NaN if there is none.

    Depths [..., H, W] are distances along the pixel's unit ray in scene units, inf or 0 where there is no surface.
    No scale is fitted: a scene of another size has an error. [..., H, W] -> [...]
    """
    _check(prediction, truth)
    both = prediction.isfinite() & truth.isfinite() & (prediction > 0) & (truth > 0)
    error = torch.where(both, (prediction - truth).abs(), 0.0).flatten(-2).sum(-1)
    return error / both.flatten(-2).sum(-1)


def cross_view_error(pictures: Tensor, depth: Tensor, c2w: Tensor, fovy_deg: float) -> Tensor:
    """Return the color disagreement of simultaneous views on the true surface, [V]; NaN without common points.

    Every pixel with a surface is reprojected with the TRUE depth to every other view that sees the same point, where
    the color is sampled bilinearly: the mean absolute difference over channels, such pixels, frames and other views.
    Views of one textured object agree up to shading and resampling; independent videos do not.

    Args:
        pictures: [V, F, 3, H, W] in [0, 1], at least 2 views.
        depth: [V, F, H, W] of the truth, distance along the pixel's unit ray, inf where there is no surface.
        c2w: [V, 4, 4], OpenGL axes.
        fovy_deg: vertical field of view of all views.
    """
    check_pair(pictures, pictures)
    views, frames, _, height, width = pictures.shape
    if views < 2 or depth.shape != (views, frames, height, width) or c2w.shape != (views, 4, 4):
        raise ValueError(
            f"depth {list(depth.shape)} and cameras {list(c2w.shape)} do not fit pictures {list(pictures.shape)}: "
            "give [V, F, H, W] and [V, 4, 4] of at least 2 views"
        )
    origins, directions = rays(c2w, fovy_deg, height, width)
    surface = depth.isfinite() & (depth > 0)
    total, count = torch.zeros(views, dtype=torch.float64), torch.zeros(views, dtype=torch.float64)
    for a in range(views):
        points = origins[a] + directions[a] * depth[a].where(surface[a], torch.ones(()))[..., None]  # [F, H, W, 3]
        for b in range(views):
            if a == b:
                continue
            grid, distance = _project(points, c2w[b], fovy_deg, height, width)
            seen = _nearest(depth[b], grid)
            shared = surface[a] & (grid.abs() < 1).all(-1) & ((seen - distance).abs() < OCCLUSION * distance)
            there = grid_sample(pictures[b], grid, mode="bilinear", align_corners=False)
            difference = (there - pictures[a]).abs().mean(dim=1).double()
            total[a] += (difference * shared).sum()
            count[a] += shared.sum()
    return total / count


def _project(points: Tensor, c2w: Tensor, fovy_deg: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Project world points [..., 3] to ``grid_sample`` positions in [-1, 1] [..., 2] and distances to the camera."""
    offset = points - c2w[:3, 3]
    local = offset @ c2w[:3, :3]
    half = math.tan(math.radians(fovy_deg) / 2)
    depth = (-local[..., 2]).clamp(min=1e-6)
    place = torch.stack([local[..., 0] / (half * width / height), -local[..., 1] / half], dim=-1) / depth[..., None]
    behind = (local[..., 2] >= 0)[..., None]
    return torch.where(behind, torch.full_like(place, 2.0), place), offset.norm(dim=-1)


def _nearest(depth: Tensor, grid: Tensor) -> Tensor:
    """Sample [F, H, W] at [F, H, W, 2] by nearest neighbor, without mixing foreground and background."""
    return grid_sample(depth[:, None], grid, mode="nearest", padding_mode="border", align_corners=False)[:, 0]


def _check(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape or prediction.ndim < 2:
        raise ValueError(f"prediction {list(prediction.shape)} and truth {list(truth.shape)} must have one [..., H, W]")
