"""``fit views=``: fit a scene to simultaneous videos of one object from known cameras.

Random pixels of all views and frames are rendered and compared; pictures with alpha are compared over all backgrounds,
so that fog of the background's color cannot fill empty space. No model is needed.
Letters: F frames, V views, H W pixels, R rays.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.cameras import azimuth_deg, rays
from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.readers import open_views
from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.fit_views.pixels import PixelSet, load_pixels, normalizing_transform, to_scene, visual_hull
from fourdiffusion.fit_views.settings import BACKGROUNDS, FitViewsConfig
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import contact_sheet, write_image
from fourdiffusion.metrics.image import psnr
from fourdiffusion.metrics.lpips import TRUNKS, Lpips, load_lpips
from fourdiffusion.ops import hash_grid, volume_rendering
from fourdiffusion.randomness import stream
from fourdiffusion.ranges import check_numbers
from fourdiffusion.runs import (
    append_log,
    deferred_signals,
    lock_folder,
    open_run,
    optimizer_tensors,
    save_checkpoint,
    tensor_digest,
    terminable,
)
from fourdiffusion.scene import losses
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.optimization import check_density, check_finite, make_optimizer, resume, scene_tensors
from fourdiffusion.scene.pictures import write_pictures
from fourdiffusion.scene.render_pass import Rays
from fourdiffusion.scene.renderer import OccupancyGrid, RenderOutput, due_times, render, render_image
from fourdiffusion.scene.scene import Scene, save_scene
from fourdiffusion.tracking import check_trackers, trackers

FREE = {
    "max_steps", "log_every", "checkpoint_minutes", "trackers", "device",
    "scene.grid_backend", "scene.ray_backend", "lpips_weights",
}  # fmt: skip
RATES = "grid_lr or mlp_lr"  # settings that can make a fit diverge
WARM_UP_STEPS = 20  # of the learning rate
SHEET_ROWS = 8  # most views in the contact sheet of held-out views


@dataclass
class Problem:
    """Inputs of a training step."""

    config: FitViewsConfig
    pixels: PixelSet
    scene: Scene
    hull: Tensor  # bool [G, G, G], cells inside the visual hull
    background: str  # random | white | black
    perceptual: Lpips | None = None


def fit_views(config: FitViewsConfig) -> None:
    """Fit a scene, or resume from the last checkpoint (bit-identical on CPU)."""
    _check_settings(config)
    output, device = Path(config.output), resolve_device(config.device)
    with terminable():
        clip = open_views(
            Path(config.views), config.azimuths_deg, config.elevation_deg, config.fovy_deg, config.distance
        )
        views, frames = _chosen(config, clip)
        _, _, _, height, width = clip.pictures.shape
        center, scale = torch.zeros(3), 1.0
        if config.recenter:
            center, scale = normalizing_transform(clip.c2w, clip.fovy_deg, width / height)
        c2w = to_scene(clip.c2w, center, scale)
        pixels = load_pixels(clip, views, frames, c2w)
        scene, perceptual = _new_scene(config, device), _perceptual(config, height, width)
        if perceptual is not None:
            perceptual.to(device)
        with lock_folder(output):
            open_run(output, config, FREE, content={"views": _digest(pixels)})
            _record(output, clip, views, frames, center, scale)
            renderer = config.scene.renderer
            hull = visual_hull(pixels, renderer.occupancy_resolution, renderer.radius).to(device)
            background = config.background
            if background == "auto":
                background = "random" if pixels.has_alpha else "white"
            tqdm.write(_summary(clip, pixels, hull, background, scale))
            optimize(Problem(config, pixels, scene, hull, background, perceptual), output)
            save_scene(output / "scene", scene)
            _measure(config, output, scene, clip, frames, c2w)
            pictures = write_pictures(output, scene, None, min(height, 256), times=pixels.times)
            tqdm.write(f"scene: {output / 'scene'}; pictures: {', '.join(map(str, pictures))}")


def optimize(problem: Problem, output: Path) -> None:
    """Run the steps from the last checkpoint to ``max_steps``, with log and checkpoints."""
    config, scene = problem.config, problem.scene
    optimizer = make_optimizer(scene, config.grid_lr, config.mlp_lr)
    start = resume(output, scene, optimizer, "fit_views")
    if start == 0:
        scene.occupancy.occupied.copy_(problem.hull)
    bar = tqdm(range(start, config.max_steps), "fit", config.max_steps, initial=start)
    saved, recent = time.monotonic(), list[dict[str, Tensor]]()
    with (
        deferred_signals() as interrupted,
        trackers(config.trackers, output, start, dataclasses.asdict(config)) as track,
    ):
        for number in bar:
            progress = number / config.max_steps
            recent.append(update(problem, optimizer, number, progress, stream(config.seed, 0, number)))
            done = number + 1
            if done % config.log_every == 0 or done == config.max_steps:
                means = {name: torch.stack([terms[name] for terms in recent]).mean().item() for name in recent[0]}
                bar.set_postfix_str(" ".join(f"{name}={value:.4g}" for name, value in means.items()), refresh=False)
                append_log(output, {"step": done, **means})
                track(means, done)
                recent.clear()
            stopping = interrupted()
            due = time.monotonic() - saved > 60 * config.checkpoint_minutes
            if due or done == config.max_steps or stopping:
                save_checkpoint(output, "fit_views", scene_tensors(scene) | optimizer_tensors(optimizer), done)
                saved = time.monotonic()
            if stopping:
                interrupted.leave()


def update(
    problem: Problem, optimizer: torch.optim.Optimizer, number: int, progress: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Run one step: draw pixels, render, losses, backward, step. Return the unweighted terms and "loss".

    ``progress`` in [0, 1] is the share of completed steps; the learning rates fall with it.
    """
    config, scene, pixels = problem.config, problem.scene, problem.pixels
    device = scene.occupancy.density.device
    _update_occupancy(problem, number, generator)
    drawn, rgba = pixels.draw(config.num_rays, config.foreground_share, generator)
    rgba = rgba.to(device)
    behind = 1.0 if problem.background == "white" else 0.0
    background = torch.full((3,), behind, device=device)
    out = _rendered(scene, drawn, background)
    alpha = rgba[:, 3:]
    if problem.background == "random":
        terms = {"rgb": losses.error_over_backgrounds(out.rgb, out.opacity, rgba)}
    else:
        terms = {"rgb": functional.mse_loss(out.rgb, rgba[:, :3] * alpha + background * (1 - alpha))}
    if pixels.has_alpha:
        terms["alpha"] = functional.mse_loss(out.opacity, rgba[:, 3])
    if problem.perceptual is not None:
        terms["lpips"] = _patch_distance(problem, problem.perceptual, generator)
    weights = {"rgb": 1.0, "alpha": config.lambda_alpha, "lpips": config.lambda_lpips}
    loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    check_finite(terms, "the loss term", number, RATES)
    loss.backward()
    factor = min(1.0, (number + 1) / WARM_UP_STEPS) * config.lr_decay**progress
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    parameters = dict(scene.field.named_parameters())
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    check_finite(gradients, "the gradient of", number, RATES)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    check_finite({name: value.detach() for name, value in parameters.items()}, "the weight", number, RATES)
    return {name: value.detach() for name, value in (terms | {"loss": loss}).items()}


