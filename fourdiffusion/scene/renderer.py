"""Volume rendering of a radiance field, with all rays of a step in one packed batch.

The field is any callable (x [N, 3], t [N]) -> (sigma [N], rgb [N, 3]). The scene is inside the ball |x| <= radius or
the cube around it; empty space is skipped with one occupancy grid shared by all times, and samples that do not
contribute are pruned after a density-only pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fourdiffusion.ops.volume_rendering import accumulate, march, render_weights
from fourdiffusion.scene.settings import RendererConfig

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Density = Callable[[Tensor, Tensor], Tensor]

# Corners of a tetrahedron: the gradient from four densities.
_TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


@dataclass
class RenderOutput:
    """R rays and their N samples, near to far within a ray."""

    rgb: Tensor  # [R, 3], composited on the background
    opacity: Tensor  # [R], in [0, 1]
    depth: Tensor  # [R], expected depth along the ray, scene units; 0 where the ray hits nothing
    ray_index: Tensor  # [N], sorted
    weights: Tensor  # [N]
    positions: Tensor  # [N, 3], midpoints of the samples' intervals
    distances: Tensor  # [N], of the midpoints from the ray's origin
    lengths: Tensor  # [N], of the intervals
    normals: Tensor | None  # [N, 3], outward unit vectors, if requested


class OccupancyGrid(nn.Module):
    """Grid of the cells of the cube [-radius, radius]^3 that are occupied at any time.

    Stores for each cell the largest sampled density over all times, decayed by ``occupancy_decay`` per round over all
    of them (Mueller et al. 2022, appendix C). Before the first update all cells are occupied.

    Args:
        config: sizes.
        backend: of ray marching, see ops.volume_rendering; not part of the scene.
    """

    density: Tensor
    occupied: Tensor

    def __init__(self, config: RendererConfig, backend: str = "auto"):
        super().__init__()
        if config.occupancy_resolution < 1 or config.num_samples < 1 or config.radius <= 0 or config.step_scale <= 0:
            raise ValueError(f"occupancy_resolution, num_samples, radius and step_scale must be positive: {config}")
        shape = (config.occupancy_resolution,) * 3
        self.config, self.backend = config, backend
        self.register_buffer("density", torch.zeros(shape))
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))

    @torch.no_grad()
    def update(
        self,
        density: Density,
        times: Tensor,
        generator: torch.Generator | None = None,
        share: float = 1.0,
        within: Tensor | None = None,
    ) -> None:
        """Sample the density at one random point per cell (the center without a generator) at each of the times [F].

        The threshold is on a step's opacity but never above the mean, so that an early scene of low density is kept.

        Args:
            share: fraction of a round over all times. The densities decay by occupancy_decay ** share, so that a round
                in several updates decays as much as one in a single update.
            within: bool [G, G, G], cells that may hold anything; the others are empty and not sampled. None: all.
        """
        config, device = self.config, self.density.device
        size = config.occupancy_resolution
        index = torch.arange(size, device=device)
        if within is None:
            cells = torch.stack(torch.meshgrid(index, index, index, indexing="ij"), dim=-1).flatten(0, 2)  # [G^3, 3]
        else:
            cells = within.nonzero()
        chosen = cells.unbind(1)
        seen = self.density[chosen] * config.occupancy_decay**share
        for time in times.to(device):
            if generator is None:
                offset = torch.full(cells.shape, 0.5, device=device)
            else:
                offset = torch.rand(cells.shape, generator=generator, device=generator.device).to(device)
            x = ((cells + offset) * (2 / size) - 1) * config.radius
            seen = torch.maximum(seen, density(x, time.expand(len(x))))
        self.density.zero_()[chosen] = seen
        opacity = self._opacity()
        self.occupied.copy_(opacity > opacity.mean().clamp(max=config.occupancy_threshold))

    @torch.no_grad()
    def peak_opacity(self) -> float:
        """Return the opacity of one step in the densest stored cell; 0 before the first update."""
        return float(self._opacity().max())

    def _opacity(self) -> Tensor:
        return -torch.expm1(-self.density * self.config.step)

    def extra_repr(self) -> str:
        return f"{self.config.occupancy_resolution}^3 cells of [-{self.config.radius}, {self.config.radius}]^3"


def due_times(times: Tensor, step: int, every: int) -> tuple[Tensor, float]:
    """Return the times [F'] at which an occupancy grid is updated in a step, and their share of a round.

    Every ``every`` steps each of the times [F] is updated once, evenly spread over the steps. At step 0 all times are
    updated: a grid of only some times would skip cells that are occupied at the others.
    """
    if step == 0:
        return times, 1.0
    first, last = (len(times) * place // every for place in (step % every, step % every + 1))
    return times[first:last], (last - first) / len(times)


def render(
    field: Field, occupancy: OccupancyGrid | None, origins: Tensor, directions: Tensor, times: Tensor,
    background: Tensor, config: RendererConfig, jitter: Tensor | None = None, density: Density | None = None,
    with_normals: bool = False,
) -> RenderOutput:  # fmt: skip
    """Render rays of any cameras and times together, differentiable in the field's parameters.

    Args:
        field: (x, t) -> (sigma, rgb).
        occupancy: the cells to sample, and the backend; None: all cells.
        origins, directions: [R, 3], directions of length 1.
        times: [R] in [0, 1].
        background: [3] or [R, 3] in [0, 1].
        jitter: [R] in [0, 1): shift of each ray's samples in steps; None is 0. A ray's result depends only on its
            own jitter, so rays may be rendered in any chunks.
        density: (x, t) -> sigma of the same field; needed for normals and for pruning.
        with_normals: by finite differences these cost four more densities per sample.
    """
    if config.normals not in ("difference", "analytic"):
        raise ValueError(f"normals={config.normals!r} is unknown: choose difference or analytic")
    num_rays = _check_rays(origins, directions, times, background, jitter)
    if density is None and (with_normals or config.prunes):
        raise ValueError("normals and pruning need the density alone: pass density=, for example field.density")
    occupied, backend = (None, "auto") if occupancy is None else (occupancy.occupied, occupancy.backend)
    ray_index, t_start, t_end = march(
        origins, directions, config.step, config.radius, jitter, occupied, backend, config.bounds
    )
    if config.prunes and density is not None:
        _, positions = _middles(origins, directions, ray_index, t_start, t_end)
        with torch.no_grad():
            sigma = density(positions, times[ray_index])
            weights, transmittance = render_weights(sigma, t_start, t_end, ray_index, num_rays, backend)
        peak = 1.0 if occupancy is None else occupancy.peak_opacity()
        visible = visible_samples(weights, transmittance, config, peak)
        ray_index, t_start, t_end = ray_index[visible], t_start[visible], t_end[visible]
    distances, positions = _middles(origins, directions, ray_index, t_start, t_end)
    sigma, colour = field(positions, times[ray_index])
    weights, _ = render_weights(sigma, t_start, t_end, ray_index, num_rays, backend)
    opacity = accumulate(weights, None, ray_index, num_rays, backend)
    rgb = accumulate(weights, colour, ray_index, num_rays, backend) + (1 - opacity[:, None]) * background
    depth = accumulate(weights, distances[:, None], ray_index, num_rays, backend).squeeze(1) / opacity.clamp(min=1e-6)
    normals = None
    if with_normals and density is not None:
        if config.normals == "analytic":
            normals = analytic_normals(density, positions, times[ray_index])
        else:
            normals = finite_difference_normals(density, positions, times[ray_index], config.normal_epsilon)
    return RenderOutput(rgb, opacity, depth, ray_index, weights, positions, distances, t_end - t_start, normals)


def _check_rays(origins: Tensor, directions: Tensor, times: Tensor, background: Tensor, jitter: Tensor | None) -> int:
    num_rays = len(origins)
    if origins.shape != (num_rays, 3) or directions.shape != (num_rays, 3) or times.shape != (num_rays,):
        shapes = [list(value.shape) for value in (origins, directions, times)]
        raise ValueError(f"origins [R, 3], directions [R, 3] and times [R] do not fit together: {shapes}")
    if background.shape not in ((3,), (num_rays, 3)):
        raise ValueError(f"background must be [3] or [{num_rays}, 3], got {list(background.shape)}")
    if jitter is not None and jitter.shape != (num_rays,):
        raise ValueError(f"jitter must be [{num_rays}], got {list(jitter.shape)}")
    return num_rays


def _middles(
    origins: Tensor, directions: Tensor, ray_index: Tensor, t_start: Tensor, t_end: Tensor
) -> tuple[Tensor, Tensor]:
    """Return distances [N] and positions [N, 3] of the intervals' midpoints."""
    distances = (t_start + t_end) / 2
    return distances, origins[ray_index] + distances[:, None] * directions[ray_index]


def visible_samples(weights: Tensor, transmittance: Tensor, config: RendererConfig, peak_opacity: float) -> Tensor:
    """Return the samples that pass ``prune_alpha``, ``early_stop`` and ``prune_weight``: [N], [N] -> bool [N].

    Weights and transmittance include the dropped samples, as in nerfacc. The thresholds on opacity and weight are never
    above a tenth of ``peak_opacity``, so that an early scene of low density is kept. (nerfacc caps by the mean over all
    cells, which falls with the object's share of the cube.)
    """
    alpha, weight = (min(value, 0.1 * peak_opacity) for value in (config.prune_alpha, config.prune_weight))
    return (weights >= alpha * transmittance) & (transmittance >= config.early_stop) & (weights >= weight)


def finite_difference_normals(density: Density, x: Tensor, t: Tensor, epsilon: float) -> Tensor:
    """Return -grad sigma / |grad sigma| by differences over a tetrahedron, exact for a linear density: [N, 3]."""
    corners = torch.tensor(_TETRAHEDRON, device=x.device, dtype=x.dtype)
    points = x[None] + epsilon * corners[:, None]  # [4, N, 3]
    sigma = density(points.flatten(0, 1), t.repeat(len(corners))).view(len(corners), -1)
    return normalize(-(sigma[..., None] * corners[:, None]).sum(0), dim=-1, eps=1e-8)


def analytic_normals(density: Density, x: Tensor, t: Tensor) -> Tensor:
    """Return -grad sigma / |grad sigma| by autograd: [N, 3], differentiable in the field's parameters.

    The gradient of a piecewise linear density, such as a hash grid's, is discontinuous between cells.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(density(x, t).sum(), x, create_graph=keep)
    return normalize(-slope, dim=-1, eps=1e-8)


@torch.no_grad()
def render_image(
    field: Field, occupancy: OccupancyGrid | None, origins: Tensor, directions: Tensor, times: Tensor,
    background: Tensor, config: RendererConfig, density: Density | None = None, chunk: int = 1 << 15,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Render pictures without gradients, ``chunk`` rays at a time.

    Args:
        origins, directions: [..., H, W, 3].
        times: [...], one for each picture, or one number for all.
        background: [3].

    Returns:
        rgb [..., 3, H, W], opacity [..., 1, H, W], depth [..., 1, H, W].
    """
    shape = origins.shape[:-1]
    times = times.to(origins)[..., None, None].expand(shape)
    origins, directions, times = origins.reshape(-1, 3), directions.reshape(-1, 3), times.reshape(-1)
    pixels = []
    for first in range(0, len(times), chunk):
        part = slice(first, first + chunk)
        out = render(
            field, occupancy, origins[part], directions[part], times[part], background, config, density=density
        )
        pixels.append(torch.cat([out.rgb, out.opacity[:, None], out.depth[:, None]], dim=1))
    image = torch.cat(pixels).view(*shape, 5).movedim(-1, -3)
    rgb, opacity, depth = image.split([3, 1, 1], dim=-3)
    return rgb, opacity, depth
