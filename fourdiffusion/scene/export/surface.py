"""Extract colored triangle meshes from a scene: one closed surface a frame.

Letters: F frames, X Y Z grid points, N vertices, M faces, R rays.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor
from torch.nn.functional import grid_sample
from tqdm import tqdm

from fourdiffusion.cameras import FOVY_DEG, orbit, rays
from fourdiffusion.errors import UserError
from fourdiffusion.scene.renderer import render_image
from fourdiffusion.scene.scene import Scene

CHUNK = 1 << 18  # points evaluated at once
LEVEL_VIEWS, LEVEL_FRAMES, LEVEL_SIZE = 8, 3, 48  # pictures from which the iso level is chosen
COLOR_SAMPLES = 6  # of the short ray that colors a vertex, half a renderer's step apart


@dataclass
class Mesh:
    """A triangle mesh in world coordinates (z up), faces counterclockwise seen from outside."""

    vertices: np.ndarray  # float32 [N, 3], scene units
    faces: np.ndarray  # uint32 [M, 3]
    normals: np.ndarray  # float32 [N, 3], unit vectors that point outward
    colors: np.ndarray  # float32 [N, 3] in [0, 1], as rendered (sRGB, not linear)
    uv: np.ndarray | None = None  # float32 [N, 2] in [0, 1], of the texture
    texture: np.ndarray | None = None  # uint8 [T, T, 3], sRGB; then the vertices have no colors of their own


@dataclass
class DensityGrid:
    """Densities at the points of a regular grid, the same for all frames."""

    values: np.ndarray  # float32 [F, X, Y, Z] >= 0 per scene unit; 0 where the renderer skips
    origin: np.ndarray  # float32 [3], world position of point (0, 0, 0)
    spacing: float  # between neighbors, scene units


def scene_meshes(
    scene: Scene,
    times: Tensor,
    resolution: int,
    iso_level: float | None = None,
    min_component: float = 0.05,
    progress: bool = False,
) -> tuple[list[Mesh], float]:
    """Return one mesh for each of the times [F], without floaters, and the iso level used.

    Args:
        resolution: see ``sample_density``.
        iso_level: density of the surface; None: ``choose_iso_level``.
        min_component: see ``remove_floaters``.
        progress: shows progress bars.

    Raises:
        UserError: there is no surface.
    """
    grid = sample_density(scene, times, resolution, "density" if progress else None)
    grid = smooth(grid, scene.renderer.step / 2)
    level = choose_iso_level(scene, times, grid) if iso_level is None else iso_level
    grid.values = remove_floaters(grid.values, level, min_component)
    return extract_meshes(scene, times, grid, level, "meshes" if progress else None), level


@torch.no_grad()
def sample_density(scene: Scene, times: Tensor, resolution: int, label: str | None = None) -> DensityGrid:
    """Sample the density of each frame on a grid over the occupied cells' bounding box.

    Points that the renderer skips (unoccupied cells, outside the bounds) are 0: the surface encloses what is rendered.

    Args:
        times: [F] in [0, 1].
        resolution: points along the longest side of the box.
        label: shows a progress bar of this name.

    Raises:
        UserError: no cell is occupied.
    """
    occupied, radius = scene.occupancy.occupied, scene.renderer.radius
    cells = occupied.nonzero()
    if not len(cells):
        raise UserError("the scene is empty: its occupancy grid holds no occupied cell; fit it with more steps")
    size = 2 * radius / len(occupied)
    low, high = cells.amin(0) * size - radius, (cells.amax(0) + 1) * size - radius
    spacing = float((high - low).max()) / (resolution - 1)
    # One more point on each side, outside the box and 0, closes the surface.
    counts = [int(round(float(extent) / spacing)) + 3 for extent in high - low]
    origin = low - spacing
    axes = [
        torch.arange(count, device=low.device) * spacing + start for count, start in zip(counts, origin, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    index = ((points + radius) / size).floor().long()
    inside = ((index >= 0) & (index < len(occupied))).all(dim=1)
    if scene.renderer.bounds == "ball":
        inside &= points.norm(dim=1) <= radius
    index = index.clamp(0, len(occupied) - 1)
    visible = (inside & occupied[index[:, 0], index[:, 1], index[:, 2]]).nonzero().squeeze(1)
    values = np.zeros((len(times), *counts), dtype=np.float32)
    for frame, time in enumerate(tqdm(times, desc=label, disable=label is None, leave=False)):
        flat = torch.zeros(len(points), device=low.device)
        for part in visible.split(CHUNK):
            flat[part] = scene.field.density(points[part], time.to(low.device).expand(len(part)))
        values[frame] = flat.view(counts).cpu().numpy()
    values[:, [0, -1]] = values[:, :, [0, -1]] = values[:, :, :, [0, -1]] = 0
    return DensityGrid(values, origin.cpu().numpy().astype(np.float32), spacing)


def smooth(grid: DensityGrid, scale: float) -> DensityGrid:
    """Return the grid blurred in space with a Gaussian of standard deviation ``scale``, in scene units.

    Half a renderer's step is right: the renderer does not see finer detail, and it would roughen the surface.
    """
    deviation = (0, *(scale / grid.spacing,) * 3)
    values = ndimage.gaussian_filter(grid.values, deviation, mode="constant")
    values[:, [0, -1]] = values[:, :, [0, -1]] = values[:, :, :, [0, -1]] = 0
    return DensityGrid(values, grid.origin, grid.spacing)


def choose_iso_level(scene: Scene, times: Tensor, grid: DensityGrid) -> float:
    """Return the density whose surface has the renderer's silhouettes.

    The rule: of all levels, the one at which {rays whose largest density exceeds it} and {rays with opacity above 1/2}
    have the largest intersection over union, over 8 views of up to 3 frames.

    Raises:
        UserError: no ray has an opacity above 1/2.
    """
    frames = sorted({int(index) for index in np.linspace(0, len(times) - 1, LEVEL_FRAMES).round()})
    device = scene.occupancy.density.device
    elevations = torch.tensor([0.0, 30.0]).repeat(LEVEL_VIEWS // 2)
    c2w = orbit(torch.arange(LEVEL_VIEWS) * (360 / LEVEL_VIEWS), elevations)
    origins, directions = (value.to(device) for value in rays(c2w, FOVY_DEG, LEVEL_SIZE, LEVEL_SIZE))
    opaque, largest = [], []
    for frame in frames:
        _, opacity, _ = render_image(
            scene.field, scene.occupancy, origins, directions, times[frame].to(device),
            torch.ones(3, device=device), scene.renderer, scene.field.density,
        )  # fmt: skip
        opaque.append((opacity > 0.5).flatten().cpu())
        values = torch.from_numpy(grid.values[frame])
        largest.append(largest_along_rays(values, grid, origins.cpu().reshape(-1, 3), directions.cpu().reshape(-1, 3)))
    return best_threshold(torch.cat(largest), torch.cat(opaque))


def largest_along_rays(values: Tensor, grid: DensityGrid, origins: Tensor, directions: Tensor) -> Tensor:
    """Return the largest trilinearly interpolated value [R] of a frame's grid [X, Y, Z] along each ray."""
    extent = torch.tensor([count - 1 for count in values.shape]) * grid.spacing
    center = torch.from_numpy(grid.origin) + extent / 2
    reach = float(extent.norm()) / 2
    steps = torch.arange(-reach, reach, grid.spacing / 2)
    found = []
    for origin, direction in zip(origins.split(2048), directions.split(2048), strict=True):
        nearest = ((center - origin) * direction).sum(-1, keepdim=True)
        distances = (nearest + steps).clamp(min=0)  # [R, S]
        points = origin[:, None] + distances[..., None] * direction[:, None]
        unit = ((points - center) / (extent / 2)).flip(-1)  # grid_sample's last axis first
        sampled = grid_sample(values[None, None], unit[None, None], align_corners=True, padding_mode="zeros")
        found.append(sampled.view(len(origin), -1).amax(dim=1))
    return torch.cat(found)


