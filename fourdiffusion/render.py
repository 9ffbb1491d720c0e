"""Verb `render`: pictures of a fitted scene."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fourdiffusion.checkpoints import load_tensors
from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.media import composite
from fourdiffusion.scene.preview import load_scene, scene_folder, write_pictures


@dataclass
class RenderConfig:
    """Which pictures of a scene to make."""

    scene: str = "???"  # the run folder of a fit, or its scene/
    output: str | None = None  # folder for the pictures; the run folder if not given
    size: int = 128  # side of a picture in pixels
    orbit_pictures: int = 72  # of the orbit video, over one turn
    num_azimuths: int = 8  # rows of the contact sheet
    elevation_deg: float = 0.0  # from where the orbit and the contact sheet look
    num_frames: int = 8  # moments shown, where the run does not hold its input's
    device: str = "auto"  # auto | cpu | cuda


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
