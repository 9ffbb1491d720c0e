"""Rays of selected pixels only. Letters: R rays, F frames, V views, S the side of a picture."""

import math

import torch
from torch import Tensor


def rays_at(c2w: Tensor, fovy_deg: Tensor | float, size: int, pixel_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return rays through the centers of selected pixels of square pictures; for all pixels see ``cameras.rays``.

    Args:
        c2w: [V, 4, 4].
        fovy_deg: vertical field of view in degrees, a number or [V].
        size: S in pixels.
        pixel_index: int64 [R], flat indices in the order V, S (rows from the top), S (columns from the left).

    Returns:
        origins [R, 3] and unit directions [R, 3], in world space.
    """
    if c2w.ndim != 3 or c2w.shape[1:] != (4, 4):
        raise ValueError(f"cameras must be [V, 4, 4], got {list(c2w.shape)}")
    num_pixels = len(c2w) * size * size
    if len(pixel_index) and not (0 <= int(pixel_index.min()) and int(pixel_index.max()) < num_pixels):
        raise ValueError(f"pixel_index must lie in [0, {num_pixels}) for {len(c2w)} views of {size} x {size} pixels")
    view, place = pixel_index // (size * size), pixel_index % (size * size)
    half = (torch.as_tensor(fovy_deg, dtype=c2w.dtype, device=c2w.device).expand(len(c2w)) * (math.pi / 360)).tan()
    y = (1 - (place // size + 0.5) * (2 / size)) * half[view]
    x = ((place % size + 0.5) * (2 / size) - 1) * half[view]
    local = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
    directions = torch.einsum("rij,rj->ri", c2w[view, :3, :3], local)
    return c2w[view, :3, 3], directions / directions.norm(dim=-1, keepdim=True)


def random_rays(
    c2w: Tensor, fovy_deg: Tensor | float, times: Tensor, size: int, num_rays: int, generator: torch.Generator,
    focus: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return rays through random pixels, drawn with replacement, of V views at F times.

    Args:
        c2w: [V, 4, 4]; fovy_deg, size: see ``rays_at``.
        times: [F] in [0, 1].
        focus: flat indices of the pixels for half of the rays, int64 [N], in the order F, V, S, S; None or empty:
            all rays are drawn from all pixels.

    Returns:
        origins [R, 3], unit directions [R, 3], times [R], and the pixels' flat indices [R] in the order F, V, S, S.
    """
    per_frame = len(c2w) * size * size
    index = torch.randint(len(times) * per_frame, (num_rays,), generator=generator)
    if focus is not None and len(focus):
        half = num_rays // 2
        index[:half] = focus[torch.randint(len(focus), (half,), generator=generator)]
    origins, directions = rays_at(c2w, fovy_deg, size, index % per_frame)
    return origins, directions, times[index // per_frame], index