def best_threshold(values: Tensor, truth: Tensor) -> float:
    """Return the threshold at which {values > threshold} has the largest intersection over union with ``truth``.

    Args:
        values: [R] >= 0.
        truth: bool [R].
    """
    if not truth.any():
        raise UserError(
            "the scene is empty: no ray has an opacity above 1/2; fit it with more steps, or give iso_level="
        )
    ordered, index = values.sort(descending=True)
    hits = truth[index].cumsum(0)
    union = truth.sum() + torch.arange(1, len(values) + 1) - hits
    iou = (hits / union).where(ordered > 0, -1.0)
    # Between equal values there is no threshold.
    iou[:-1] = iou[:-1].where(ordered[:-1] > ordered[1:], -1.0)
    best = int(iou.argmax())
    below = ordered[best + 1] if best + 1 < len(ordered) else torch.zeros(())
    return float((ordered[best] + below) / 2)


def remove_floaters(values: np.ndarray, level: float, min_component: float) -> np.ndarray:
    """Return the densities [F, X, Y, Z] with small components of {density > level} set to 0.

    Components are connected through space and time, so a part that comes loose for some frames is kept.

    Args:
        min_component: size below which a component goes, as a share of the largest one's.
    """
    labels, count = ndimage.label(values > level)
    if count < 2:
        return values
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    small = sizes < min_component * sizes.max()
    small[0] = False
    return np.where(small[labels], 0, values)


