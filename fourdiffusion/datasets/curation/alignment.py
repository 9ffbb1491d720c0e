"""Residual motion after the best similarity transform of each picture: the part that is not rigid.

Inverse compositional alignment (Baker and Matthews 2004, "Lucas-Kanade 20 years on", section 3.2) with the four
parameters of a similarity transform, from coarse to fine, all pictures of a view at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

ITERATIONS = {2: 8, 1: 4}  # by how many pixels are averaged along each side
DAMPING = 1e-3  # of the normal equations, relative to their trace
MAX_UPDATE = 0.3  # of a parameter in one iteration; the picture is 2 wide


def aligned_residuals(signed: Tensor) -> Tensor:
    """Return the difference of each frame to the first one of its view after alignment, [V, F], 0 for the first.

    signed [V, F, 4, h, w] as of scores.py. Frames that no transform improves keep their plain difference.
    """
    return torch.stack([_of_view(view[:1], view) for view in signed])


def _of_view(first: Tensor, frames: Tensor) -> Tensor:
    """first [1, 4, h, w], frames [F, 4, h, w] -> [F]."""
    transform = _from_moments(first[:, 3], frames[:, 3])
    for pool, iterations in ITERATIONS.items():
        transform = _refine(avg_pool2d(first, pool), avg_pool2d(frames, pool), transform, iterations)
    return torch.minimum(_difference(first, frames), _difference(first, warp(frames, transform)))


def warp(pictures: Tensor, transform: Tensor) -> Tensor:
    """Return pictures [N, C, h, w] sampled at ``transform`` [N, 2, 3] of the positions in [-1, 1]^2; 0 outside."""
    x, y = _places(*pictures.shape[-2:])
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)  # [h * w, 3]
    grid = (places @ transform.transpose(1, 2)).view(len(pictures), *x.shape, 2)
    return grid_sample(pictures, grid, align_corners=False, padding_mode="zeros")


def _places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return x and y [h, w] of the pixel centers in [-1, 1]^2."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height * 2 - 1, (torch.arange(width) + 0.5) / width * 2 - 1, indexing="ij"
    )
    return x, y


def _difference(first: Tensor, others: Tensor) -> Tensor:
    """Return the differences [N] of scores.py between [1, 4, h, w] and [N, 4, h, w]."""
    apart = (first - others).abs().sum(dim=(1, 2, 3))
    union = torch.maximum(first[:, 3].expand_as(others[:, 3]), others[:, 3]).sum(dim=(1, 2))
    return apart / union.clamp(min=1)


def _from_moments(first: Tensor, others: Tensor) -> Tensor:
    """Return translation and scale [N, 2, 3] that map center and area of silhouettes [N, h, w] to the first's."""
    x, y = _places(*first.shape[-2:])

    def moments(alpha: Tensor) -> tuple[Tensor, Tensor]:
        area = alpha.sum(dim=(1, 2)).clamp(min=1e-3)
        center = torch.stack([(alpha * x).sum(dim=(1, 2)), (alpha * y).sum(dim=(1, 2))], dim=-1) / area[:, None]
        return area, center

    area, center = moments(first)
    areas, centers = moments(others)
    scale = (areas / area).sqrt().clamp(0.3, 3)
    transform = torch.eye(2, 3).repeat(len(others), 1, 1) * scale[:, None, None]
    transform[:, :, 2] = centers - scale[:, None] * center
    return transform


def _refine(first: Tensor, frames: Tensor, transform: Tensor, iterations: int) -> Tensor:
    """Return the transforms [N, 2, 3] after ``iterations``; first [1, 4, h, w], frames [N, 4, h, w]."""
    height, width = first.shape[-2:]
    x, y = _places(height, width)
    slope_y, slope_x = torch.gradient(first[0], dim=(1, 2))
    slope_x, slope_y = slope_x * (width / 2), slope_y * (height / 2)
    # The template's change with (scale - 1, rotation, shift in x, shift in y).
    steepest = torch.stack([slope_x * x + slope_y * y, slope_y * x - slope_x * y, slope_x, slope_y], dim=-1).flatten(
        0, 2
    )
    normal = steepest.T @ steepest
    normal = normal + torch.eye(4) * (DAMPING * normal.trace() + 1e-9)
    last = torch.tensor([0.0, 0.0, 1.0]).expand(len(frames), 1, 3)
    for _ in range(iterations):
        error = (warp(frames, transform) - first).flatten(1)  # [N, P]
        update = torch.linalg.solve(normal, steepest.T @ error.T).T.clamp(-MAX_UPDATE, MAX_UPDATE)  # [N, 4]
        a, b, dx, dy = update.unbind(dim=-1)
        rows = torch.stack([torch.stack([1 + a, -b, dx], dim=-1), torch.stack([b, 1 + a, dy], dim=-1)], dim=1)
        whole = torch.cat([transform, last], dim=1) @ torch.linalg.inv(torch.cat([rows, last], dim=1))
        transform = whole[:, :2]
    return transform
