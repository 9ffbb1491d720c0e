"""What comes before the first step of a fit: settings checked, input and networks read, views generated once."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.cameras import FOVY_DEG, orbit, orthogonal_azimuths
from fourdiffusion.datasets.clips import opaque_clip, read_clip, write_clip
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.generation_config import sampling_settings
from fourdiffusion.diffusion.loading import open_pipeline, with_own_settings
from fourdiffusion.diffusion.long_video import frame_groups
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline, unconditional
from fourdiffusion.errors import UserError, check_ranges
from fourdiffusion.files import save_tensors
from fourdiffusion.fit.camera import InputCamera, check_camera, input_camera
from fourdiffusion.fit.memory import check_memory
from fourdiffusion.fit.settings import DSSIM_BORDERS, GUIDANCES, LPIPS_INPUTS, FitConfig, LossConfig
from fourdiffusion.fit.step import Perceptual, Problem, Target
from fourdiffusion.media.image import composite
from fourdiffusion.media.read import VideoInput, load_video
from fourdiffusion.media.write import write_views
from fourdiffusion.metrics.lpips import load_lpips
from fourdiffusion.ops import hash_grid, volume_rendering
from fourdiffusion.ranges import check_numbers
from fourdiffusion.runs import folder_digest, open_run
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.losses import WINDOW
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene
from fourdiffusion.scene.settings import SceneConfig
from fourdiffusion.tracking import check_trackers

WHITE = 0.96  # of background in a generated view: every channel at least
# Settings that do not change the result of a run, beyond rounding; max_steps prolongs it, the masks are in the video's
# digest.
FREE = {
    "max_steps", "log_every", "checkpoint_minutes", "preview_minutes", "trackers", "device",
    "scene.grid_backend", "scene.ray_backend", "sds.ray_chunk", "sds.image_chunk", "loss.lpips_weights",
    "model.compile", "model.offload", "model.channels_last", "mask",
    "author", "license",
    "scene.renderer.prune_weight",  # version 0.1.0 did not prune: its runs resume with the value of the preset
}  # fmt: skip


@dataclass
class Inputs:
    """Everything that a fit reads before it writes anything."""

    video: VideoInput
    sharp: Tensor  # the input at its own resolution, RGBA [F, 4, S', S']; at the model's where no term reads it
    pipeline: FourDiffusionPipeline
    perceptual: Perceptual
    perceptual_name: str
    backends: dict[str, str]
    device: torch.device
    camera: InputCamera


def check_settings(config: FitConfig) -> None:
    """UserError for settings out of range, and for settings that leave a step without a loss."""
    check_trackers(config.trackers)
    sds, loss, large = config.sds, config.loss, 10_000_000
    if sds.source not in GUIDANCES:
        raise UserError(f"sds.source={sds.source} is none of {', '.join(GUIDANCES)}")
    for key, value, known in (
        ("dssim_border", loss.dssim_border, DSSIM_BORDERS), ("lpips_input", loss.lpips_input, LPIPS_INPUTS)
    ):  # fmt: skip
        if value not in known:
            raise UserError(f"loss.{key}={value} is none of {', '.join(known)}")
    check_numbers(config)
    check_ranges({"num_frames": (config.num_frames, 2, large), "max_steps": (config.max_steps, 1, large)})
    if loss.anchor_view is not None:
        check_ranges({"loss.anchor_view": (loss.anchor_view, 0, config.num_views - 1)})
    image_size = sampling_settings(config.model).image_size
    if loss.anchor and loss.lambda_dssim > 0 and image_size < WINDOW:
        raise UserError(f"model.image_size={image_size}: D-SSIM needs at least {WINDOW} pixels")
    _check_resolutions(sds.resolutions, sds.resolution_milestones)
    check_camera(config)
    always = max(loss.lambda_rgb, loss.lambda_input) > 0 or (
        loss.anchor and (loss.lambda_lpips > 0 or loss.lambda_dssim > 0)
    )
    if not always and (sds.source == "off" or sds.weight == 0 or sds.every > 1 or sds.start_step > 0):
        raise UserError(
            f"sds.source={sds.source}, sds.weight={sds.weight:g}, sds.every={sds.every}, "
            f"sds.start_step={sds.start_step} leave steps without any loss on images: set loss.lambda_rgb or "
            "loss.anchor, or let SDS run at each step from the first"
        )


def _check_resolutions(resolutions: list[int], milestones: list[int]) -> None:
    if len(resolutions) != len(milestones):
        raise UserError(f"sds.resolutions={resolutions} and sds.resolution_milestones={milestones} differ in length")
    for resolution in resolutions:
        check_ranges({"sds.resolutions": (resolution, 1, 2048)})
    if not milestones or milestones[0] != 0 or sorted(milestones) != milestones:
        raise UserError(f"sds.resolution_milestones={milestones}: give rising steps, the first of them 0")


def read_inputs(config: FitConfig) -> Inputs:
    """Read the video and the networks; nothing is written."""
    model, device = config.model, resolve_device(config.device)
    backends = resolve_backends(config.scene, device)
    check_memory(config, backends, device)
    video = load_video(config, sampling_settings(model).image_size)
    camera = input_camera(config, video)
    pipeline = open_pipeline(model, device)
    own = pipeline.generation_config
    frame_groups(own.long_video, config.num_frames, own.window, pipeline.motion.config.max_frames)
    for module in (pipeline.unet, pipeline.motion, pipeline.vae):
        module.requires_grad_(False)
    name, perceptual = _perceptual(config.loss, pipeline.vae, device)
    return Inputs(video, _read_sharp(config, video), pipeline, perceptual, name, backends, device, camera)


def _read_sharp(config: FitConfig, video: VideoInput) -> Tensor:
    """Return the input video at the resolution that its own terms are measured at: RGBA [F, 4, S', S']."""
    side, used = video.rgba.shape[-1], config.loss.lambda_input > 0 or config.loss.lambda_mask > 0
    own = min(max(crop[2] for crop in video.crops), config.loss.input_max_side)
    return load_video(config, own).rgba if used and own > side else video.rgba


def open_problem(config: FitConfig, inputs: Inputs) -> Problem:
    """Open the run folder, write or read the generated views, and build what the steps need."""
    output, sds, video, pipeline = Path(config.output), config.sds, inputs.video, inputs.pipeline
    content = {"video": video.digest, "model.path": folder_digest(Path(str(config.model.path)))}
    try:
        scene = Scene(
            DynamicField(config.scene.field, config.seed, inputs.backends["grid_backend"]).to(inputs.device),
            OccupancyGrid(config.scene.renderer, inputs.backends["ray_backend"]).to(inputs.device),
            config.scene.renderer,
        )
    except ValueError as error:
        raise UserError(f"scene: {error}") from error
    recorded = replace(config, model=with_own_settings(config.model, pipeline))
    open_run(output, recorded, FREE, {"backends": inputs.backends}, content, {"perceptual": inputs.perceptual_name})
    tqdm.write(f"{config.video}: {video.summary()}")
    tqdm.write("backends: " + ", ".join(f"{name}={value}" for name, value in inputs.backends.items()))
    tqdm.write(f"perceptual loss: {inputs.perceptual_name}")
    times = torch.tensor(video.times)
    video.write(output, inputs.camera.record())
    target = generate_target(config, pipeline, video.rgba, times, inputs.sharp, inputs.camera)
    guided = sds.guidance_scale if sds.guidance_scale_end in (None, 1) else sds.guidance_scale_end
    negative = unconditional(pipeline.generation_config.distillation_negative_prompt, guided)
    denoiser = pipeline.prepare(target.images, config.prompt, negative, sds.source == "fourdm")
    return Problem(config, pipeline, denoiser, inputs.perceptual, scene, target)


def generate_target(
    config: FitConfig,
    pipeline: FourDiffusionPipeline,
    rgba: Tensor,
    times: Tensor,
    sharp: Tensor,
    camera: InputCamera,
) -> Target:
    """Sample 4DM's videos of the input once, keep them in the run folder, and choose the anchor view (Eq. 11).

    ``rgba`` is the input at the model's size, ``sharp`` at its own. The generated views stand as high as the input, at
    the model's own distance and field of view; the input in place of one keeps its camera.
    """
    images, output = composite(rgba), Path(config.output)
    azimuths = orthogonal_azimuths(config.num_views)
    c2w = orbit(azimuths, camera.elevation_deg)
    folder = output / "generated"
    if not folder.is_dir():
        views = _sample(config, pipeline, images, c2w)
        save_tensors(output / "input.safetensors", {"rgba": rgba, "times": times}, {})
        source = f"generated from {config.video}"
        clip = opaque_clip("generated", views, c2w, FOVY_DEG, config.prompt, source)
        write_clip(folder, replace(clip, times=times))
    clip = read_clip(folder)
    expected = (config.num_views, len(images), 4, *images.shape[-2:])
    if clip.rgba.shape != expected or not torch.allclose(clip.c2w, c2w, atol=1e-3):
        raise UserError(
            f"{folder} holds images {list(clip.rgba.shape)} or cameras of another run, this one has {list(expected)}: "
            "restore the folder, or choose another output"
        )
    views = clip.rgba[:, :, :3].float() / 255
    if not (folder / "contact_sheet.png").is_file():  # written last
        write_views(folder, images, views, azimuths.tolist())
    fovy = torch.full((config.num_views,), FOVY_DEG)
    if config.loss.use_input_view:
        views[0], c2w[0], fovy[0] = images, camera.c2w[0], camera.fovy_deg
    anchor = config.loss.anchor_view
    if anchor is None:
        anchor = int((views - images).square().flatten(1).mean(1).argmin())
    return build_target(images, views, c2w, clip.times, anchor, sharp, camera, fovy)


def build_target(
    images: Tensor,
    views: Tensor,
    c2w: Tensor,
    times: Tensor,
    anchor: int,
    rgba: Tensor,
    camera: InputCamera | None = None,
    fovy_deg: Tensor | None = None,
) -> Target:
    """Return the target of a fit, with what follows from its pictures: see Target, whose ``rgba`` this is.

    Cameras that are not given are the default one.
    """
    fovy = torch.full((len(views),), FOVY_DEG) if fovy_deg is None else fovy_deg
    return Target(
        images, views, c2w, times, anchor, rgba, fovy, camera or InputCamera(), _focus(rgba), _empty(views)
    )  # fmt: skip


def _focus(rgba: Tensor) -> Tensor:
    """Return the places in and around the object of a video [F, 4, S, S]: int64, in the order F, S, S."""
    reach = max(1, rgba.shape[-1] // 32)
    near = functional.max_pool2d(rgba[:, 3:], 2 * reach + 1, stride=1, padding=reach)
    return (near > 0.1).flatten().nonzero().squeeze(1)


def _empty(views: Tensor) -> Tensor:
    """Return where views [V, F, 3, S, S] show plain white background: bool [V, F, S, S].

    What is nearly white and connected with the border, but for the pixels at the object's edge. White inside the object
    is not counted.
    """
    white = (views.amin(2) > WHITE).numpy()
    found = np.zeros_like(white)
    for index in np.ndindex(white.shape[:2]):
        framed = np.pad(white[index], 1, constant_values=True)
        labels, _ = ndimage.label(framed)
        found[index] = ndimage.binary_erosion(labels == labels[0, 0])[1:-1, 1:-1]
    return torch.from_numpy(found)


def _sample(config: FitConfig, pipeline: FourDiffusionPipeline, images: Tensor, c2w: Tensor) -> Tensor:
    """Return 4DM's videos [V, F, 3, S, S] of the input [F, 3, S, S]."""
    generator = torch.Generator().manual_seed(config.seed)
    with tqdm(total=pipeline.generation_config.num_inference_steps, desc="sampling") as bar:
        return generate_views(pipeline, images, config.prompt, c2w=c2w, generator=generator, progress=bar.update)


