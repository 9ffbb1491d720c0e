"""Scenes with known geometry, and silhouettes of meshes."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fourdiffusion.cameras import FOVY_DEG
from fourdiffusion.scene.export.surface import Mesh
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

RADIUS = 0.25


def ball_center(time: Tensor) -> Tensor:
    """The ball moves from (0.1, 0.2, -0.1) along +z: [...] -> [..., 3]."""
    return torch.stack([torch.full_like(time, 0.1), torch.full_like(time, 0.2), -0.1 + 0.3 * time], dim=-1)


def ball_density(x: Tensor, t: Tensor) -> Tensor:
    """A dense ball of radius 0.25; a speck at (-0.5, -0.5, 0) that is there at all times."""
    ball = 40 * (1 + (RADIUS - (x - ball_center(t)).norm(dim=-1)) / 0.05)
    speck = 40 * (1 + (0.05 - (x - torch.tensor([-0.5, -0.5, 0.0])).norm(dim=-1)) / 0.05)
    return torch.maximum(ball, speck).clamp(0, 80)


def ball_field(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Red above the ball's center, blue below it, and green outside of it."""
    offset = x - ball_center(t)
    above, inside = (offset[:, 2] > 0).float(), (offset.norm(dim=1) < RADIUS + 0.03).float()
    return ball_density(x, t), torch.stack([above * inside, 1 - inside, (1 - above) * inside], dim=1)


class BallField:
    """The interface of Scene.field, with a known shape."""

    config = FieldConfig()

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return ball_field(x, t)

    density = staticmethod(ball_density)


def ball_scene(times: Tensor) -> Scene:
    config = RendererConfig(num_samples=96, occupancy_resolution=16)
    occupancy = OccupancyGrid(config)
    generator = torch.Generator().manual_seed(0)
    for _ in range(16):
        occupancy.update(ball_density, times, generator)
    return Scene(BallField(), occupancy, config)  # type: ignore[arg-type]


def silhouette(mesh: Mesh | SimpleNamespace, c2w: Tensor, size: int) -> np.ndarray:
    """Which pixels [S, S] a mesh covers, in world coordinates."""
    local = (mesh.vertices - c2w[:3, 3].numpy()) @ c2w[:3, :3].numpy()
    focal = size / 2 / np.tan(np.radians(FOVY_DEG) / 2)
    pixels = np.stack([local[:, 0], -local[:, 1]], axis=1) / -local[:, 2:] * focal + size / 2 - 0.5
    image = Image.new("1", (size, size))
    draw = ImageDraw.Draw(image)
    for triangle in pixels[mesh.faces.astype(np.int64)]:
        draw.polygon([tuple(corner) for corner in triangle], fill=1)
    return np.array(image)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))
