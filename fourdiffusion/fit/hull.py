"""The visual hull: the cells that the silhouettes leave room in. Letters: F frames, V views, G cells a side."""

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.fit.step import Target

OUTVOTED = 1  # so many generated views may err at a time


def hull(target: Target, resolution: int, radius: float) -> Tensor:
    """Return which cells of the cube [-radius, radius]^3 may hold matter at any time: bool [G, G, G].

    A cell may where the input's matte shows matter, and so do all generated views but ``OUTVOTED``, all at one time.
    What lies outside a picture may be matter.
    """
    edges = torch.linspace(-radius, radius, resolution + 1)
    points = torch.stack(torch.meshgrid(edges, edges, edges, indexing="ij"), -1).flatten(0, 2)  # the cells' corners
    possible = torch.zeros(resolution, resolution, resolution, dtype=torch.bool)
    matte, views = target.rgba[:, 3] > 0.1, ~target.empty
    for frame in range(len(target.times)):
        inside = _covers(matte[frame], target.input_c2w[0], points, 2 * radius / resolution)
        votes = sum(
            _covers(silhouettes[frame], c2w, points, 2 * radius / resolution).int()
            for silhouettes, c2w in zip(views, target.c2w, strict=True)
        )
        inside &= torch.as_tensor(votes >= len(views) - OUTVOTED)
        corners = inside.view(1, 1, *(resolution + 1,) * 3).float()
        possible |= functional.max_pool3d(corners, 2, stride=1)[0, 0] > 0
    return possible


def _covers(silhouette: Tensor, c2w: Tensor, points: Tensor, cell: float) -> Tensor:
    """Return which points [N, 3] a silhouette [S, S], grown by half a cell, or what is outside its picture, covers."""
    side, half = silhouette.shape[-1], math.tan(math.radians(cameras.FOVY_DEG / 2))
    reach = 1 + math.ceil(cell / 2 / (cameras.DISTANCE * half) * side / 2)
    grown = functional.max_pool2d(silhouette[None].float(), 2 * reach + 1, stride=1, padding=reach)[0] > 0
    local = (points - c2w[:3, 3]) @ c2w[:3, :3]
    depth = -local[:, 2]
    column = ((local[:, 0] / (depth * half) + 1) * side / 2).floor()
    row = ((1 - local[:, 1] / (depth * half)) * side / 2).floor()
    seen = (depth > 0) & (column >= 0) & (column < side) & (row >= 0) & (row < side)
    return ~seen | grown[row.clamp(0, side - 1).long(), column.clamp(0, side - 1).long()]