def _perceptual(config: LossConfig, vae: AutoencoderKL, device: torch.device) -> tuple[str, Perceptual]:
    """Return the anchor loss's distance (Eq. 11) and its name: LPIPS, or a substitute where its weights are missing."""
    used = bool(config.anchor and config.lambda_lpips)
    lpips = load_lpips(config.lpips_weights) if used else None
    if lpips is None:
        name = "distance of VAE latents: LPIPS has no weights here" if used else "off"
        return name, partial(encoders.latent_distance, vae)
    lpips.to(device)
    if config.lpips_input == "unsigned":  # (1 + c) / 2 is what reaches the network as c itself
        return "LPIPS (VGG-16)", lambda image, truth: lpips((1 + image.clamp(0, 1)) / 2, (1 + truth) / 2).mean()
    return "LPIPS (VGG-16)", lambda image, truth: lpips(image.clamp(0, 1), truth).mean()


def resolve_backends(config: SceneConfig, device: torch.device) -> dict[str, str]:
    """Return what ``grid_backend`` and ``ray_backend`` mean on a device. UserError for one that cannot serve there."""
    grids = {3: config.field.space, 4: config.field.spacetime}
    try:
        return {
            "grid_backend": hash_grid.resolve_backend("scene.grid_backend", config.grid_backend, grids, device),
            "ray_backend": volume_rendering.resolve_backend("scene.ray_backend", config.ray_backend, device),
        }
    except ValueError as error:
        raise UserError(str(error)) from error