def _rendered(scene: Scene, drawn: Rays, background: Tensor) -> RenderOutput:
    device = background.device
    return render(
        scene.field, scene.occupancy, drawn.origins.to(device), drawn.directions.to(device), drawn.times.to(device),
        background, scene.renderer, drawn.jitter.to(device), scene.field.density,
    )  # fmt: skip


def _patch_distance(problem: Problem, perceptual: Lpips, generator: torch.Generator) -> Tensor:
    """Return LPIPS of a random square of a view on white, or on black if that is the background."""
    side, device = problem.config.patch_size, problem.scene.occupancy.density.device
    background = torch.full((3,), 0.0 if problem.background == "black" else 1.0, device=device)
    drawn, rgba = problem.pixels.draw_patch(side, generator)
    rgba = rgba.to(device)
    truth = rgba[:, :3] * rgba[:, 3:] + background * (1 - rgba[:, 3:])
    rendered = _rendered(problem.scene, drawn, background).rgb.clamp(0, 1)
    return perceptual(*(value.view(side, side, 3).movedim(-1, 0)[None] for value in (rendered, truth))).mean()


def _update_occupancy(problem: Problem, number: int, generator: torch.Generator) -> None:
    """Update the grid at the due times; cells outside the visual hull stay empty."""
    config, occupancy = problem.config, problem.scene.occupancy
    times, share = due_times(problem.pixels.times, number, config.occupancy_every)
    if number == 0 or not len(times):
        return  # the visual hull is better than a randomly initialized field
    times = times.to(occupancy.density.device)
    occupancy.update(problem.scene.field.density, times, generator, share, within=problem.hull)
    if number < config.occupancy_every:  # not all times have been sampled yet
        occupancy.occupied.copy_(problem.hull)
    if number % config.occupancy_every == 0:
        check_density(occupancy, number, "lambda_alpha", RATES)


