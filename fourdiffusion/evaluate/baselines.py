"""What a run is compared with beside the copied input: its base model frame by frame, and a static scene a frame.

Both know what the run knew: the input video, its prompt, seed and model, or the videos that it generated.
Letters: V views, F frames, S the side of a square picture in pixels.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm

from fourdiffusion.datasets.clips import Clip
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.loading import open_pipeline
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.documents import read_yaml
from fourdiffusion.errors import UserError
from fourdiffusion.ops import hash_grid, volume_rendering
from fourdiffusion.randomness import stream
from fourdiffusion.ranges import from_values
from fourdiffusion.runs import folder_digest
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.optimization import check_density, make_optimizer
from fourdiffusion.scene.render_pass import random_pixel_rays
from fourdiffusion.scene.renderer import OccupancyGrid, render
from fourdiffusion.scene.scene import Scene
from fourdiffusion.scene.settings import SceneConfig

RAYS = 2048  # of a step
LEARNING_RATES = (1e-2, 1e-3)  # of grids and MLPs, the paper's
OCCUPANCY_EVERY = 16  # steps


def run_settings(folder: Path) -> dict[str, Any]:
    """Return the settings and the digests in a run's config.yaml. UserError where it has none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.yaml, which says what model and settings made it")
    record = read_yaml(path, "run the fit again")
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings: run the fit again")
    return settings | {"content": record.get("content") or {}}


def base_model_videos(folder: Path, images: Tensor, generated: Clip, device: torch.device) -> Tensor:
    """Sample a run's views again with its motion layers off, frame by frame: [V, F, 3, S, S] in [0, 1].

    Args:
        folder: the run; its config.yaml names model, prompt and seed.
        images: the input video on white [F, 3, S', S'].
        generated: the run's videos: where the views stand.

    UserError where the model is not there any more, or another one.
    """
    settings = run_settings(folder)
    try:
        model = from_values(ModelConfig, settings["model"])
        prompt, seed = str(settings["prompt"]), int(settings["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.yaml does not tell model, prompt and seed ({error})") from error
    place, digest = Path(str(model.path)), settings["content"].get("model.path")
    if not place.is_dir():
        raise UserError(f"the run's model {place} is not there: evaluate where it is")
    if digest is not None and folder_digest(place) != digest:
        raise UserError(f"{place} is another model by now than the one that made the run")
    pipeline = open_pipeline(model, device)
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=pipeline.generation_config.num_inference_steps, desc="base model", leave=False) as bar:
        return generate_views(
            pipeline,
            images,
            prompt,
            c2w=generated.c2w,
            generator=generator,
            use_motion=False,
            progress=bar.update,
        )


def static_scenes(folder: Path, generated: Clip, steps: int, device: torch.device) -> list[Scene]:
    """Fit one static scene to the generated views of each frame alone, by the colors of random pixels.

    The scene's settings are the run's; squared error on white, the paper's learning rates. A scene is at time 0.
    """
    settings = run_settings(folder)
    try:
        config = from_values(SceneConfig, settings["scene"])
        seed = int(settings["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.yaml does not tell scene and seed ({error})") from error
    rgba = generated.rgba.float() / 255
    views = rgba[:, :, :3] * rgba[:, :, 3:] + 1 - rgba[:, :, 3:]
    frames = tqdm(range(views.shape[1]), desc="static scenes", leave=False)
    return [_static_scene(config, views[:, frame], generated, steps, seed, device) for frame in frames]


def _static_scene(config: SceneConfig, views: Tensor, clip: Clip, steps: int, seed: int, device: torch.device) -> Scene:
    """Fit a scene to pictures [V, 3, S, S] of the clip's cameras."""
    grids = {3: config.field.space, 4: config.field.spacetime}
    try:
        grid = hash_grid.resolve_backend("scene.grid_backend", config.grid_backend, grids, device)
        ray = volume_rendering.resolve_backend("scene.ray_backend", config.ray_backend, device)
        scene = Scene(
            DynamicField(config.field, seed, grid).to(device),
            OccupancyGrid(config.renderer, ray).to(device),
            dataclasses.replace(config.renderer),
        )
    except ValueError as error:
        raise UserError(f"static_scene: {error}") from error
    optimizer = make_optimizer(scene, *LEARNING_RATES)
    times, white = torch.zeros(1), torch.ones(3, device=device)
    for number in range(steps):
        generator = stream(seed, 0, number)
        if number % OCCUPANCY_EVERY == 0:
            scene.occupancy.update(scene.field.density, times.to(device), generator)
            check_density(scene.occupancy, number, "the number of steps", "baseline_steps")
        rays, _, view, row, column = random_pixel_rays(
            clip.c2w, times, views.shape[-1], RAYS, generator, fovy_deg=clip.fovy_deg
        )
        out = render(
            scene.field, scene.occupancy, rays.origins.to(device), rays.directions.to(device), rays.times.to(device),
            white, scene.renderer, rays.jitter.to(device), scene.field.density,
        )  # fmt: skip
        mse_loss(out.rgb, views[view, :, row, column].to(device)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    scene.occupancy.update(scene.field.density, times.to(device), stream(seed, 1, 0))
    return scene
