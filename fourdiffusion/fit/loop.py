"""``fit``: a monocular video becomes a moving 3-D object (paper section 4).

4DM first turns the video into V orthogonal videos; then a dynamic NeRF is optimised under 4D-aware score distillation,
the anchor loss and, where asked, the generated views themselves. Letters: F frames, V views, R rays, S image side.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import opaque_clip, read_clip, write_clip
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion import distillation, encoders
from fourdiffusion.diffusion.loading import open_pipeline
from fourdiffusion.diffusion.long_video import FrameGroups, frame_groups
from fourdiffusion.diffusion.pipeline import Denoiser, FourDiffusionPipeline, unconditional
from fourdiffusion.errors import UserError, check_ranges
from fourdiffusion.files import load_tensors, save_tensors
from fourdiffusion.fit.settings import GUIDANCES, FitConfig, LossConfig
from fourdiffusion.media.image import composite
from fourdiffusion.media.read import load_video
from fourdiffusion.media.write import write_views
from fourdiffusion.metrics.lpips import load_lpips
from fourdiffusion.ops import hash_grid, volume_rendering
from fourdiffusion.randomness import stream
from fourdiffusion.runs import append_log, open_run, optimizer_tensors, patient_interrupt, restore_optimizer, trim_log
from fourdiffusion.scene import losses, render_pass
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.pictures import write_pictures
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, save_scene
from fourdiffusion.scene.settings import SceneConfig
from fourdiffusion.tracking import check_trackers, trackers

EMPTY = 1e-4  # opacity of a single sample
Perceptual = Callable[[Tensor, Tensor], Tensor]  # two batches of pictures [N, 3, H, W] -> their distance


@dataclass
class Target:
    """What the scene is fitted to: the input and the generated videos, RGB in [0, 1] on white."""

    images: Tensor  # [F, 3, S, S]
    views: Tensor  # [V, F, 3, S, S]
    c2w: Tensor  # [V, 4, 4]
    times: Tensor  # [F] in [0, 1]
    anchor: int


@dataclass
class Stage:
    """All that a step of the 4D stage needs."""

    config: FitConfig
    pipeline: FourDiffusionPipeline
    denoiser: Denoiser
    perceptual: Perceptual
    scene: Scene
    target: Target

    def terms(self, step: int, weights: dict[str, float], generator: torch.Generator) -> dict[str, Tensor]:
        """The unweighted loss terms of one step, each back-propagated with its weight as soon as it is known."""
        size, target = self.config.model.image_size, self.target
        terms: dict[str, Tensor] = {}
        sds = self.config.sds
        if sds.source != "off" and sds.weight and step >= sds.start_step and (step - sds.start_step) % sds.every == 0:
            terms |= self._distilled(step, weights, generator)
        if weights["perceptual"] or weights["d_ssim"]:
            frame = int(torch.randint(len(target.times), (), generator=generator))
            camera = target.c2w[target.anchor : target.anchor + 1]
            rays = render_pass.view_rays(camera, target.times[frame : frame + 1], size, generator)
            image = render_pass.render_rays(self.scene, rays).rgb.view(1, size, size, 3).movedim(-1, 1)
            truth = target.views[target.anchor, frame][None].to(image.device)
            anchor = {"perceptual": self.perceptual(image, truth), "d_ssim": losses.dssim(image, truth)}
            terms |= render_pass.backward(anchor, weights)
        if weights["views"]:
            origins, directions, times, jitter = render_pass.view_rays(target.c2w, target.times, size, generator)
            chosen = torch.randint(len(times), (self.config.loss.rgb_rays,), generator=generator)
            rays = (origins[chosen], directions[chosen], times[chosen], jitter[chosen])
            rgb = render_pass.render_rays(self.scene, rays).rgb
            colours = target.views.transpose(0, 1).movedim(2, -1).reshape(-1, 3)[chosen]  # rays run over F, V, H, W
            terms |= render_pass.backward({"views": functional.mse_loss(rgb, colours.to(rgb.device))}, weights)
        return terms

    def _distilled(self, step: int, weights: dict[str, float], generator: torch.Generator) -> dict[str, Tensor]:
        """SDS and the regularisers on V orthogonal views from a random side (Eq. 10), back-propagated."""
        sds, model, target = self.config.sds, self.config.model, self.target
        frames = distillation.draw_window(len(target.times), model.window, generator)
        offset, height, place = torch.rand(3, generator=generator).tolist()
        azimuths = cameras.orthogonal_azimuths(len(target.views), 360 * offset)
        c2w = cameras.orbit(azimuths, sds.elevation_max_deg * height)
        side = max(r for r, at in zip(sds.resolutions, sds.resolution_milestones, strict=True) if step >= at)
        since, length = step - sds.start_step, sds.ramp_steps
        low = losses.ramp(since, sds.t_start, sds.t_min_end, length)
        high = losses.ramp(since, sds.t_start, sds.t_max_end, length)
        guidance = losses.ramp(
            since,
            sds.guidance_scale,
            sds.guidance_scale if sds.guidance_scale_end is None else sds.guidance_scale_end,
            length,
        )
        timestep = int((low + (high - low) * place) * self.pipeline.scheduler.config.num_train_timesteps)

        def teacher(rgb: Tensor) -> tuple[Tensor, Tensor]:
            images = rgb.view(len(frames), len(c2w), side, side, 3).movedim(-1, 2)
            clip = self.denoiser.at_frames(frames)
            loss, gradient = distillation.distil(
                images, model.image_size, self.pipeline.vae, lambda z_t: clip(z_t, timestep, c2w),
                self.denoiser.alphas_cumprod[timestep], guidance, sds.guidance_rescale, generator, sds.image_chunk,
                sds.pixel_space,
            )  # fmt: skip
            return loss, gradient.movedim(2, -1).reshape(-1, 3)

        rays = render_pass.view_rays(c2w, target.times[frames], side, generator)
        return render_pass.teach(self.scene, rays, weights, sds.ray_chunk, teacher)


def fit(config: FitConfig) -> None:
    """Fits a scene; run again, it goes on from the last checkpoint, bit for bit on CPU."""
    _check(config)
    output, device = Path(config.output), resolve_device(config.device)
    stage = _stage(config, output, device)
    scene, target = stage.scene, stage.target
    optimizer = torch.optim.AdamW(
        scene.field.parameter_groups(config.grid_lr, config.mlp_lr), betas=(0.9, 0.99), eps=1e-15
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    start = _resume(output, scene, optimizer)

    bar = tqdm(range(start, config.max_steps), "fit", config.max_steps, initial=start)
    saved = shown = time.monotonic()
    recent: dict[str, list[Tensor]] = {}  # since the last line of the log; a term may miss at most steps
    with (
        patient_interrupt() as interrupted,
        trackers(config.trackers, output, start, dataclasses.asdict(config)) as track,
    ):
        for step in bar:
            generator = stream(config.seed, 0, step)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * config.lr_decay ** (step / config.max_steps)
            if step % config.occupancy_every == 0:
                scene.occupancy.update(scene.field.density, target.times.to(device), generator)
                _check_matter(scene.occupancy, step)
            weights = loss_weights(config, step)
            terms = stage.terms(step, weights, generator)
            loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
            if not bool(loss.isfinite()):
                raise UserError(
                    f"the loss is {loss.item()} at step {step} ({_show(terms)}): lower grid_lr or sds.weight"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            done, now = step + 1, time.monotonic()
            bar.set_postfix_str(_show(terms), refresh=False)
            for name, value in (terms | {"loss": loss}).items():
                recent.setdefault(name, []).append(value)
            if done % config.log_every == 0 or done == config.max_steps:
                means = {name: torch.stack(values).mean().item() for name, values in recent.items()}
                append_log(output, {"step": done, **means})
                track(means, done)
                recent.clear()
            stopping = interrupted()
            if now - saved > 60 * config.checkpoint_minutes or done == config.max_steps or stopping:
                _save(output, scene, optimizer, done)
                saved = time.monotonic()
            if stopping:
                raise KeyboardInterrupt
            if config.preview_minutes and now - shown > 60 * config.preview_minutes:
                write_pictures(output / "preview", scene, target.images, 64, 16)
                shown = time.monotonic()
    save_scene(output / "scene", scene)
    pictures = write_pictures(output, scene, target.images, config.model.image_size)
    tqdm.write(f"scene: {output / 'scene'}; pictures: {', '.join(map(str, pictures))}")


def _stage(config: FitConfig, output: Path, device: torch.device) -> Stage:
    """Opens the run, says which code was chosen where there is a choice, and makes all that the steps need."""
    model, sds = config.model, config.sds
    backends = resolve_backends(config.scene, device)
    video = load_video(config.video, config.num_frames, model.image_size, config.alpha, config.crop)
    pipeline = open_pipeline(model, device)
    groups = frame_groups(model.long_video, config.num_frames, model.window, pipeline.motion.config.max_frames)
    for module in (pipeline.unet, pipeline.motion, pipeline.vae):
        module.requires_grad_(False)
    distance, perceptual = _perceptual(config.loss, pipeline.vae, device)
    free = {"max_steps", "log_every", "checkpoint_minutes", "preview_minutes", "trackers", "device"}
    free |= {f"scene.{name}" for name in backends}
    open_run(output, config, free, {"backends": backends, "perceptual": distance})
    tqdm.write(f"{config.video}: {video.summary()}")
    tqdm.write("backends: " + ", ".join(f"{name}={value}" for name, value in backends.items()))
    tqdm.write(f"perceptual loss: {distance}")
    target = _generate(config, pipeline, video.rgba, groups, output)
    guided = sds.guidance_scale if sds.guidance_scale_end in (None, 1) else sds.guidance_scale_end
    negative = unconditional(model.distillation_negative_prompt, guided)
    denoiser = pipeline.prepare(target.images, config.prompt, negative, sds.source == "fourdm")
    scene = Scene(
        DynamicField(config.scene.field, config.seed, backends["grid_backend"]).to(device),
        OccupancyGrid(config.scene.renderer, backends["ray_backend"]).to(device),
        config.scene.renderer,
    )
    return Stage(config, pipeline, denoiser, perceptual, scene, target)


def _perceptual(config: LossConfig, vae: AutoencoderKL, device: torch.device) -> tuple[str, Perceptual]:
    """The anchor loss's distance (Eq. 11) and what it is: LPIPS, or a substitute where its weights are not here."""
    used = bool(config.anchor and config.lambda_lpips)
    lpips = load_lpips(config.lpips_weights) if used else None
    if lpips is None:
        what = "distance of VAE latents, for want of LPIPS' weights" if used else "off"
        return what, partial(encoders.latent_distance, vae)
    lpips.to(device)
    return "LPIPS (VGG-16)", lambda image, truth: lpips(image.clamp(0, 1), truth).mean()