# ---- before the first step ------------------------------------------------------------------------------------------


def _check_settings(config: FitViewsConfig) -> None:
    check_trackers(config.trackers)
    check_numbers(config)
    if config.background not in BACKGROUNDS:
        raise UserError(f"background={config.background} is not one of {', '.join(BACKGROUNDS)}")
    if config.scene.field.radius != config.scene.renderer.radius:
        raise UserError(
            f"scene.field.radius={config.scene.field.radius:g} and scene.renderer.radius="
            f"{config.scene.renderer.radius:g} differ: the renderer samples the field's cube"
        )


def _chosen(config: FitViewsConfig, clip: ClipFiles) -> tuple[list[int], list[int]]:
    """Return the indices of the fitted views and frames."""
    num_views, num_frames = clip.pictures.shape[:2]
    frames = list(range(0, num_frames, config.frame_stride))[: config.num_frames or num_frames]
    if config.num_frames is not None and len(frames) < config.num_frames:
        raise UserError(
            f"num_frames={config.num_frames}: {clip.uid} has {num_frames} frames, {len(frames)} of them at "
            f"frame_stride={config.frame_stride}; lower one of the two"
        )
    for view in config.held_out:
        if not 0 <= view < num_views:
            raise UserError(f"held_out={config.held_out}: {clip.uid} has the views 0 to {num_views - 1}")
    views = [view for view in range(num_views) if view not in config.held_out]
    if not views:
        raise UserError(f"held_out={config.held_out} leaves no view of {clip.uid} to fit")
    return views, frames


def _new_scene(config: FitViewsConfig, device: torch.device) -> Scene:
    field, renderer = config.scene.field, config.scene.renderer
    try:
        grids = {3: field.space, 4: field.spacetime}
        grid_backend = hash_grid.resolve_backend("scene.grid_backend", config.scene.grid_backend, grids, device)
        ray_backend = volume_rendering.resolve_backend("scene.ray_backend", config.scene.ray_backend, device)
        return Scene(
            DynamicField(field, config.seed, grid_backend).to(device),
            OccupancyGrid(renderer, ray_backend).to(device),
            renderer,
        )
    except ValueError as error:
        raise UserError(f"scene: {error}") from error


def _perceptual(config: FitViewsConfig, height: int, width: int) -> Lpips | None:
    """Return LPIPS if a term uses it; UserError if its weights are missing or pictures are too small for it."""
    if config.lambda_lpips == 0:
        return None
    if config.lpips_net not in TRUNKS:
        raise UserError(f"lpips_net={config.lpips_net} is not one of {', '.join(TRUNKS)}")
    smallest, largest = TRUNKS[config.lpips_net].min_side, min(height, width)
    if not smallest <= config.patch_size <= largest:
        raise UserError(
            f"patch_size={config.patch_size}: LPIPS on {config.lpips_net} needs {smallest} pixels at least, and the "
            f"pictures have {width} x {height}"
        )
    lpips = load_lpips(config.lpips_weights, config.lpips_net)
    if lpips is None:
        raise UserError(
            f"lambda_lpips={config.lambda_lpips:g}: no weights of LPIPS on {config.lpips_net} on this disk; "
            "lpips_weights=FOLDER names them (docs/weights.md), lambda_lpips=0 disables it"
        )
    return lpips


