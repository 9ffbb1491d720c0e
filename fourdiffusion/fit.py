"""``fit``: a monocular video becomes a moving 3-D object (paper section 4).

4DM first turns the video into V orthogonal videos; then a dynamic NeRF is optimised under 4D-aware score distillation,
the anchor loss and, where asked, the generated views themselves. Letters: F frames, V views, R rays, S image side.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor
from tqdm import tqdm

from fourdiffusion import cameras, checkpoints, media
from fourdiffusion.datasets.clips import opaque_clip, read_clip, write_clip
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion import distillation, encoders
from fourdiffusion.diffusion.pipeline import (
    Denoiser,
    FourDiffusionPipeline,
    FrameGroups,
    ModelConfig,
    frame_groups,
    load_pipeline,
    set_sampler,
)
from fourdiffusion.errors import UserError, check_ranges
from fourdiffusion.ops import hash_grid, volume_rendering
from fourdiffusion.scene import losses
from fourdiffusion.scene.field import DynamicField, FieldConfig
from fourdiffusion.scene.preview import Scene, save_scene, write_pictures
from fourdiffusion.scene.renderer import OccupancyGrid, RendererConfig, RenderOutput, render

GUIDANCES = ("fourdm", "per_frame", "off")
BACKGROUND = torch.ones(3)  # white, as in the release
EMPTY = 1e-4  # opacity of a single sample


@dataclass
class SceneConfig:
    """The dynamic NeRF and how it is rendered."""

    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    renderer: RendererConfig = dataclasses.field(default_factory=RendererConfig)
    grid_backend: str = "auto"  # of the hash grids: auto | torch | numba | tinycudann. No part of the scene
    ray_backend: str = "auto"  # of sampling and rendering: auto | torch | nerfacc. No part of the scene


@dataclass
class DistillationConfig:
    """4D-aware SDS (Eq. 10). Defaults: paper and released configuration, method.md section 2."""

    source: str = "fourdm"  # fourdm | per_frame (the frozen image model, "without 4D-SDS") | off
    weight: float = 1.0
    guidance: float = 5.0
    rescale: float = 0.2  # r
    start: int = 0  # first step with SDS
    every: int = 1  # SDS at each so manieth step
    max_step: float = 0.98  # t is uniform between two ramps, in fractions of the schedule
    min_step_end: float = 0.02
    max_step_end: float = 0.25
    ramp_steps: int = 5000
    resolutions: list[int] = field(default_factory=lambda: [64, 192, 256])  # of the renders, in pixels
    resolution_steps: list[int] = field(default_factory=lambda: [0, 5000, 10_000])
    elevation_max_deg: float = 5.0  # uniform from 0
    ray_chunk: int = 0  # rays rendered with gradient at a time; 0: all. In chunks a ray is rendered twice
    image_chunk: int = 0  # pictures encoded with gradient at a time; 0: all. In chunks a picture is encoded twice


@dataclass
class LossConfig:
    """Weights of the other terms; 0 turns one off."""

    anchor: bool = True
    anchor_view: int | None = None  # None: the generated view most like the input
    perceptual: float = 200.0  # anchor loss, Eq. 11
    d_ssim: float = 100.0
    views: float = 0.0  # squared error on random rays of all generated views (not in the paper)
    views_rays: int = 4096
    input_view: bool = False  # the input itself stands in for the view generated from its place (not in the paper)
    orientation_start: float = 10.0
    orientation_end: float = 1000.0
    orientation_ramp: int = 5000
    opacity: float = 100.0  # binary entropy; the paper: always
    opacity_from: int = 0
    sparsity: float = 100.0  # the paper: only after 10 000 steps
    sparsity_from: int = 10_000


@dataclass
class FitConfig:
    """Settings of one fit."""

    video: str = "???"  # mp4, gif, webm, a folder or a glob of frames
    output: str = "runs/fit"
    prompt: str = ""  # what the object is
    num_frames: int = 8
    num_views: int = 4
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    alpha: str = "auto"  # what tells the object from the background: auto | file | plain | rembg
    crop: str = "object"  # object: framed as in the training data | frame: the frame as it is
    steps: int = 35_000
    grid_rate: float = 1e-2  # learning rates
    mlp_rate: float = 1e-3
    rate_decay: float = 1.0  # both rates fall exponentially to this fraction
    occupancy_every: int = 16
    checkpoint_minutes: float = 5.0
    preview_minutes: float = 2.0  # 0: none
    log_every: int = 10
    model: ModelConfig = field(default_factory=ModelConfig)
    scene: SceneConfig = field(default_factory=SceneConfig)
    sds: DistillationConfig = field(default_factory=DistillationConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass
class _Target:
    """What the scene is fitted to: the input and the generated videos, RGB in [0, 1] on white."""

    images: Tensor  # [F, 3, S, S]
    views: Tensor  # [V, F, 3, S, S]
    c2w: Tensor  # [V, 4, 4]
    times: Tensor  # [F] in [0, 1]
    anchor: int


def fit(config: FitConfig) -> None:
    """Fits a scene; run again, it goes on from the last checkpoint, bit for bit on CPU."""
    if config.sds.source not in GUIDANCES:
        raise UserError(f"sds.source={config.sds.source} is none of {', '.join(GUIDANCES)}")
    check_ranges(
        {
            "num_frames": (config.num_frames, 2, 1000),
            "num_views": (config.num_views, 1, 360),
            "steps": (config.steps, 1, 10_000_000),
            "log_every": (config.log_every, 1, 10_000_000),
            "occupancy_every": (config.occupancy_every, 1, 10_000_000),
            "sds.every": (config.sds.every, 1, 10_000_000),
            "model.sampling_steps": (config.model.sampling_steps, 1, 1000),
        }
    )
    if len(config.sds.resolutions) != len(config.sds.resolution_steps):
        raise UserError(f"sds.resolutions={config.sds.resolutions} and sds.resolution_steps differ in length")
    device = resolve_device(config.device)
    backends = resolve_backends(config.scene, device)
    video = media.load_video(config.video, config.num_frames, config.model.image_size, config.alpha, config.crop)
    pipeline = load_pipeline(config.model.path).to(device)
    set_sampler(pipeline, config.model.sampler)
    groups = frame_groups(config.model, config.num_frames, pipeline.motion.config.max_frames)
    for module in (pipeline.unet, pipeline.motion, pipeline.vae):
        module.requires_grad_(False)
    output = Path(config.output)
    free = {"steps", "log_every", "checkpoint_minutes", "preview_minutes", "device"}
    checkpoints.open_run(output, config, free | {f"scene.{name}" for name in backends}, {"backends": backends})
    tqdm.write(f"{config.video}: {video.summary()}")
    tqdm.write("backends: " + ", ".join(f"{name}={value}" for name, value in backends.items()))
    target = _generate(config, pipeline, video.rgba, groups, output)
    denoiser = pipeline.prepare(
        target.images.to(device), config.prompt, config.model.distillation_negative, config.sds.source == "fourdm"
    )

    scene = DynamicField(config.scene.field, config.seed, backends["grid_backend"]).to(device)
    occupancy = OccupancyGrid(config.scene.renderer, backends["ray_backend"]).to(device)
    optimizer = torch.optim.AdamW(
        scene.parameter_groups(config.grid_rate, config.mlp_rate), betas=(0.9, 0.99), eps=1e-15
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    start = _resume(output, scene, occupancy, optimizer)

    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="fit")
    saved = shown = time.monotonic()
    with checkpoints.patient_interrupt() as interrupted:
        for step in bar:
            generator = checkpoints.stream(config.seed, 0, step)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * config.rate_decay ** (step / config.steps)
            if step % config.occupancy_every == 0:
                occupancy.update(scene.density, target.times.to(device), generator)
                _check_matter(occupancy, step)
            weights = loss_weights(config, step)
            terms = _terms(config, step, pipeline, denoiser, scene, occupancy, target, weights, generator)
            loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
            if not bool(loss.isfinite()):
                raise UserError(
                    f"the loss is {loss.item()} at step {step} ({_show(terms)}): lower grid_rate or sds.weight"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            done, now = step + 1, time.monotonic()
            bar.set_postfix_str(_show(terms), refresh=False)
            if done % config.log_every == 0 or done == config.steps:
                values = {name: value.item() for name, value in terms.items()}
                checkpoints.append_log(output, {"step": done, "loss": loss.item(), **values})
            stopping = interrupted()
            if now - saved > 60 * config.checkpoint_minutes or done == config.steps or stopping:
                _save(output, scene, occupancy, optimizer, done)
                saved = time.monotonic()
            if stopping:
                raise KeyboardInterrupt
            if config.preview_minutes and now - shown > 60 * config.preview_minutes:
                write_pictures(
                    output / "preview", Scene(scene, occupancy, config.scene.renderer), target.images, 64, 16
                )
                shown = time.monotonic()
    fitted = Scene(scene, occupancy, config.scene.renderer)
    save_scene(output / "scene", fitted)
    pictures = write_pictures(output, fitted, target.images, config.model.image_size)
    tqdm.write(f"scene: {output / 'scene'}; pictures: {', '.join(map(str, pictures))}")


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
            f"the scene is empty at step {step} (a sample's opacity is {opacity:.1e} at most): lower loss.sparsity and "
            "sds.weight, or grid_rate, and choose another output"
        )


def _generate(
    config: FitConfig, pipeline: FourDiffusionPipeline, rgba: Tensor, groups: FrameGroups | None, output: Path
) -> _Target:
    """4DM's videos of the input, sampled once and kept in the run folder."""
    images = media.composite(rgba)
    azimuths = cameras.orthogonal_azimuths(config.num_views)
    c2w = cameras.orbit(azimuths)
    times = torch.linspace(0, 1, config.num_frames)
    folder = output / "generated"
    if not folder.is_dir():
        denoiser = pipeline.prepare(images.to(pipeline.device), config.prompt, config.model.negative_prompt)
        generator = torch.Generator().manual_seed(config.seed)
        with tqdm(total=config.model.sampling_steps, desc="sampling") as bar:
            z = pipeline.sample(
                denoiser, c2w, config.model.sampling_steps, config.model.guidance, generator, groups, bar.update
            )
        views = encoders.decode_latents(pipeline.vae, z).transpose(0, 1).cpu()
        checkpoints.save_tensors(output / "input.safetensors", {"rgba": rgba, "times": times}, {})
        source = f"generated from {config.video}"
        write_clip(folder, opaque_clip("generated", views, c2w, cameras.FOVY_DEG, config.prompt, source))
        media.write_views(folder, images, views, azimuths.tolist())
    views = read_clip(folder).rgba[:, :, :3].float() / 255
    if config.loss.input_view:
        views[0] = images
    anchor = config.loss.anchor_view
    if anchor is None:
        anchor = int((views - images).square().flatten(1).mean(1).argmin())
    return _Target(images, views, c2w, times, anchor)