def extract_meshes(
    scene: Scene, times: Tensor, grid: DensityGrid, level: float, label: str | None = None
) -> list[Mesh]:
    """Extract the surface {density = level} of every frame, with vertex colors.

    Raises:
        UserError: a frame has no surface at this level.
    """
    meshes = []
    for frame, time in enumerate(tqdm(times, desc=label, disable=label is None, leave=False)):
        # Clipping puts the surface in the middle of a sudden step, not at its outer end.
        values = np.clip(grid.values[frame], 0, 2 * level)
        if not (level > 0 and values.max() > level):
            raise UserError(
                f"iso_level={level:g} leaves no surface at time {float(time):.3f}, where the largest density is "
                f"{grid.values[frame].max():g}: give a lower iso_level="
            )
        # "ascent" winds faces counterclockwise seen from where the values are low.
        vertices, faces, _, _ = marching_cubes(values, level, gradient_direction="ascent")
        vertices = (vertices * grid.spacing + grid.origin).astype(np.float32)
        normals = vertex_normals(vertices, faces)
        colors = surface_colors(scene, torch.from_numpy(vertices), torch.from_numpy(normals), time)
        meshes.append(Mesh(vertices, faces.astype(np.uint32), normals, colors))
    return meshes


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the faces' normals averaged at their vertices by area, of length 1: [N, 3] float32."""
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    cross = np.cross(b - a, c - a)  # twice the area long
    sums = np.stack(
        [np.bincount(faces.ravel(), cross[:, axis].repeat(3), minlength=len(vertices)) for axis in range(3)], axis=1
    )
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0, sums / np.maximum(lengths, 1e-30), [[0, 0, 1]]).astype(np.float32)


@torch.no_grad()
def surface_colors(scene: Scene, vertices: Tensor, normals: Tensor, time: Tensor) -> np.ndarray:
    """Return the colors [N, 3] that a short ray along the inward normal composites, without a background."""
    device, step = scene.occupancy.density.device, scene.renderer.step / 2
    offsets = (torch.arange(COLOR_SAMPLES) - 0.5) * step  # the first sample lies outside
    colors = []
    for x, n in zip(vertices.split(CHUNK // COLOR_SAMPLES), normals.split(CHUNK // COLOR_SAMPLES), strict=True):
        points = (x[:, None] - offsets[:, None] * n[:, None]).clamp(-scene.renderer.radius, scene.renderer.radius)
        points = points.view(-1, 3).to(device)
        sigma, rgb = scene.field(points, time.to(device).expand(len(points)))
        passed = torch.exp(-sigma.view(-1, COLOR_SAMPLES) * step)
        before = torch.cumprod(torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], dim=1), dim=1)
        weights = before * (1 - passed) + 1e-8
        mean = (weights[..., None] * rgb.view(-1, COLOR_SAMPLES, 3)).sum(1) / weights.sum(1, keepdim=True)
        colors.append(mean.clamp(0, 1).cpu())
    return torch.cat(colors).numpy()