def _digest(pixels: PixelSet) -> str:
    parts = [tensor_digest(value) for value in (pixels.rgba, pixels.c2w, pixels.times)]
    return tensor_digest(torch.tensor([list(bytes.fromhex(part)) for part in parts], dtype=torch.uint8))


def _record(output: Path, clip: ClipFiles, views: list[int], frames: list[int], center: Tensor, scale: float) -> None:
    """Write ``input.json``: the fitted data, and the transform from the clip's world to the scene's."""
    record = {
        "views": views,
        "frames": frames,
        "times": [round(float(clip.times[frame]), 6) for frame in frames],
        "azimuths_deg": [round(float(angle), 3) for angle in azimuth_deg(clip.c2w)],
        "world_to_scene": {"center": [round(float(value), 6) for value in center], "scale": round(scale, 6)},
        "caption": clip.caption,
        "license": clip.license,
        "author": clip.author,
        "source": clip.source,
    }
    text = json.dumps(record, indent=1) + "\n"
    write_atomic(output / "input.json", lambda partial: partial.write_text(text, encoding="utf-8"))


def _summary(clip: ClipFiles, pixels: PixelSet, hull: Tensor, background: str, scale: float) -> str:
    num_frames, num_views, height, width = pixels.shape
    words = f"{clip.uid}: {num_views} views x {num_frames} frames of {width} x {height} pixels, background {background}"
    if pixels.has_alpha:
        words += f"; the silhouettes leave {100 * float(hull.float().mean()):.1f} percent of the cube"
    else:
        words += "; warning: no picture has alpha, so the background is fitted as part of the object"
    return words if scale == 1 else f"{words}; the cameras' world is scaled by {scale:.3g}"


# ---- after the last step --------------------------------------------------------------------------------------------


def _measure(
    config: FitViewsConfig, output: Path, scene: Scene, clip: ClipFiles, frames: list[int], c2w: Tensor
) -> None:
    """Render the held-out views on white, write ``held_out.json`` and a contact sheet of truth above render."""
    if not config.held_out:
        return
    rows, scores = list[Tensor](), dict[str, float]()
    shown = frames[:: max(1, len(frames) // 8)]
    for view in tqdm(config.held_out, "measuring", leave=False):
        truth = composite(clip.pictures[view, frames].float() / 255)
        rendered = render_frames(scene, c2w[view], clip.fovy_deg, clip.times[frames], truth.shape[-2], truth.shape[-1])
        scores[str(view)] = round(float(psnr(rendered, truth).mean()), 4)
        if len(rows) < 2 * SHEET_ROWS:
            index = [frames.index(frame) for frame in shown]
            rows += [truth[index], rendered[index]]
    mean = sum(scores.values()) / len(scores)
    text = json.dumps({"psnr": round(mean, 4), "views": scores}, indent=1) + "\n"
    write_atomic(output / "held_out.json", lambda partial: partial.write_text(text, encoding="utf-8"))
    write_image(output / "held_out.png", contact_sheet(torch.stack(rows)))
    tqdm.write(f"held-out views: PSNR {mean:.2f} dB (mean over {len(scores)} views x {len(frames)} frames)")


def render_frames(scene: Scene, c2w: Tensor, fovy_deg: float, times: Tensor, height: int, width: int) -> Tensor:
    """Return pictures of one camera [4, 4] at times [F] on white, [F, 3, H, W] in [0, 1], on the CPU."""
    device = scene.occupancy.density.device
    origins, directions = (value.to(device) for value in rays(c2w, fovy_deg, height, width))
    white, pictures = torch.ones(3, device=device), []
    for moment in times:
        rgb, _, _ = render_image(
            scene.field, scene.occupancy, origins, directions, moment.to(device), white, scene.renderer,
            scene.field.density,
        )  # fmt: skip
        pictures.append(rgb.clamp(0, 1).cpu())
    return torch.stack(pictures)
