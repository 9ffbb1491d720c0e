"""Inputs with which the verbs run in seconds: a recipe of a tiny fit, and a folder with all kinds of inputs."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_model import FRAMES, balls, picture, tiny_clip, write_clips, write_model

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import write_clip
from fourdiffusion.media.animation import write_gif
from fourdiffusion.media.write import write_image, write_video

FIT_RECIPE = """# @package _global_
# two steps without SDS
num_frames: 4
crop: frame
device: cpu
max_steps: 2
preview_minutes: 0
trackers: []
sds: {source: "off", resolutions: [8], resolution_milestones: [0]}
loss: {anchor: false, lambda_rgb: 10, rgb_rays: 64}
scene:
  renderer: {num_samples: 16, occupancy_resolution: 8}
  field:
    hidden_width: 8
    space: {num_levels: 2, log2_hashmap_size: 8, base_resolution: 4}
    spacetime: {num_levels: 2, log2_hashmap_size: 8, base_resolution: 4}
"""


def write_frames(folder: Path) -> Path:
    """Write four frames of three moving balls, seen from azimuth 0."""
    centers = balls(0, torch.linspace(0, 1, FRAMES))
    for number, frame in enumerate(picture(cameras.orbit(torch.zeros(FRAMES)), centers)):
        write_image(folder / f"{number}.png", frame)
    return folder


def write_recipe(folder: Path) -> Path:
    """Write a user's folder of configs: `--config-dir FOLDER experiment=my_recipe` is the recipe above."""
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment/my_recipe.yaml").write_text(FIT_RECIPE)
    return folder


def write_everything(folder: Path) -> Path:
    """Write what the commands in the docs name: videos, a model, a fitted run, clips, objects, a camera path."""
    from fourdiffusion.api import fit_scene

    frames = write_frames(folder / "frames")
    for number in range(FRAMES, 8):
        shutil.copy(frames / "0.png", frames / f"{number}.png")
    rgba = picture(cameras.orbit(torch.zeros(FRAMES)), balls(0, torch.linspace(0, 1, FRAMES)))
    rgb = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
    write_video(folder / "cat.mp4", rgb, 8.0)
    write_gif(folder / "cat.gif", (rgba * 255).round().to(torch.uint8).movedim(1, -1).numpy(), 8.0)
    model = write_model(folder / "data/models/small")
    write_clips(folder / "clips")
    for name in ("CLIP", "data/sample/truth"):
        write_clip(folder / name, tiny_clip(0))
    for name in ("c4d/gt", "c4d/pred", "c4d/other"):
        for view in range(4):
            for number in range(FRAMES):
                write_image(folder / name / f"cat/view_{view}/{number:03}.png", rgb[number].roll(view, -1))
    fit_scene(folder / "cat.mp4", folder / "runs/cat", **tiny_fit(str(model)))
    shutil.copytree(folder / "runs/cat", folder / "runs/clip")
    (folder / "cache/weights").mkdir(parents=True)
    tour = {"frames": [{"azimuth_deg": 30.0}, {"azimuth_deg": 60.0}]}
    (folder / "tour.json").write_text(json.dumps(tour))
    return folder


def tiny_fit(model: str) -> dict[str, Any]:
    """Return the settings of the recipe, with a model."""
    return yaml.safe_load(FIT_RECIPE) | {"model": {"path": model}}
