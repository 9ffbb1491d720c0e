"""Volume rendering by nerfacc: float32 on a GPU, same arguments and results.

Weights and sums are the same operation. Marching differs by rounding and at the ends of a ray: nerfacc accumulates
steps (a drift of 1e-5), and looks up the cell of a first or last interval before clipping it to the bounds.
"""

import math

import nerfacc
import torch
from torch import Tensor

from fourdiffusion.ops.geometry import bounds_interval
from fourdiffusion.ops.volume_rendering import torch_backend


def trial() -> float:
    """Render a ray through the ball, with gradients, on the GPU; return the largest difference from torch on a CPU."""
    results = []
    for march_rays, weigh, add_up, device in (
        (torch_backend.march, torch_backend.render_weights, torch_backend.accumulate, "cpu"),
        (march, render_weights, accumulate, "cuda"),
    ):
        origins, directions = torch.tensor([[[1.5, 0.0, 0.0]], [[-1.0, 0.0, 0.0]]], device=device)
        ray_index, t_start, t_end = march_rays(origins, directions, 0.5, 1.0, None, None, "ball")
        sigma = torch.ones_like(t_start).requires_grad_()
        opacity = add_up(weigh(sigma, t_start, t_end, ray_index, 1)[0], None, ray_index, 1)
        opacity.sum().backward()
        assert sigma.grad is not None
        results.append([float(len(t_start)), float(t_end.max()), float(opacity), float(sigma.grad.sum())])
    return max(abs(a - b) for a, b in zip(*results, strict=True))


def march(
    origins: Tensor, directions: Tensor, step: float, radius: float, jitter: Tensor | None, occupied: Tensor | None,
    bounds: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Cut rays into samples, for at least one ray: see ``volume_rendering.march``."""
    near, far = bounds_interval(origins, directions, radius, bounds)
    first = near if jitter is None else near - jitter * step
    # Intervals with their midpoint before the far plane are kept: half a step more keeps the clipped last interval.
    last = torch.where(far > near, far + step / 2, first)
    if occupied is None:
        occupied = torch.ones(1, 1, 1, dtype=torch.bool, device=origins.device)
    # Intervals exceed the bounds by up to a step, so the grid is extended beyond the cube with its border cells.
    size = occupied.shape[0]
    width = 2 * radius / size
    border = math.ceil(step / width)
    index = torch.arange(-border, size + border, device=origins.device).clamp(0, size - 1)
    grid = occupied[index][:, index][:, :, index]
    half = radius + border * width
    box = torch.tensor([[-half] * 3 + [half] * 3], device=origins.device)
    intervals, samples, _ = nerfacc.traverse_grids(
        origins, directions, grid[None], box, near_planes=first, far_planes=last, step_size=step, cone_angle=0.0
    )
    ray_index = samples.ray_indices
    t_start = torch.maximum(intervals.vals[intervals.is_left], near[ray_index])
    t_end = torch.minimum(intervals.vals[intervals.is_right], far[ray_index])
    keep = t_end > t_start
    return ray_index[keep], t_start[keep], t_end[keep]


def render_weights(
    sigma: Tensor, t_start: Tensor, t_end: Tensor, ray_index: Tensor, num_rays: int
) -> tuple[Tensor, Tensor]:
    """Compute weights and transmittance: see ``volume_rendering.render_weights``."""
    weights, transmittance, _ = nerfacc.render_weight_from_density(
        t_start, t_end, sigma, ray_indices=ray_index, n_rays=num_rays
    )
    return weights, transmittance


def accumulate(weights: Tensor, values: Tensor | None, ray_index: Tensor, num_rays: int) -> Tensor:
    """Sum weights * values over each ray, also on a CPU: see ``volume_rendering.accumulate``."""
    sums = nerfacc.accumulate_along_rays(weights, values, ray_indices=ray_index, n_rays=num_rays)
    return sums.squeeze(1) if values is None else sums