def _check(config: FitConfig) -> None:
    """UserError for settings that make no fit."""
    check_trackers(config.trackers)
    if config.sds.source not in GUIDANCES:
        raise UserError(f"sds.source={config.sds.source} is none of {', '.join(GUIDANCES)}")
    check_ranges(
        {
            "num_frames": (config.num_frames, 2, 1000),
            "num_views": (config.num_views, 1, 360),
            "max_steps": (config.max_steps, 1, 10_000_000),
            "log_every": (config.log_every, 1, 10_000_000),
            "occupancy_every": (config.occupancy_every, 1, 10_000_000),
            "sds.every": (config.sds.every, 1, 10_000_000),
            "model.num_inference_steps": (config.model.num_inference_steps, 1, 999),
        }
    )
    if len(config.sds.resolutions) != len(config.sds.resolution_milestones):
        raise UserError(f"sds.resolutions={config.sds.resolutions} and sds.resolution_milestones differ in length")
    sds, loss = config.sds, config.loss
    always = loss.lambda_rgb > 0 or (loss.anchor and (loss.lambda_lpips > 0 or loss.lambda_dssim > 0))
    if not always and (sds.source == "off" or sds.weight == 0 or sds.every > 1 or sds.start_step > 0):
        raise UserError(
            f"sds.source={sds.source}, sds.weight={sds.weight:g}, sds.every={sds.every}, sds.start_step={sds.start_step} leave "
            "steps without any loss: set loss.lambda_rgb or loss.anchor, or let SDS run at each step from the first"
        )


