"""A scene and its files.

    <scene>/config.json, diffusion_pytorch_model.safetensors   the field, see DynamicField.save
    <scene>/renderer.json                                      RendererConfig
    <scene>/occupancy.safetensors                              the occupancy grid

Letters: N pictures, S the side of a picture in pixels.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.cameras import rays
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.files import first_non_finite, load_tensors, save_tensors, write_atomic
from fourdiffusion.ranges import from_values
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid, render_image
from fourdiffusion.scene.settings import RendererConfig


@dataclass
class Scene:
    """A field with its occupancy grid and renderer settings. ValueError if renderer and field have different radii."""

    field: DynamicField
    occupancy: OccupancyGrid
    renderer: RendererConfig

    def __post_init__(self) -> None:
        for name, choices in (("bounds", ("ball", "cube")), ("normals", ("difference", "analytic"))):
            if (value := getattr(self.renderer, name)) not in choices:
                raise ValueError(f"renderer.{name}={value} is not one of {', '.join(choices)}")
        if self.field.config.radius != self.renderer.radius:
            raise ValueError(
                f"field.radius={self.field.config.radius:g} and renderer.radius={self.renderer.radius:g} differ: give "
                "both the same"
            )

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str | None = None) -> "Scene":
        """Load a scene folder, or the scene/ of a run folder. UserError if there is none."""
        return load_scene(Path(folder), torch.device(device) if device is not None else None)


def save_scene(folder: Path, scene: Scene) -> None:
    """Write a scene folder, each file atomically."""
    scene.field.save(folder)
    text = json.dumps(asdict(scene.renderer), indent=2) + "\n"
    write_atomic(folder / "renderer.json", lambda partial: partial.write_text(text))
    save_tensors(folder / "occupancy.safetensors", scene.occupancy.state_dict(), {})


def load_scene(folder: Path, device: torch.device | None = None) -> Scene:
    """Load a scene folder, or the scene/ of a run folder. UserError if there is none."""
    folder = scene_folder(folder)
    field = DynamicField.load(folder).to(device)
    path = folder / "renderer.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a complete scene: {path.name} is missing; fit it again")
    try:
        renderer = from_values(RendererConfig, read_json(path, "fit it again"))
        tensors = load_tensors(folder / "occupancy.safetensors")[0]
        if culprit := first_non_finite(tensors):
            raise ValueError(f"{culprit} holds numbers that are NaN or infinite")
        occupancy = OccupancyGrid(renderer)
        occupancy.load_state_dict(tensors)
        return Scene(field, occupancy.to(device), renderer)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        message = f"{folder}: renderer.json and occupancy.safetensors do not fit together ({reason}); fit it again"
        raise UserError(message) from error


def scene_folder(folder: Path) -> Path:
    """Return the scene folder: the folder itself or its scene/."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the run folder of a fit, or its scene/")
    for candidate in (folder / "scene", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"{folder} holds no scene (scene/config.json); give the run folder of a finished fit")


def render_views(
    scene: Scene, c2w: Tensor, fovy_deg: float, times: Tensor, size: int, label: str | None = None
) -> tuple[Tensor, Tensor]:
    """Render square pictures of a scene on white; the results are on the CPU.

    Args:
        c2w: [N, 4, 4].
        fovy_deg: field of view in degrees.
        times: [N] in [0, 1].
        size: S.
        label: shows a progress bar of this name.

    Returns:
        rgb [N, 3, S, S] in [0, 1] and opacity [N, 1, S, S].
    """
    device = scene.occupancy.density.device
    field, white, pictures = scene.field, torch.ones(3, device=device), []
    for camera, time in zip(tqdm(c2w, desc=label, disable=label is None, leave=False), times, strict=True):
        origins, directions = (value.to(device) for value in rays(camera, fovy_deg, size, size))
        rgb, opacity, _ = render_image(
            field, scene.occupancy, origins, directions, time.to(device), white, scene.renderer, field.density
        )
        pictures.append(torch.cat([rgb, opacity]).cpu())
    rgb, opacity = torch.stack(pictures).clamp(0, 1).split([3, 1], dim=1)
    return rgb, opacity
