"""``fit``: a monocular video becomes a moving 3-D object (paper section 4).

4DM first turns the video into V orthogonal videos (``setup``); then a dynamic NeRF is optimized under 4D-aware score
distillation, the anchor loss, regularizers and, where asked, the generated views themselves (``step``).
Letters: F frames, V views, R rays, S image side.
"""

import dataclasses
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion.loading import resolve_dtype
from fourdiffusion.fit import setup, step
from fourdiffusion.fit.settings import FitConfig
from fourdiffusion.fit.step import Problem, StepPlan
from fourdiffusion.randomness import stream
from fourdiffusion.runs import (
    append_log,
    deferred_signals,
    lock_folder,
    optimizer_tensors,
    save_checkpoint,
    terminable,
)
from fourdiffusion.scene import losses
from fourdiffusion.scene.optimization import check_density, check_finite, make_optimizer, resume, scene_tensors
from fourdiffusion.scene.pictures import write_pictures
from fourdiffusion.scene.render_pass import Rays, RenderPass
from fourdiffusion.scene.renderer import due_times
from fourdiffusion.scene.scene import save_scene
from fourdiffusion.tracking import trackers

CULPRITS = "loss.lambda_sparsity and sds.weight"  # settings that empty a scene where they are too high
RATES = "grid_lr, mlp_lr or sds.weight"  # settings that make it diverge
FRAMES_EACH_ROUND = 8  # that the occupancy grid looks at in ``occupancy_every`` steps, however long the video


def fit(config: FitConfig) -> None:
    """Fit a scene; run again, it goes on from the last checkpoint, bit for bit on CPU."""
    setup.check_settings(config)
    output = Path(config.output)
    config = replace(config, model=resolve_dtype(config.model, resolve_device(config.device), output))
    with terminable():
        inputs = setup.read_inputs(config)
        with lock_folder(output):
            problem = setup.open_problem(config, inputs)
            optimize(problem, output)
            save_scene(output / "scene", problem.scene)
            target, size = problem.target, problem.pipeline.generation_config.image_size
            camera = (target.input.c2w, target.input.fovy_deg)
            pictures = write_pictures(
                output, problem.scene, target.images, size, times=target.times, input_camera=camera
            )
            tqdm.write(f"scene: {output / 'scene'}; pictures: {', '.join(map(str, pictures))}")


def optimize(problem: Problem, output: Path) -> None:
    """Run the steps from the last checkpoint to ``max_steps``, with log, checkpoints and previews."""
    config, scene, target = problem.config, problem.scene, problem.target
    optimizer = make_optimizer(scene, config.grid_lr, config.mlp_lr)
    start = resume(output, scene, optimizer, "fit")
    bar = tqdm(range(start, config.max_steps), "fit", config.max_steps, initial=start)
    saved = shown = time.monotonic()
    recent: dict[str, list[Tensor]] = {}  # since the last line of the log; a term may miss at most steps
    with (
        deferred_signals() as interrupted,
        trackers(config.trackers, output, start, dataclasses.asdict(config)) as track,
    ):
        for number in bar:
            plan = step.plan_step(config, number)
            terms = update(problem, optimizer, plan, stream(config.seed, 0, number))

            done, now = number + 1, time.monotonic()
            bar.set_postfix_str(_show(terms), refresh=False)
            for name, value in terms.items():
                recent.setdefault(name, []).append(value)
            if done % config.log_every == 0 or done == config.max_steps:
                means = {name: torch.stack(values).mean().item() for name, values in recent.items()}
                append_log(output, {"step": done, **means})
                track(means, done)
                recent.clear()
            stopping = interrupted()
            if now - saved > 60 * config.checkpoint_minutes or done == config.max_steps or stopping:
                save_checkpoint(output, "fit", scene_tensors(scene) | optimizer_tensors(optimizer), done)
                saved = time.monotonic()
            if stopping:
                interrupted.leave()
            if config.preview_minutes and now - shown > 60 * config.preview_minutes:
                camera = (target.input.c2w, target.input.fovy_deg)
                write_pictures(
                    output / "preview", scene, target.images, 64, 16, times=target.times, input_camera=camera
                )
                shown = time.monotonic()