def resolve_backends(config: SceneConfig, device: torch.device) -> dict[str, str]:
    """What ``grid_backend`` and ``ray_backend`` mean on a device. UserError for one that cannot serve there."""
    grids = {3: config.field.space, 4: config.field.spacetime}
    try:
        return {
            "grid_backend": hash_grid.resolve_backend("scene.grid_backend", config.grid_backend, grids, device),
            "ray_backend": volume_rendering.resolve_backend("scene.ray_backend", config.ray_backend, device),
        }
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_matter(occupancy: OccupancyGrid, step: int) -> None:
    """UserError where nothing is left to see: no loss would bring it back."""
    opacity = -math.expm1(-float(occupancy.density.max()) * occupancy.config.step)
    if opacity < EMPTY:
        raise UserError(
            f"the scene is empty at step {step} (a sample's opacity is {opacity:.1e} at most): lower loss.lambda_sparsity and "
            "sds.weight, or grid_lr, and choose another output"
        )


def _generate(
    config: FitConfig, pipeline: FourDiffusionPipeline, rgba: Tensor, groups: FrameGroups | None, output: Path
) -> Target:
    """4DM's videos of the input, sampled once and kept in the run folder."""
    images = composite(rgba)
    azimuths = cameras.orthogonal_azimuths(config.num_views)
    c2w = cameras.orbit(azimuths)
    times = torch.linspace(0, 1, config.num_frames)
    folder = output / "generated"
    if not folder.is_dir():
        negative = unconditional(config.model.negative_prompt, config.model.guidance_scale)
        denoiser = pipeline.prepare(images, config.prompt, negative)
        generator = torch.Generator().manual_seed(config.seed)
        with tqdm(total=config.model.num_inference_steps, desc="sampling") as bar:
            z = pipeline.sample(
                denoiser,
                c2w,
                config.model.num_inference_steps,
                config.model.guidance_scale,
                generator,
                groups,
                bar.update,
            )
        views = encoders.decode_latents(pipeline.vae, z).transpose(0, 1).cpu()
        save_tensors(output / "input.safetensors", {"rgba": rgba, "times": times}, {})
        source = f"generated from {config.video}"
        write_clip(folder, opaque_clip("generated", views, c2w, cameras.FOVY_DEG, config.prompt, source))
        write_views(folder, images, views, azimuths.tolist())
    views = read_clip(folder).rgba[:, :, :3].float() / 255
    if config.loss.use_input_view:
        views[0] = images
    anchor = config.loss.anchor_view
    if anchor is None:
        anchor = int((views - images).square().flatten(1).mean(1).argmin())
    return Target(images, views, c2w, times, anchor)


