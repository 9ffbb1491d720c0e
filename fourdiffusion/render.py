"""Verb `render`: render pictures and videos of a fitted scene."""

import difflib
import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.media.animation import write_gif, write_pictures, write_webm
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import write_image, write_video
from fourdiffusion.scene import pictures
from fourdiffusion.scene.frames import CHANNELS, render_path
from fourdiffusion.scene.paths import PATHS, CameraPath, camera_path, nearest_times, read_path
from fourdiffusion.scene.run_input import NAME, read_run_input
from fourdiffusion.scene.scene import load_scene, scene_folder
from fourdiffusion.settings import RenderConfig

FORMATS = ("mp4", "webm", "gif", "png")
GRAYS = {"white": 1.0, "gray": 0.5, "black": 0.0}
SECONDS = 4.0  # default length of a video


def render(config: RenderConfig) -> None:
    """Write the overview's pictures, or the still or video of a camera path, atomically."""
    _check(config)
    folder = scene_folder(Path(config.scene))
    run = folder.parent if folder.name == "scene" else folder
    if config.path == "overview":
        _overview(config, folder, run)
        return
    # All checks come before the rendering.
    background = parse_background(config.background)
    path, name = _path(config)
    format, output = _output(config, run, name, len(path.times))
    if background is None and format == "mp4":
        raise UserError("an mp4 holds no transparency: give format=webm, gif or png, or another background=")
    if not config.between_frames:
        path.times = nearest_times(path.times, _input_of(run, config.num_frames)[1])
    scene = load_scene(folder, resolve_device(config.device))
    frames = render_path(scene, path, config.size, config.width or config.size, config.channel, background, config.path)
    _write(output, frames, config.fps if path.fps is None else path.fps, format)
    print(f"written: {output}")


def parse_background(text: str) -> Tensor | None:
    """Return the color [3] in [0, 1] of a setting; None for transparent."""
    if text == "transparent":
        return None
    if text in GRAYS:
        return torch.full((3,), GRAYS[text])
    if match := re.fullmatch("#?([0-9a-fA-F]{6})", text):
        return torch.tensor([int(match[1][i : i + 2], 16) / 255 for i in (0, 2, 4)])
    raise UserError(f"background={text}: give white, gray, black, transparent, or a color such as #80c0ff")


def _check(config: RenderConfig) -> None:
    for name in ("size", "orbit_pictures", "num_azimuths", "num_frames"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} is too small; give at least 1")
    if config.width is not None and config.width < 1:
        raise UserError(f"width={config.width} is too small; give at least 1")
    if not -90 < config.elevation_deg < 90:
        raise UserError(f"elevation_deg={config.elevation_deg}; give degrees between -90 and 90")
    if config.time is not None and not 0 <= config.time <= 1:
        raise UserError(f"time={config.time}; give a time from 0, the clip's beginning, to 1, its end")
    for name in ("fps", "seconds", "distance"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}={value} must be positive")
    for name in ("azimuth_deg", "turns"):
        if not math.isfinite(getattr(config, name)):
            raise UserError(f"{name}={getattr(config, name)} must be a finite number")
    if config.channel not in CHANNELS:
        raise UserError(f"channel={config.channel}: use {', '.join(CHANNELS)}")
    if config.format is not None and config.format not in FORMATS:
        raise UserError(f"format={config.format}: use {', '.join(FORMATS)}")
    known = ["overview", *PATHS]
    if config.path not in known and not config.path.endswith(".json"):
        alike = difflib.get_close_matches(config.path, known, n=1)
        remedy = f"did you mean {alike[0]}?" if alike else f"use {', '.join(known)}, or a FILE.json"
        raise UserError(f"path={config.path}: there is no such path, {remedy}")


def _overview(config: RenderConfig, folder: Path, run: Path) -> None:
    scene = load_scene(folder, resolve_device(config.device))
    images, times = _input_of(run, config.num_frames)
    written = pictures.write_pictures(
        Path(config.output) if config.output else run,
        scene,
        images,
        config.size,
        config.orbit_pictures,
        config.num_azimuths,
        config.elevation_deg,
        times,
        label="render",
        input_camera=pictures.recorded_camera(run),
    )
    print(f"written: {', '.join(map(str, written))}")


def _path(config: RenderConfig) -> tuple[CameraPath, str]:
    """Return the cameras and times to render, and their name."""
    if config.path.endswith(".json"):
        return read_path(Path(config.path)), Path(config.path).stem
    num_pictures = max(round((config.seconds or SECONDS) * config.fps), 1)
    time = config.time if config.time is not None else 0.5 if config.path == "bullet_time" else 0.0
    pose = config.azimuth_deg, config.elevation_deg, time, config.turns, config.distance
    return camera_path(config.path, num_pictures, *pose), config.path


def _output(config: RenderConfig, run: Path, name: str, num_pictures: int) -> tuple[str, Path]:
    """Return the format and the file to write, or the folder where several PNGs go."""
    ending = Path(config.output).suffix.lstrip(".") if config.output else ""
    format = config.format or (ending if ending in FORMATS else "png" if num_pictures == 1 else "mp4")
    several = format == "png" and num_pictures > 1
    stem = name if config.channel == "rgb" else f"{name}_{config.channel}"
    output = Path(config.output) if config.output else run / "render" / (stem if several else f"{stem}.{format}")
    if several and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"output={output} is there already: choose another output, or delete it")
    if not several and (output.suffix != f".{format}" or output.is_dir()):
        raise UserError(f"output={output}: the name of a {format} file ends in .{format}")
    return format, output


def _write(output: Path, frames: np.ndarray, fps: float, format: str) -> None:
    if format == "png" and len(frames) == 1:
        image = torch.from_numpy(frames[0]).movedim(-1, 0) / 255
        write_image(output, image if (frames[..., 3] < 255).any() else image[:3])
    elif format == "png":
        write_pictures(output, frames)
    elif format == "webm":
        write_webm(output, frames, fps)
    elif format == "gif":
        write_gif(output, frames, fps)
    else:
        write_video(output, torch.from_numpy(frames[..., :3]).movedim(-1, 1) / 255, fps, min_side=1)


def _input_of(run: Path, num_frames: int) -> tuple[Tensor | None, Tensor]:
    """Return the run's input on white [F, 3, S, S] and its times [F]; without one, None and evenly spaced times."""
    found = read_run_input(run)
    if found is None:
        return None, torch.linspace(0, 1, num_frames)
    rgba, times = found
    if rgba is None:
        raise UserError(f"{run / NAME} lacks rgba: it is not the input of a fit; remove it")
    return composite(rgba), times
