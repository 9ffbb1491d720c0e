"""The pixels that a scene is fitted to, and their visual hull.

Letters: V views, F frames, H W pixels, R rays, G cells a side of the occupancy grid.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from tqdm import tqdm

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.errors import UserError
from fourdiffusion.scene.render_pass import Rays

MAX_BYTES = 2**34  # of pixels in memory
NEAR_OBJECT = 0.035  # of the picture's height: pixels this near to the object count as foreground
VISIBLE_ALPHA = 8  # of 255
HALF_EXTENT = cameras.DISTANCE * math.tan(math.radians(cameras.FOVY_DEG) / 2)  # of the default view at the origin


@dataclass
class PixelSet:
    """All pixels of V views and F frames, with the cameras in the scene's world."""

    rgba: Tensor  # uint8 [F V H W, 4], straight alpha
    shape: tuple[int, int, int, int]  # F, V, H, W
    c2w: Tensor  # [V, 4, 4]
    fovy_deg: float
    times: Tensor  # [F] in [0, 1]
    foreground: Tensor  # int32, the pixels on or near the object; empty without alpha

    @property
    def has_alpha(self) -> bool:
        """Whether the pictures have alpha."""
        return len(self.foreground) > 0

    def draw(self, num_rays: int, foreground_share: float, generator: torch.Generator) -> tuple[Rays, Tensor]:
        """Draw pixels with replacement; return their rays and straight RGBA [R, 4] in [0, 1].

        ``foreground_share`` of the pixels are drawn on or near the object, the others anywhere.
        """
        near = int(num_rays * foreground_share) if self.has_alpha else 0
        anywhere = torch.randint(len(self.rgba), (num_rays - near,), generator=generator)
        if near:
            chosen = torch.randint(len(self.foreground), (near,), generator=generator)
            anywhere = torch.cat([self.foreground[chosen].long(), anywhere])
        return self._at(anywhere, generator)

    def draw_patch(self, side: int, generator: torch.Generator) -> tuple[Rays, Tensor]:
        """Draw a square of one picture around a pixel on or near the object; return its rays and RGBA [side^2, 4].

        The square is inside the picture; ``side`` is at most the picture's shorter side.
        """
        _, _, height, width = self.shape
        if self.has_alpha:
            middle = int(self.foreground[torch.randint(len(self.foreground), (), generator=generator)])
        else:
            middle = int(torch.randint(len(self.rgba), (), generator=generator))
        picture, place = divmod(middle, height * width)
        top, left = (
            min(max(at - side // 2, 0), size - side) for at, size in ((place // width, height), (place % width, width))
        )
        row, column = torch.arange(top, top + side)[:, None], torch.arange(left, left + side)
        return self._at((picture * height * width + row * width + column).flatten(), generator)

    def _at(self, index: Tensor, generator: torch.Generator) -> tuple[Rays, Tensor]:
        """Return jittered rays and straight RGBA [R, 4] in [0, 1] of pixels by their index in ``rgba``."""
        jitter = torch.rand(len(index), generator=generator)
        origins, directions, times = self.rays(index)
        return Rays(origins, directions, times, jitter), self.rgba[index].float() / 255

    def rays(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return origins [R, 3], unit directions [R, 3] and times [R] of pixels by their index in ``rgba``."""
        _, num_views, height, width = self.shape
        frame, rest = index // (num_views * height * width), index % (num_views * height * width)
        view, row, column = rest // (height * width), rest // width % height, rest % width
        half = math.tan(math.radians(self.fovy_deg) / 2)
        y = (1 - (row + 0.5) * (2 / height)) * half
        x = ((column + 0.5) * (2 / width) - 1) * (half * width / height)
        local = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
        directions = torch.einsum("rij,rj->ri", self.c2w[view, :3, :3], local)
        return self.c2w[view, :3, 3], directions / directions.norm(dim=-1, keepdim=True), self.times[frame]


def load_pixels(clip: ClipFiles, views: list[int], frames: list[int], c2w: Tensor) -> PixelSet:
    """Read the pictures of some views and frames; ``c2w`` are all the clip's cameras in the scene's world."""
    _, _, _, height, width = clip.pictures.shape
    num_bytes = 4 * len(views) * len(frames) * height * width
    if num_bytes > MAX_BYTES:
        raise UserError(
            f"views={clip.uid}: {len(views)} views x {len(frames)} frames of {width} x {height} pixels need "
            f"{num_bytes / 2**30:.0f} GiB of memory: set num_frames or frame_stride, or give smaller pictures"
        )
    rgba = torch.empty(len(frames), len(views), height, width, 4, dtype=torch.uint8)
    foreground, first = [], 0
    reach = 2 * round(NEAR_OBJECT * height) + 1
    for place, frame in enumerate(tqdm(frames, "reading", leave=False)):
        pictures = clip.pictures[views, frame]  # [V, 4, H, W]
        rgba[place] = pictures.movedim(1, -1)
        near = max_pool2d(pictures[:, 3:].float(), reach, 1, reach // 2) > VISIBLE_ALPHA
        foreground.append((near.flatten().nonzero().squeeze(1) + first).to(torch.int32))
        first += near.numel()
    alpha = rgba[..., 3]
    whole = bool((alpha == 255).all())
    if not whole and not bool((alpha > VISIBLE_ALPHA).any()):
        raise UserError(f"views={clip.uid}: every pixel is transparent; give pictures that show the object")
    return PixelSet(
        rgba.view(-1, 4),
        (len(frames), len(views), height, width),
        c2w[views],
        clip.fovy_deg,
        clip.times[frames],
        torch.empty(0, dtype=torch.int32) if whole else torch.cat(foreground),
    )


def normalizing_transform(c2w: Tensor, fovy_deg: float, aspect: float) -> tuple[Tensor, float]:
    """Return center [3] and scale of the transform from the cameras' world to the scene's: x -> (x - center) * scale.

    The center is the point nearest to all optical axes; the scale makes the median camera's view there as large as the
    default camera's. A world that already fits within 2 percent, or whose axes define no point, is not changed.

    Args:
        c2w: [V, 4, 4].
        fovy_deg: vertical field of view in degrees.
        aspect: width over height.
    """
    unchanged = torch.zeros(3), 1.0
    axis, origin = -c2w[:, :3, 2], c2w[:, :3, 3]
    across = torch.eye(3) - axis[:, :, None] * axis[:, None, :]  # projections onto the planes orthogonal to the axes
    system = across.sum(0)
    if float(torch.linalg.eigvalsh(system)[0]) < 1e-2 * len(c2w):  # the axes are almost parallel
        return unchanged
    center = torch.linalg.solve(system, (across @ origin[:, :, None]).sum(0).squeeze(1))
    distance = ((center - origin) * axis).sum(-1).median()
    extent = float(distance) * math.tan(math.radians(fovy_deg) / 2) * min(1.0, aspect)
    if extent <= 0:  # the cameras look away from the common center
        return unchanged
    scale = HALF_EXTENT / extent
    if abs(scale - 1) < 0.02 and float(center.norm()) * scale < 0.02 * HALF_EXTENT:
        return unchanged
    return center, scale


def to_scene(c2w: Tensor, center: Tensor, scale: float) -> Tensor:
    """Return cameras [V, 4, 4] in the scene's world."""
    moved = c2w.clone()
    moved[:, :3, 3] = (c2w[:, :3, 3] - center) * scale
    return moved


def visual_hull(pixels: PixelSet, resolution: int, radius: float) -> Tensor:
    """Return the cells of the cube [-radius, radius]^3 that are inside the visual hull at some time: bool [G, G, G].

    A cell is outside the hull at a time if a view that contains its center has no object within the cell's size around
    it, or if no view contains its center. Without alpha all cells are inside.
    """
    if not pixels.has_alpha:
        return torch.ones((resolution,) * 3, dtype=torch.bool)
    num_frames, num_views, height, width = pixels.shape
    index = torch.arange(resolution)
    cells = torch.stack(torch.meshgrid(index, index, index, indexing="ij"), dim=-1).flatten(0, 2)
    x = ((cells + 0.5) * (2 / resolution) - 1) * radius
    half = math.tan(math.radians(pixels.fovy_deg) / 2)
    w2c = torch.linalg.inv(pixels.c2w)
    seen_by = [_in_picture(x, w2c[k], half, height, width, radius / resolution) for k in range(num_views)]
    alpha = pixels.rgba[:, 3].view(num_frames, num_views, height, width)
    hull, seen = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for index, _ in (part for view in seen_by for part in view.values()):
        seen[index] = True
    for frame in range(num_frames):
        inside = seen.clone()
        for k in range(num_views):
            for reach, (index, place) in seen_by[k].items():
                near = max_pool2d(alpha[frame, k][None, None].float(), 2 * reach + 1, 1, reach)
                inside[index] &= (near.flatten() > VISIBLE_ALPHA)[place]
        hull |= inside
    return hull.view((resolution,) * 3)


def _in_picture(
    x: Tensor, w2c: Tensor, half: float, height: int, width: int, half_side: float
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return {reach in pixels: (numbers of cells, their pixels)} of the cells at x [N, 3] that one camera sees.

    ``reach`` is a cell's half diagonal in the picture, rounded up to a power of two. Cells larger than half of the
    picture, or outside of it, are left out: the view does not constrain them.
    """
    local = x @ w2c[:3, :3].T + w2c[:3, 3]
    z = (-local[:, 2]).clamp(min=1e-6)
    row = ((1 - local[:, 1] / z / half) * (height / 2)).floor()
    column = ((local[:, 0] / z / half * (height / width) + 1) * (width / 2)).floor()
    reach = 2 ** (math.sqrt(3) * half_side / z / half * (height / 2)).log2().ceil().clamp(min=0)
    seen = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (local[:, 2] < 0) & (reach <= height / 4)
    found = {}
    for size in reach[seen].unique().tolist():
        index = (seen & (reach == size)).nonzero().squeeze(1)
        found[int(size)] = index, (row[index] * width + column[index]).long()
    return found
