"""volume_rendering by nerfacc: float32 on a GPU, the same arguments and results.

Weights and sums are the same operation. Marching is so but for rounding and for the ends of a ray: nerfacc finds the
lattice by adding up steps (1e-5 of drift), and looks up the cell of a first or last interval before the bounds clip it.
"""

import math

import nerfacc
import torch
from torch import Tensor

from fourdiffusion.ops.geometry import bounds_interval
from fourdiffusion.ops.volume_rendering import torch_backend


def trial() -> float:
    """A ray through the ball, forward and backward, on the GPU: the largest difference from the torch twin on a CPU."""
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
    """As volume_rendering.march, for at least one ray."""
    near, far = bounds_interval(origins, directions, radius, bounds)
    first = near if jitter is None else near - jitter * step
    # Kept is what has its middle before the last plane: half a step further lets in the interval that the bounds cut.
    last = torch.where(far > near, far + step / 2, first)
    if occupied is None:
        occupied = torch.ones(1, 1, 1, dtype=torch.bool, device=origins.device)
    # Intervals stick out of the bounds by up to a step, so the grid goes on beyond the cube as its border cells do.
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
    """As volume_rendering.render_weights."""
    weights, transmittance, _ = nerfacc.render_weight_from_density(
        t_start, t_end, sigma, ray_indices=ray_index, n_rays=num_rays
    )
    return weights, transmittance


def accumulate(weights: Tensor, values: Tensor | None, ray_index: Tensor, num_rays: int) -> Tensor:
    """As volume_rendering.accumulate; this one needs no GPU."""
    sums = nerfacc.accumulate_along_rays(weights, values, ray_indices=ray_index, n_rays=num_rays)
    return sums.squeeze(1) if values is None else sums