def update(
    problem: Problem, optimizer: torch.optim.Optimizer, plan: StepPlan, generator: torch.Generator
) -> dict[str, Tensor]:
    """Do one step: render, losses, backward, step. Return the unweighted terms and their weighted sum, "loss"."""
    config, scene, target, weights = problem.config, problem.scene, problem.target, plan.weights
    _update_occupancy(problem, plan.step, generator)
    terms: dict[str, Tensor] = {}
    passes = []

    if plan.random_side:  # V orthogonal views from a random side: SDS (Eq. 10) and the regularizers
        draw = step.draw_side(problem, plan, generator)
        rays, of_normals = step.side_rays(problem, plan, draw, generator)
        side = RenderPass(scene, rays, config.sds.ray_chunk, weights["orientation"] > 0 and of_normals is None)
        passes.append(side)
        oriented = side
        if of_normals is not None:
            oriented = RenderPass(scene, of_normals, config.sds.ray_chunk, with_normals=True)
            passes.append(oriented)
        if plan.sds:
            shape = (len(draw.frames), len(draw.c2w), plan.resolution, plan.resolution, 3)
            images = side.rgb.view(shape).movedim(-1, 2)
            loss, gradient = step.distill(problem, plan, draw, images.detach(), generator)
            terms["sds"] = losses.with_gradient(images, loss, gradient)
        terms |= step.regularizers(side, oriented, weights)

    if weights["perceptual"] or weights["d_ssim"]:  # one frame of the anchor view (Eq. 11)
        frame, rays = step.draw_anchor(target, problem.pipeline.generation_config.image_size, generator)
        anchor = RenderPass(scene, rays, config.sds.ray_chunk)
        passes.append(anchor)
        image = anchor.rgb.view(1, *target.views.shape[-2:], 3).movedim(-1, 1)
        terms |= step.anchor_losses(problem, image, frame, weights)

    fitted, found = _photometric(problem, weights, generator)
    passes += fitted
    terms |= found

    loss = step.weighted_sum(terms, weights)
    check_finite(terms | {"loss": loss}, "the loss term", plan.step, RATES)
    loss.backward()
    for each in reversed(passes):
        each.backward()

    parameters = dict(scene.field.named_parameters())
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    check_finite(gradients, "the gradient of", plan.step, RATES)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * plan.lr_factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    check_finite({name: value.detach() for name, value in parameters.items()}, "the weight", plan.step, RATES)
    return {name: value.detach() for name, value in (terms | {"loss": loss}).items()}


def _photometric(
    problem: Problem, weights: dict[str, float], generator: torch.Generator
) -> tuple[list[RenderPass], dict[str, Tensor]]:
    """Render random pixels of the generated views and of the input video; return the passes and the terms."""
    config, target = problem.config, problem.target
    passes: list[RenderPass] = []
    terms: dict[str, Tensor] = {}

    def render(rays: Rays) -> RenderPass:
        chunk = config.sds.ray_chunk
        passes.append(RenderPass(problem.scene, rays, chunk, with_distortion=weights["distortion"] > 0))
        return passes[-1]

    if weights["views"] or weights["empty"]:
        rays, colors, empty = step.draw_pixels(target, config.loss.rgb_rays, generator)
        terms |= step.view_losses(render(rays), colors, empty, weights)
    if weights["input"] or weights["mask"]:
        rays, rgba = step.draw_input_pixels(target, config.loss.input_rays, generator)
        terms |= step.input_losses(render(rays), rgba, weights)
    spreads = [each.distortion for each in passes if each.distortion is not None]
    if spreads:
        terms["distortion"] = torch.cat(spreads).mean()
    return passes, terms


def _update_occupancy(problem: Problem, number: int, generator: torch.Generator) -> None:
    """Let the occupancy grid look at the frames that are due in a step."""
    occupancy, times = problem.scene.occupancy, problem.target.times
    every = problem.config.occupancy_every * max(len(times), FRAMES_EACH_ROUND) // FRAMES_EACH_ROUND
    due, share = due_times(times, number, every)
    if len(due):
        occupancy.update(problem.scene.field.density, due.to(occupancy.density.device), generator, share)
        check_density(occupancy, number, CULPRITS, RATES)


def _show(terms: dict[str, Tensor]) -> str:
    return " ".join(f"{name}={value.item():.4g}" for name, value in terms.items())