def loss_weights(config: FitConfig, step: int) -> dict[str, float]:
    """Weight of every term at a step."""
    loss = config.loss
    return {
        "sds": config.sds.weight,
        "perceptual": loss.perceptual if loss.anchor else 0.0,
        "d_ssim": loss.d_ssim if loss.anchor else 0.0,
        "views": loss.views,
        "orientation": losses.ramp(step, loss.orientation_start, loss.orientation_end, loss.orientation_ramp),
        "opacity": loss.opacity if step >= loss.opacity_from else 0.0,
        "sparsity": loss.sparsity if step >= loss.sparsity_from else 0.0,
    }


def _terms(
    config: FitConfig,
    step: int,
    pipeline: FourDiffusionPipeline,
    denoiser: Denoiser,
    scene: DynamicField,
    occupancy: OccupancyGrid,
    target: _Target,
    weights: dict[str, float],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The unweighted loss terms of one step, each back-propagated with its weight as soon as it is known."""
    size = config.model.image_size
    terms: dict[str, Tensor] = {}
    sds = config.sds
    if sds.source != "off" and sds.weight and step >= sds.start and (step - sds.start) % sds.every == 0:
        frames = draw_window(len(target.times), config.model.window, generator)
        offset, height = torch.rand(2, generator=generator).tolist()
        azimuths = cameras.orthogonal_azimuths(len(target.views), 360 * offset)
        c2w = cameras.orbit(azimuths, sds.elevation_max_deg * height)
        side = max(r for r, at in zip(sds.resolutions, sds.resolution_steps, strict=True) if step >= at)
        rays = _rays(c2w, target.times[frames], side)
        jitter = torch.rand(len(rays[2]), generator=generator)

        def teach(rgb: Tensor) -> tuple[Tensor, Tensor]:
            images = rgb.view(len(frames), len(c2w), side, side, 3).movedim(-1, 2)
            return _distil(config, step, pipeline, denoiser.at_frames(frames), images, c2w, generator)

        terms |= _render_and_teach(config, scene, occupancy, rays, jitter, weights, teach)
    if weights["perceptual"] or weights["d_ssim"]:
        frame = int(torch.randint(len(target.times), (), generator=generator))
        camera = target.c2w[target.anchor : target.anchor + 1]
        rays = _rays(camera, target.times[frame : frame + 1], size)
        jitter = torch.rand(len(rays[2]), generator=generator)
        image = _render(config, scene, occupancy, rays, jitter).rgb.view(1, size, size, 3).movedim(-1, 1)
        truth = target.views[target.anchor, frame][None].to(image.device)
        anchor = {
            "perceptual": encoders.latent_distance(pipeline.vae, image, truth),
            "d_ssim": losses.dssim(image, truth),
        }
        terms |= _backward(anchor, weights)
    if weights["views"]:
        all_rays = _rays(target.c2w, target.times, size)
        chosen = torch.randint(len(all_rays[2]), (config.loss.views_rays,), generator=generator)
        jitter = torch.rand(len(chosen), generator=generator)
        rendered = _render(config, scene, occupancy, tuple(x[chosen] for x in all_rays), jitter)
        colours = target.views.transpose(0, 1).movedim(2, -1).reshape(-1, 3)[chosen]  # rays run over F, V, H, W
        views = functional.mse_loss(rendered.rgb, colours.to(rendered.rgb.device))
        terms |= _backward({"views": views}, weights)
    return terms


def _backward(terms: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    """Back-propagates the weighted sum; returns the terms without their graphs."""
    torch.stack([weights[name] * value for name, value in terms.items()]).sum().backward()
    return {name: value.detach() for name, value in terms.items()}


def _render_and_teach(
    config: FitConfig,
    scene: DynamicField,
    occupancy: OccupancyGrid,
    rays: tuple[Tensor, ...],
    jitter: Tensor,
    weights: dict[str, float],
    teach: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    """SDS and the regularisers on the rays of all pictures, back-propagated.

    ``teach`` takes the colours [R, 3] and gives the SDS loss and its gradient with respect to them. More rays than
    ``sds.ray_chunk`` are rendered without a graph first, then again with one, chunk after chunk: memory does not grow
    with their number, and the gradient is the same.
    """
    chunk = config.sds.ray_chunk or len(jitter)
    parts = [slice(first, first + chunk) for first in range(0, len(jitter), chunk)]
    whole = len(parts) == 1
    with_normals = weights["orientation"] > 0

    def run(part: slice, normals: bool) -> RenderOutput:
        return _render(config, scene, occupancy, tuple(x[part] for x in rays), jitter[part], normals)

    colours, hits, seen = [], 0, None
    for part in parts:
        with torch.set_grad_enabled(whole):
            seen = run(part, with_normals and whole)
        colours.append(seen.rgb.detach())
        hits += int((seen.opacity > 0).sum())
    value, gradient = teach(torch.cat(colours))
    sums: dict[str, Tensor] = {}
    for part in parts:
        out = seen if whole and seen is not None else run(part, with_normals)
        share = len(out.rgb) / len(jitter)
        terms = {}
        if out.normals is not None:
            directions = rays[1][part].to(out.rgb.device)[out.ray_index]
            facing_away = losses.orientation(out.weights, out.normals, directions, out.opacity)
            terms["orientation"] = facing_away * max(int((out.opacity > 0).sum()), 1) / max(hits, 1)
        if weights["opacity"]:
            terms["opacity"] = losses.opacity_entropy(out.opacity) * share
        if weights["sparsity"]:
            terms["sparsity"] = losses.sparsity(out.opacity) * share
        surrogate = (out.rgb * gradient[part]).sum()  # its gradient is that of the SDS loss
        _backward({"sds": surrogate, **terms}, weights)
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)).detach() + term.detach()
    return {"sds": value, **sums}


def draw_window(num_frames: int, length: int, generator: torch.Generator) -> Tensor:
    """Numbers of the frames of one SDS step: all, or ``length`` of a longer video at a random stride and place."""
    if num_frames <= length:
        return torch.arange(num_frames)
    longest = max((num_frames - 1) // max(length - 1, 1), 1)
    stride = 1 + int(torch.randint(longest, (), generator=generator))
    start = int(torch.randint(num_frames - (length - 1) * stride, (), generator=generator))
    return start + stride * torch.arange(length)


def _render(
    config: FitConfig,
    scene: DynamicField,
    occupancy: OccupancyGrid,
    rays: tuple[Tensor, ...],
    jitter: Tensor,
    with_normals: bool = False,
) -> RenderOutput:
    """Jittered rays (origins [R, 3], directions [R, 3], times [R]) on the background, with gradient."""
    device = occupancy.density.device
    origins, directions, times = (x.to(device) for x in rays)
    return render(
        scene, occupancy, origins, directions, times, BACKGROUND.to(device), config.scene.renderer, jitter.to(device),
        scene.density, with_normals,
    )  # fmt: skip


def _distil(
    config: FitConfig,
    step: int,
    pipeline: FourDiffusionPipeline,
    denoiser: Denoiser,
    images: Tensor,
    c2w: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The SDS loss of renders [F, V, 3, side, side] from cameras [V, 4, 4], and its gradient, [F V side side, 3].

    The VAE's activations are what overflows: with ``sds.image_chunk`` its gradient is taken a few pictures at a time.
    """
    sds = config.sds
    flat = images.flatten(0, 1).detach().contiguous().requires_grad_()
    chunk = sds.image_chunk or len(flat)
    whole = chunk >= len(flat)
    with torch.set_grad_enabled(whole):
        latents = torch.cat([_encode(config, pipeline, part) for part in flat.split(chunk)])
    z = latents.detach().unflatten(0, images.shape[:2]).requires_grad_()
    low = losses.ramp(step - sds.start, sds.max_step, sds.min_step_end, sds.ramp_steps)
    high = losses.ramp(step - sds.start, sds.max_step, sds.max_step_end, sds.ramp_steps)
    fraction = low + (high - low) * float(torch.rand((), generator=generator))
    timestep = int(fraction * pipeline.scheduler.config.num_train_timesteps)
    alpha_bar = pipeline.scheduler.alphas_cumprod[timestep].to(z.device)
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    z_t = distillation.add_noise(z.detach(), noise, alpha_bar)
    predictions = denoiser(z_t, timestep, c2w)
    loss = distillation.sds_loss(z, distillation.sds_target(z_t, *predictions, alpha_bar, sds.guidance, sds.rescale))
    (slope,) = torch.autograd.grad(loss, z)
    if whole:
        latents.backward(slope.flatten(0, 1))
    else:
        for part, part_slope in zip(flat.split(chunk), slope.flatten(0, 1).split(chunk), strict=True):
            _encode(config, pipeline, part).backward(part_slope)
    assert flat.grad is not None
    return loss.detach(), flat.grad.movedim(1, -1).reshape(-1, 3)


def _encode(config: FitConfig, pipeline: FourDiffusionPipeline, images: Tensor) -> Tensor:
    """Latents of renders [N, 3, side, side], brought to the model's size."""
    size = config.model.image_size
    if images.shape[-1] != size:
        images = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return encoders.encode_latents(pipeline.vae, images)


def _rays(c2w: Tensor, times: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rays of cameras [V, 4, 4] at times [F]: origins [R, 3], directions [R, 3], times [R], in the order F, V, H, W."""
    origins, directions = cameras.rays(c2w, cameras.FOVY_DEG, side, side)
    repeated = [x.expand(len(times), *x.shape).reshape(-1, 3) for x in (origins, directions)]
    return repeated[0], repeated[1], times.repeat_interleave(len(c2w) * side * side)


def _save(
    output: Path, scene: DynamicField, occupancy: OccupancyGrid, optimizer: torch.optim.Optimizer, step: int
) -> None:
    tensors = {f"scene.{name}": value for name, value in scene.state_dict().items()}
    tensors |= {f"occupancy.{name}": value for name, value in occupancy.state_dict().items()}
    tensors |= checkpoints.optimizer_tensors(optimizer)
    checkpoints.save_tensors(output / "checkpoint.safetensors", tensors, {"step": step})


def _resume(output: Path, scene: DynamicField, occupancy: OccupancyGrid, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on from; 0 where there is no checkpoint."""
    path = output / "checkpoint.safetensors"
    if not path.is_file():
        checkpoints.trim_log(output, 0)
        return 0
    tensors, metadata = checkpoints.load_tensors(path)
    for name, module in (("scene.", scene), ("occupancy.", occupancy)):
        module.load_state_dict({k[len(name) :]: v for k, v in tensors.items() if k.startswith(name)})
    checkpoints.restore_optimizer(optimizer, tensors)
    checkpoints.trim_log(output, metadata["step"])
    return int(metadata["step"])


def _show(terms: dict[str, Tensor]) -> str:
    return " ".join(f"{name}={value.item():.4g}" for name, value in terms.items())
