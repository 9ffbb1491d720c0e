"""A scene as a folder, and pictures of it: renders from any cameras, the orbit video, the contact sheet.

    <scene>/config.json, diffusion_pytorch_model.safetensors   the field, see DynamicField.save
    <scene>/renderer.json                                      RendererConfig
    <scene>/occupancy.safetensors                              which cells hold matter

Letters: N pictures, F frames of the clip, S the side of a picture.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from fourdiffusion.cameras import FOVY_DEG, orbit, orthogonal_azimuths, rays
from fourdiffusion.checkpoints import load_tensors, save_tensors, write_atomic
from fourdiffusion.errors import UserError
from fourdiffusion.media import contact_sheet, write_image, write_video
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid, RendererConfig, render_image

ORBIT_FPS = 12.0
FRAME_REPEATS = 2  # pictures of the orbit video a frame of the clip: the clip plays at 6 frames a second


@dataclass
class Scene:
    """What it takes to draw a picture."""

    field: DynamicField
    occupancy: OccupancyGrid
    renderer: RendererConfig


def save_scene(folder: Path, scene: Scene) -> None:
    """Writes a scene folder; each file appears whole or not at all."""
    scene.field.save(folder)
    text = json.dumps(asdict(scene.renderer), indent=2) + "\n"
    write_atomic(folder / "renderer.json", lambda partial: partial.write_text(text))
    save_tensors(folder / "occupancy.safetensors", scene.occupancy.state_dict(), {})


def load_scene(folder: Path, device: torch.device | None = None) -> Scene:
    """Reads a scene folder, or the run folder that has one in scene/. UserError where it is none."""
    folder = scene_folder(folder)
    field = DynamicField.load(folder).to(device)
    path = folder / "renderer.json"
    if not path.is_file():
        raise UserError(f"{folder} is no complete scene: {path.name} is missing; fit it again")
    try:
        renderer = RendererConfig(**json.loads(path.read_text(encoding="utf-8")))
        occupancy = OccupancyGrid(renderer)
        occupancy.load_state_dict(load_tensors(folder / "occupancy.safetensors")[0])
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        message = f"{folder}: renderer.json and occupancy.safetensors do not fit together ({reason}); fit it again"
        raise UserError(message) from error
    return Scene(field, occupancy.to(device), renderer)


def scene_folder(folder: Path) -> Path:
    """The scene folder that a folder is, or has in it as scene/."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the run folder of a fit, or its scene/")
    for candidate in (folder / "scene", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"{folder} holds no scene (scene/config.json); give the run folder of a finished fit")


def render_views(
    scene: Scene, c2w: Tensor, fovy_deg: float, times: Tensor, size: int, label: str | None = None
) -> tuple[Tensor, Tensor]:
    """Square pictures of a scene on white, on CPU whatever the scene is on.

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


def render_orbit(
    scene: Scene, times: Tensor, size: int, num_pictures: int, elevation_deg: float, label: str | None = None
) -> Tensor:
    """One turn around the object while the clip plays forward and back: [T, 3, S, S].

    Only the clip's own times [F] are drawn: between them a 4-D hash grid has seen nothing.
    """
    c2w = orbit(torch.arange(num_pictures) * (360 / num_pictures), elevation_deg)
    forward_and_back = torch.cat([times, times.flip(0)[1:-1]])
    index = torch.arange(num_pictures) // FRAME_REPEATS % len(forward_and_back)
    return render_views(scene, c2w, FOVY_DEG, forward_and_back[index], size, label)[0]


def render_grid(
    scene: Scene, times: Tensor, size: int, num_azimuths: int, elevation_deg: float, label: str | None = None
) -> tuple[Tensor, list[float]]:
    """The clip from evenly spaced sides: [azimuths, F, 3, S, S], and the azimuths in degrees."""
    azimuths = orthogonal_azimuths(num_azimuths)
    c2w = orbit(azimuths, elevation_deg).repeat_interleave(len(times), dim=0)
    rgb, _ = render_views(scene, c2w, FOVY_DEG, times.repeat(num_azimuths), size, label)
    return rgb.unflatten(0, (num_azimuths, len(times))), azimuths.tolist()


def write_pictures(
    folder: Path,
    scene: Scene,
    images: Tensor | None,
    size: int,
    orbit_pictures: int = 48,
    num_azimuths: int = 8,
    elevation_deg: float = 0.0,
    times: Tensor | None = None,
    label: str | None = None,
) -> list[Path]:
    """Writes orbit.mp4, contact_sheet.png (azimuth by time) and, with an input video, input_view.mp4 and .png.

    The contact sheet has the input, if there is one, above the scene.

    Args:
        images: the input video [F, 3, S', S'] in [0, 1] on white, or None.
        size: side of a picture; the comparison with the input has the input's.
        times: of the frames [F]; evenly from 0 to 1 if None, eight without an input.
        label: shows progress bars.
    """
    if times is None:
        times = torch.linspace(0, 1, 8 if images is None else len(images))
    orbit_path, sheet_path, input_path = folder / "orbit.mp4", folder / "contact_sheet.png", folder / "input_view.png"
    write_video(orbit_path, render_orbit(scene, times, size, orbit_pictures, elevation_deg, label), ORBIT_FPS)
    grid, azimuths = render_grid(scene, times, size, num_azimuths, elevation_deg, label)
    columns = [f"t = {float(time):.2f}" for time in times]
    rows = [f"{azimuth:g}\N{DEGREE SIGN}" for azimuth in azimuths]
    if images is not None:
        grid = torch.cat([interpolate(images, size=(size, size), mode="bilinear", antialias=True)[None], grid])
        rows = ["input", *rows]
    write_image(sheet_path, contact_sheet(grid, rows, columns))
    if images is None:
        return [orbit_path, sheet_path]
    rendered, _ = render_views(scene, orbit(torch.zeros(len(images))), FOVY_DEG, times, images.shape[-1], label)
    write_image(input_path, contact_sheet(torch.stack([images, rendered]), ["input", "scene"], columns))
    write_video(input_path.with_suffix(".mp4"), torch.cat([images, rendered], dim=-1))
    return [orbit_path, sheet_path, input_path, input_path.with_suffix(".mp4")]
