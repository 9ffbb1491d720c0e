"""Verb `render`: pictures of a fitted scene."""

from pathlib import Path

import torch
from torch import Tensor

from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.media.image import composite
from fourdiffusion.scene.pictures import write_pictures
from fourdiffusion.scene.scene import load_scene, scene_folder
from fourdiffusion.settings import RenderConfig


def render(config: RenderConfig) -> None:
    """Writes orbit.mp4, contact_sheet.png (azimuth by time), and the input beside the scene where the run has it."""
    for name in ("size", "orbit_pictures", "num_azimuths", "num_frames"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} is too small; give at least 1")
    if not -90 < config.elevation_deg < 90:
        raise UserError(f"elevation_deg={config.elevation_deg}; give degrees between -90 and 90")
    folder = scene_folder(Path(config.scene))
    run = folder.parent if folder.name == "scene" else folder
    scene = load_scene(folder, resolve_device(config.device))
    images, times = _input_of(run, config.num_frames)
    written = write_pictures(
        Path(config.output) if config.output else run,
        scene,
        images,
        config.size,
        config.orbit_pictures,
        config.num_azimuths,
        config.elevation_deg,
        times,
        label="render",
    )
    print(f"written: {', '.join(map(str, written))}")


def _input_of(run: Path, num_frames: int) -> tuple[Tensor | None, Tensor]:
    """The run's input on white [F, 3, S, S] and its times [F]; without one, None and evenly spaced times."""
    path = run / "input.safetensors"
    if not path.is_file():
        return None, torch.linspace(0, 1, num_frames)
    tensors, _ = load_tensors(path)
    missing = {"rgba", "times"} - tensors.keys()
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: it is not the input of a fit; remove it")
    return composite(tensors["rgba"]), tensors["times"]
