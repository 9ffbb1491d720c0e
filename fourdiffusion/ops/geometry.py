"""Intersections of rays with balls and boxes."""

import torch
from torch import Tensor


def ball_interval(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Intersect unit rays [R, 3] with the ball |x| <= radius: near [R] >= 0 and far [R]; far <= near: a miss."""
    middle = -(origins * directions).sum(-1)
    closest = origins.square().sum(-1) - middle.square()
    half = (radius**2 - closest).clamp(min=0).sqrt()
    return (middle - half).clamp(min=0), middle + half


def box_interval(origins: Tensor, directions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays [R, 3] with the box from corner low [3] to high [3], as ``ball_interval``."""
    inverse = 1 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    a, b = (low - origins) * inverse, (high - origins) * inverse
    return torch.minimum(a, b).amax(-1).clamp(min=0), torch.maximum(a, b).amin(-1)


def bounds_interval(origins: Tensor, directions: Tensor, radius: float, bounds: str) -> tuple[Tensor, Tensor]:
    """Intersect unit rays with the "ball" |x| <= radius or the "cube" [-radius, radius]^3."""
    if bounds == "ball":
        return ball_interval(origins, directions, radius)
    if bounds != "cube":
        raise ValueError(f"bounds={bounds!r} is unknown: choose ball or cube")
    corner = torch.full((3,), radius, dtype=origins.dtype, device=origins.device)
    return box_interval(origins, directions, -corner, corner)
