"""One step of the 4D stage as pure functions: its schedules, its random draws, its losses.

Nothing here keeps state: a plan follows from (settings, step), a draw from a generator, a loss from tensors.
Letters: F frames, V views, R rays, S image side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion import distillation
from fourdiffusion.diffusion.pipeline import Denoiser, FourDiffusionPipeline
from fourdiffusion.fit.camera import InputCamera
from fourdiffusion.fit.settings import FitConfig
from fourdiffusion.scene import losses
from fourdiffusion.scene.render_pass import Rays, RenderPass, random_pixel_rays, view_rays
from fourdiffusion.scene.scene import Scene

REGULARIZERS = ("orientation", "opacity", "sparsity")
Perceptual = Callable[[Tensor, Tensor], Tensor]  # two batches of images [N, 3, H, W] -> their distance


@dataclass
class Target:
    """What the scene is fitted to: the input video and the generated videos, RGB in [0, 1] on white."""

    images: Tensor  # [F, 3, S, S]
    views: Tensor  # [V, F, 3, S, S]
    c2w: Tensor  # [V, 4, 4]
    times: Tensor  # [F] in [0, 1]
    anchor: int  # number of the anchor view
    rgba: Tensor  # the input at its own resolution, straight alpha, [F, 4, S', S']
    fovy_deg: Tensor  # of the views, [V]
    input: InputCamera
    focus: Tensor  # places of its pixels in and around the object, int64, in the order F, S', S'
    empty: Tensor  # where a generated view shows plain background, bool [V, F, S, S]


@dataclass
class Problem:
    """Everything that a step reads: settings, frozen networks, scene and target."""

    config: FitConfig
    pipeline: FourDiffusionPipeline
    denoiser: Denoiser
    perceptual: Perceptual
    scene: Scene
    target: Target


# ---- schedules ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepPlan:
    """The values that every schedule has at one step."""

    step: int
    sds: bool  # whether this step distills
    t_range: tuple[float, float]  # of the noise level, in fractions of the schedule
    guidance_scale: float
    resolution: int  # side of the renders from a random side, pixels
    lr_factor: float  # of both learning rates
    weights: dict[str, float]  # of every loss term; 0: the term is not computed

    @property
    def random_side(self) -> bool:
        """Whether views from a random side are rendered: for SDS, for a regularizer, or for both."""
        return self.sds or any(self.weights[name] > 0 for name in REGULARIZERS)


def plan_step(config: FitConfig, step: int) -> StepPlan:
    """Evaluate every schedule of the settings at a step."""
    sds, since = config.sds, step - config.sds.start_step
    end = sds.guidance_scale if sds.guidance_scale_end is None else sds.guidance_scale_end
    distills = sds.source != "off" and sds.weight > 0 and since >= 0 and since % sds.every == 0
    resolutions = zip(sds.resolutions, sds.resolution_milestones, strict=True)
    return StepPlan(
        step=step,
        sds=distills,
        t_range=(
            losses.ramp(since, sds.t_start, sds.t_min_end, sds.ramp_steps),
            losses.ramp(since, sds.t_start, sds.t_max_end, sds.ramp_steps),
        ),
        guidance_scale=losses.ramp(since, sds.guidance_scale, end, sds.ramp_steps),
        resolution=max(resolution for resolution, milestone in resolutions if step >= milestone),
        lr_factor=config.lr_decay ** (step / config.max_steps),
        weights=loss_weights(config, step, distills),
    )


def loss_weights(config: FitConfig, step: int, distills: bool) -> dict[str, float]:
    """Return the weight of every loss term at a step."""
    loss = config.loss
    return {
        "sds": config.sds.weight if distills else 0.0,
        "perceptual": loss.lambda_lpips if loss.anchor else 0.0,
        "d_ssim": loss.lambda_dssim if loss.anchor else 0.0,
        "views": loss.lambda_rgb,
        "empty": loss.lambda_empty,
        "input": loss.lambda_input,
        "mask": loss.lambda_mask,
        "distortion": loss.lambda_distortion,
        "orientation": losses.ramp(
            step, loss.lambda_orientation, loss.lambda_orientation_end, loss.orientation_ramp_steps
        ),
        "opacity": loss.lambda_opacity if step >= loss.opacity_start_step else 0.0,
        "sparsity": loss.lambda_sparsity if step >= loss.sparsity_start_step else 0.0,
    }


# ---- random draws ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SideDraw:
    """V orthogonal cameras at a random azimuth and at or above the input's elevation, some frames, a noise level."""

    frames: Tensor  # numbers of the frames, [F'] int64
    c2w: Tensor  # [V, 4, 4]
    t: float  # noise level, a fraction of the schedule


def draw_side(problem: Problem, plan: StepPlan, generator: torch.Generator) -> SideDraw:
    """Draw frames, azimuth, elevation and noise level of one step (method.md section 2)."""
    config, target = problem.config, problem.target
    frames = distillation.draw_window(len(target.times), problem.pipeline.generation_config.window, generator)
    offset, height, level = torch.rand(3, generator=generator).tolist()
    azimuths = cameras.orthogonal_azimuths(len(target.views), 360 * offset)
    low, high = plan.t_range
    elevation = target.input.elevation_deg + config.sds.elevation_max_deg * height
    return SideDraw(frames, cameras.orbit(azimuths, elevation), low + (high - low) * level)