def loss_weights(config: FitConfig, step: int) -> dict[str, float]:
    """Weight of every term at a step."""
    loss = config.loss
    return {
        "sds": config.sds.weight,
        "perceptual": loss.lambda_lpips if loss.anchor else 0.0,
        "d_ssim": loss.lambda_dssim if loss.anchor else 0.0,
        "views": loss.lambda_rgb,
        "orientation": losses.ramp(
            step, loss.lambda_orientation, loss.lambda_orientation_end, loss.orientation_ramp_steps
        ),
        "opacity": loss.lambda_opacity if step >= loss.opacity_start_step else 0.0,
        "sparsity": loss.lambda_sparsity if step >= loss.sparsity_start_step else 0.0,
    }


def _save(output: Path, scene: Scene, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"scene.{name}": value for name, value in scene.field.state_dict().items()}
    tensors |= {f"occupancy.{name}": value for name, value in scene.occupancy.state_dict().items()}
    tensors |= optimizer_tensors(optimizer)
    save_tensors(output / "checkpoint.safetensors", tensors, {"step": step})


def _resume(output: Path, scene: Scene, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on from; 0 where there is no checkpoint."""
    path = output / "checkpoint.safetensors"
    if not path.is_file():
        trim_log(output, 0)
        return 0
    tensors, metadata = load_tensors(path)
    for name, module in (("scene.", scene.field), ("occupancy.", scene.occupancy)):
        module.load_state_dict({k[len(name) :]: v for k, v in tensors.items() if k.startswith(name)})
    restore_optimizer(optimizer, tensors)
    trim_log(output, metadata["step"])
    return int(metadata["step"])


def _show(terms: dict[str, Tensor]) -> str:
    return " ".join(f"{name}={value.item():.4g}" for name, value in terms.items())
