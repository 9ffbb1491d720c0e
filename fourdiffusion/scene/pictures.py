"""Pictures of a scene: renders from any cameras, the orbit video, the contact sheet. Files of a scene folder:

    <scene>/config.json, diffusion_pytorch_model.safetensors   the field, see DynamicField.save
    <scene>/renderer.json                                      RendererConfig
    <scene>/occupancy.safetensors                              the occupied cells

Letters: N pictures, F frames of the clip, S the side of a picture.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fourdiffusion.cameras import FOVY_DEG, orbit, orthogonal_azimuths
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.media.write import contact_sheet, write_image, write_video
from fourdiffusion.scene.scene import Scene, render_views

ORBIT_FPS = 12.0
FRAME_REPEATS = 2  # pictures of the orbit video per frame of the clip: the clip plays at 6 frames per second


def render_orbit(
    scene: Scene, times: Tensor, size: int, num_pictures: int, elevation_deg: float, label: str | None = None
) -> Tensor:
    """Render one orbit around the object while the clip plays forward and back: [T, 3, S, S].

    Only the clip's own times [F] are rendered: between them the 4-D hash grid is not trained.
    """
    c2w = orbit(torch.arange(num_pictures) * (360 / num_pictures), elevation_deg)
    forward_and_back = torch.cat([times, times.flip(0)[1:-1]])
    index = torch.arange(num_pictures) // FRAME_REPEATS % len(forward_and_back)
    return render_views(scene, c2w, FOVY_DEG, forward_and_back[index], size, label)[0]


def render_grid(
    scene: Scene, times: Tensor, size: int, num_azimuths: int, elevation_deg: float, label: str | None = None
) -> tuple[Tensor, list[float]]:
    """Render the clip at evenly spaced azimuths: [azimuths, F, 3, S, S], and the azimuths in degrees."""
    azimuths = orthogonal_azimuths(num_azimuths)
    c2w = orbit(azimuths, elevation_deg).repeat_interleave(len(times), dim=0)
    rgb, _ = render_views(scene, c2w, FOVY_DEG, times.repeat(num_azimuths), size, label)
    return rgb.unflatten(0, (num_azimuths, len(times))), azimuths.tolist()


def recorded_camera(run: Path) -> tuple[Tensor, float] | None:
    """Return camera [1, 4, 4] and field of view of a run's input from input.json; None where it does not tell them."""
    path = run / "input.json"
    if not path.is_file():
        return None
    record = read_json(path, "fit it again")
    if not isinstance(record, dict):
        raise UserError(f"{path}: holds a {type(record).__name__}, not an object; fit it again")
    values: list[Any] = [record.get(key) for key in ("fovy_deg", "distance", "elevation_deg")]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return None
    fovy, distance, elevation = (float(value) for value in values)
    if not (0 < fovy < 180 and distance > 0 and abs(elevation) < 90):
        return None
    return orbit(torch.zeros(1), elevation, distance), fovy


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
    input_camera: tuple[Tensor, float] | None = None,
) -> list[Path]:
    """Write orbit.mp4, contact_sheet.png (azimuth by time) and, with an input video, input_view.mp4 and .png.

    The contact sheet has the input, if any, above the scene.

    Args:
        images: the input video [F, 3, S', S'] in [0, 1] on white, or None.
        size: side of a picture; the comparison with the input has the input's size.
        times: of the frames [F]; None: evenly spaced from 0 to 1, eight without an input.
        label: shows progress bars.
        input_camera: camera [1, 4, 4] and field of view in degrees of the input; None: the default camera.
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
    c2w, fovy = (orbit(torch.zeros(1)), FOVY_DEG) if input_camera is None else input_camera
    rendered, _ = render_views(scene, c2w.expand(len(images), 4, 4), fovy, times, images.shape[-1], label)
    write_image(input_path, contact_sheet(torch.stack([images, rendered]), ["input", "scene"], columns))
    write_video(input_path.with_suffix(".mp4"), torch.cat([images, rendered], dim=-1))
    return [orbit_path, sheet_path, input_path, input_path.with_suffix(".mp4")]