def side_rays(problem: Problem, plan: StepPlan, draw: SideDraw, generator: torch.Generator) -> tuple[Rays, Rays | None]:
    """Return the rays of a step's views from a random side, and those whose normals are looked at.

    The second are None where all of the first are: no pass of their own is needed.
    """
    times, count = problem.target.times[draw.frames], problem.config.loss.orientation_frames
    rays = view_rays(draw.c2w, times, plan.resolution, generator)
    if plan.weights["orientation"] <= 0 or not 0 < count < len(times):
        return rays, None
    chosen = torch.randperm(len(times), generator=generator)[:count]
    return rays, view_rays(draw.c2w, times[chosen], plan.resolution, generator)


def draw_anchor(target: Target, side: int, generator: torch.Generator) -> tuple[int, Rays]:
    """Draw a frame, and return its number and the rays of the anchor view at that time."""
    frame = int(torch.randint(len(target.times), (), generator=generator))
    view = slice(target.anchor, target.anchor + 1)
    times = target.times[frame : frame + 1]
    return frame, view_rays(target.c2w[view], times, side, generator, target.fovy_deg[view])


def draw_pixels(target: Target, num_rays: int, generator: torch.Generator) -> tuple[Rays, Tensor, Tensor]:
    """Draw pixels of all generated views and frames.

    Returns:
        Their rays, colors [R, 3], and whether they show plain background [R].
    """
    rays, frame, view, row, column = random_pixel_rays(
        target.c2w, target.times, target.views.shape[-1], num_rays, generator, fovy_deg=target.fovy_deg
    )
    return rays, target.views[view, frame, :, row, column], target.empty[view, frame, row, column]


def draw_input_pixels(target: Target, num_rays: int, generator: torch.Generator) -> tuple[Rays, Tensor]:
    """Draw pixels of the input video at its own resolution, and return their rays and RGBA [R, 4].

    Half of them are drawn in and around the object: elsewhere there is little to learn.
    """
    camera = target.input
    rays, frame, _, row, column = random_pixel_rays(
        camera.c2w, target.times, target.rgba.shape[-1], num_rays, generator, target.focus, camera.fovy_deg
    )
    return rays, target.rgba[frame, :, row, column]


# ---- losses ---------------------------------------------------------------------------------------------------------


def distill(
    problem: Problem, plan: StepPlan, draw: SideDraw, images: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the SDS loss (Eq. 10) of renders [F', V, 3, side, side] and its gradient at them."""
    sds, scheduler = problem.config.sds, problem.pipeline.scheduler
    num_timesteps = scheduler.config.num_train_timesteps
    timestep = min(int(draw.t * num_timesteps), num_timesteps - 1)
    denoiser = problem.denoiser.at_frames(draw.frames)
    return distillation.distil(
        images, problem.pipeline.generation_config.image_size, problem.pipeline.vae,
        lambda z_t: denoiser(z_t, timestep, draw.c2w), denoiser.alphas_cumprod[timestep],
        plan.guidance_scale, sds.guidance_rescale, generator, sds.image_chunk, sds.pixel_space,
    )  # fmt: skip


def regularizers(side: RenderPass, oriented: RenderPass, weights: dict[str, float]) -> dict[str, Tensor]:
    """Return the regularizers of a pass whose weight is above 0; ``oriented`` is the pass with normals."""
    terms = {}
    if weights["orientation"] > 0:
        assert oriented.facing_away is not None
        terms["orientation"] = losses.orientation(oriented.facing_away, oriented.opacity)
    if weights["opacity"] > 0:
        terms["opacity"] = losses.opacity_entropy(side.opacity)
    if weights["sparsity"] > 0:
        terms["sparsity"] = losses.sparsity(side.opacity)
    return terms


def anchor_losses(problem: Problem, image: Tensor, frame: int, weights: dict[str, float]) -> dict[str, Tensor]:
    """Return the terms of the anchor loss (Eq. 11) of a render on white [1, 3, S, S] against a frame of its view."""
    target, loss = problem.target, problem.config.loss
    truth = target.views[target.anchor, frame][None]
    if loss.anchor_matte:
        truth = truth.masked_fill(target.empty[target.anchor, frame], 1.0)
    truth = truth.to(image.device)
    terms = {}
    if weights["perceptual"] > 0:
        terms["perceptual"] = problem.perceptual(image, truth)
    if weights["d_ssim"] > 0:
        terms["d_ssim"] = losses.dssim(image, truth, loss.dssim_border)
    return terms


def view_losses(pixels: RenderPass, colors: Tensor, empty: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
    """Return the terms of random pixels of the generated views (not in the paper).

    Args:
        pixels: rendered on white.
        colors: of the generated views, [R, 3]. empty: whether they show plain background, bool [R].
    """
    terms = {}
    if weights["views"] > 0:
        terms["views"] = functional.mse_loss(pixels.rgb, colors.to(pixels.rgb.device))
    if weights["empty"] > 0:
        terms["empty"] = (pixels.opacity * empty.to(pixels.opacity.device)).mean()
    return terms


def input_losses(pixels: RenderPass, rgba: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
    """Return the terms of random pixels of the input video (not in the paper), straight alpha, [R, 4].

    ``pixels`` is rendered on white.
    """
    rgba = rgba.to(pixels.rgb.device)
    missing = pixels.opacity - rgba[:, 3]
    terms = {}
    if weights["input"] > 0:
        emitted = pixels.rgb - (1 - pixels.opacity[:, None])
        terms["input"] = losses.error_over_backgrounds(emitted, pixels.opacity, rgba)
    if weights["mask"] > 0:
        terms["mask"] = missing.square().mean()
    return terms


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Return the loss: sum over the terms of weight * term."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
