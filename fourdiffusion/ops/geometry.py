"""Intersections of rays with simple bodies."""

from torch import Tensor


def ball_interval(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Where unit rays [R, 3] enter and leave the ball |x| <= radius: near [R] >= 0 and far [R]; far <= near: a miss."""
    middle = -(origins * directions).sum(-1)
    closest = origins.square().sum(-1) - middle.square()
    half = (radius**2 - closest).clamp(min=0).sqrt()
    return (middle - half).clamp(min=0), middle + half
