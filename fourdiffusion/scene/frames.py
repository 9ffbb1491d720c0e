"""Render single frames of a scene: color, alpha, depth and normals.

Letters: H W pixels of a frame.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool3d, normalize
from tqdm import tqdm

from fourdiffusion.cameras import DISTANCE, rays
from fourdiffusion.ops.volume_rendering import accumulate
from fourdiffusion.scene.paths import CameraPath
from fourdiffusion.scene.renderer import OccupancyGrid, render
from fourdiffusion.scene.scene import Scene

CHANNELS = ("rgb", "alpha", "depth", "normal")
CHUNK = 1 << 15  # rays rendered at once
MOMENT_RESOLUTION = 64  # approximate cells per side of the grid of one time
DEPTH_REACH = 0.8  # depth range of a picture, scene units before and behind the center


@torch.no_grad()
def occupancy_at(scene: Scene, time: float) -> OccupancyGrid:
    """Return a finer occupancy grid for one time: the cells occupied at this time, and their neighbors.

    The scene's own grid has the cells occupied at any time. Rendering with this grid needs a third of the samples and
    may miss details between the cells' centers.

    Args:
        time: in [0, 1].
    """
    coarse, config = scene.occupancy.occupied, scene.renderer
    factor = max(MOMENT_RESOLUTION // len(coarse), 1)
    candidates = coarse
    for axis in range(3):
        candidates = candidates.repeat_interleave(factor, axis)
    size = len(candidates)
    points = ((candidates.nonzero() + 0.5) * (2 / size) - 1) * config.radius
    sigma = scene.field.density(points, torch.full((len(points),), float(time), device=points.device))
    grid = OccupancyGrid(replace(config, occupancy_resolution=size), scene.occupancy.backend).to(points.device)
    grid.density.masked_scatter_(candidates, sigma)
    opacity = -torch.expm1(-grid.density * config.step)
    # A sample's weight is at most its opacity: samples that pruning drops for their weight need no cell.
    dropped = min(config.prune_weight, 0.1 * scene.occupancy.peak_opacity())
    occupied = (opacity > opacity.mean().clamp(max=config.occupancy_threshold).clamp(min=dropped)).float()
    grid.occupied.copy_((max_pool3d(occupied[None, None], 3, 1, 1)[0, 0] > 0) & candidates)
    return grid


@torch.no_grad()
def render_frame(
    scene: Scene, c2w: Tensor, fovy_deg: float, time: float, height: int, width: int, normals: bool = False,
    occupancy: OccupancyGrid | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Render one frame; all tensors on the CPU.

    Args:
        c2w: [4, 4].
        fovy_deg: vertical field of view in degrees.
        time: in [0, 1].
        normals: adds "normal", for four more densities per sample.
        occupancy: the cells to sample; None: the scene's own grid. ``occupancy_at`` makes a faster one.

    Returns:
        "rgb" [3, H, W] in [0, 1], straight (not multiplied by alpha, black where alpha is 0); "alpha" [1, H, W] in
        [0, 1]; "depth" [1, H, W] along the optical axis in scene units, 0 where the ray hits nothing; "normal"
        [3, H, W], unit vectors in world coordinates, 0 where the ray hits nothing.
    """
    device, occupancy = scene.occupancy.density.device, occupancy or scene.occupancy
    origins, directions = (value.reshape(-1, 3).to(device) for value in rays(c2w, fovy_deg, height, width))
    black, parts = torch.zeros(3, device=device), []
    for origin, direction in zip(origins.split(CHUNK), directions.split(CHUNK), strict=True):
        times = torch.full((len(origin),), float(time), device=device)
        out = render(
            scene.field, occupancy, origin, direction, times, black, scene.renderer,
            density=scene.field.density, with_normals=normals,
        )  # fmt: skip
        columns = [out.rgb / out.opacity[:, None].clamp(min=1e-6), out.opacity[:, None], out.depth[:, None]]
        if out.normals is not None:
            mean = accumulate(out.weights, out.normals, out.ray_index, len(origin), occupancy.backend)
            columns.append(normalize(mean, dim=-1, eps=1e-6))
        parts.append(torch.cat(columns, dim=1))
    image = torch.cat(parts).T.reshape(-1, height, width).cpu()
    along_axis = (directions @ -c2w[:3, 2].to(device)).view(1, height, width).cpu()
    frame = {"rgb": image[:3].clamp(0, 1), "alpha": image[3:4].clamp(0, 1), "depth": image[4:5] * along_axis}
    return frame | ({"normal": image[5:8]} if normals else {})


def show(frame: dict[str, Tensor], channel: str, background: Tensor, distance: float = DISTANCE) -> Tensor:
    """Return a channel of a frame as a picture [3, H, W] in [0, 1].

    "rgb" on the background [3]; "alpha" as gray; "depth" on black, from white, 0.8 scene units nearer than the center,
    to black, 0.8 farther; "normal" as (n + 1) / 2 on the background.

    Args:
        distance: from the camera to the center, scene units.
    """
    alpha, ground = frame["alpha"], background[:, None, None].to(frame["rgb"])
    if channel == "rgb":
        return frame["rgb"] * alpha + ground * (1 - alpha)
    if channel == "alpha":
        return alpha.expand(3, -1, -1)
    if channel == "depth":
        nearness = (0.5 + (distance - frame["depth"]) / (2 * DEPTH_REACH)).clamp(0, 1)
        return (nearness * alpha).expand(3, -1, -1)
    if channel == "normal":
        return (frame["normal"] + 1) / 2 * alpha + ground * (1 - alpha)
    raise ValueError(f"channel={channel} is not one of {', '.join(CHANNELS)}")


def with_alpha(frame: dict[str, Tensor], channel: str = "rgb", distance: float = DISTANCE) -> Tensor:
    """Return a channel as in ``show``, with straight alpha instead of a background: [4, H, W] in [0, 1]."""
    opaque = frame | {"alpha": torch.ones_like(frame["alpha"])}
    picture = show(frame if channel == "alpha" else opaque, channel, torch.zeros(3), distance)
    return torch.cat([picture, frame["alpha"]])


def render_path(
    scene: Scene, path: CameraPath, height: int, width: int, channel: str, background: Tensor | None,
    label: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the pictures along a path: uint8 RGBA [N, H, W, 4], straight alpha, 255 on a background [3].

    Args:
        channel: one of CHANNELS.
        background: RGB in [0, 1]; None: transparent.
        label: shows a progress bar of this name.
    """
    frames = []
    cameras = zip(path.c2w, path.fovy_deg.tolist(), path.times.tolist(), strict=True)
    for c2w, fovy_deg, time in tqdm(cameras, total=len(path.times), desc=label, disable=label is None, leave=False):
        distance = float(c2w[:3, 3].norm())
        frame = render_frame(scene, c2w, fovy_deg, time, height, width, normals=channel == "normal")
        if background is None:
            image = with_alpha(frame, channel, distance)
        else:
            image = torch.cat([show(frame, channel, background, distance), torch.ones(1, height, width)])
        frames.append((image * 255).round().to(torch.uint8).movedim(0, -1).numpy())
    return np.stack(frames)
