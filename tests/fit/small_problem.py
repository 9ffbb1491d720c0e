"""A fit of three moving balls whose truth is known, and a denoiser that knows it."""

from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as functional
from diffusers import DDIMScheduler
from tiny_model import FRAMES, SIZE, balls, picture, tiny_config
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.schedulers import noise_schedule
from fourdiffusion.diffusion.settings import GenerationConfig
from fourdiffusion.fit.settings import DistillationConfig, FitConfig, LossConfig
from fourdiffusion.fit.setup import build_target
from fourdiffusion.fit.step import Problem
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, render_views
from fourdiffusion.scene.settings import FieldConfig, RendererConfig, SceneConfig

GRID = HashGridConfig(num_levels=4, log2_hashmap_size=10, base_resolution=4)
TIMES = torch.linspace(0, 1, FRAMES)
VIEWS = 4


def truth(c2w: Tensor, frames: Tensor) -> Tensor:
    """Return the balls on white from cameras [V, 4, 4] at some frames [F']: [F', V, 3, SIZE, SIZE]."""
    centers = balls(0, TIMES[frames])[:, None].expand(-1, len(c2w), 3, 3)
    rgba = picture(c2w.expand(len(frames), *c2w.shape), centers)
    return rgba[:, :, :3] * rgba[:, :, 3:] + 1 - rgba[:, :, 3:]


def input_video() -> Tensor:
    """Return what the input camera saw, at twice the model's side: RGBA [F, 4, 2 SIZE, 2 SIZE]."""
    c2w = cameras.orbit(torch.zeros(FRAMES))
    return picture(c2w, balls(0, TIMES), 2 * SIZE)


class PoolingVae:
    """A linear VAE: latents are the mean colors of 2 x 2 pixels in [-1, 1], and a zero channel."""

    dtype, config = torch.float32, SimpleNamespace(scaling_factor=1.0)

    def encode(self, images: Tensor) -> SimpleNamespace:
        blocks = functional.avg_pool2d(images, 2)
        mean = torch.cat([blocks, torch.zeros_like(blocks[:, :1])], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))


@dataclass
class Oracle:
    """A denoiser whose clean latents are the truth's, and that remembers what it was asked.

    With ``bias`` the conditional noise is off by so much, so that guidance counts.
    """

    pipeline: "SmallPipeline"
    bias: float = 0.0
    frames: Tensor = field(default_factory=lambda: torch.arange(FRAMES))
    calls: list[tuple[Tensor, int, Tensor]] = field(default_factory=list)  # frames, timestep, cameras

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.pipeline.scheduler.alphas_cumprod

    def at_frames(self, frames: Tensor) -> "Oracle":
        return replace(self, frames=self.frames[frames])

    def __call__(self, z_t: Tensor, timestep: int, c2w: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append((self.frames, timestep, c2w))
        images = truth(c2w, self.frames)
        with torch.no_grad():
            z = encoders.encode_latents(self.pipeline.vae, images.flatten(0, 1)).unflatten(0, images.shape[:2])
        alpha_bar = self.alphas_cumprod[timestep]
        noise = (z_t - alpha_bar.sqrt() * z) / (1 - alpha_bar).sqrt()
        return noise + self.bias, noise


@dataclass
class SmallPipeline:
    """The parts of a pipeline that a step uses."""

    vae: PoolingVae = field(default_factory=PoolingVae)
    scheduler: DDIMScheduler = field(default_factory=noise_schedule)
    generation_config: GenerationConfig = GenerationConfig(image_size=SIZE)


def small_config(**changes: object) -> FitConfig:
    """Return settings with every loss off; ``changes`` are of the sections sds and loss, or of the fit itself."""
    sds = DistillationConfig(
        source="off", guidance_scale=1.0, guidance_rescale=0.0, resolutions=[SIZE], resolution_milestones=[0]
    )
    loss = LossConfig(
        anchor=False, lambda_orientation=0.0, lambda_orientation_end=0.0, lambda_opacity=0.0, lambda_sparsity=0.0,
        rgb_rays=512,
    )  # fmt: skip
    config = FitConfig(
        num_frames=FRAMES,
        device="cpu",
        max_steps=100,
        model=tiny_config(),
        scene=SceneConfig(
            field=FieldConfig(space=GRID, spacetime=GRID, hidden_width=16),
            renderer=RendererConfig(num_samples=32, occupancy_resolution=8),
        ),
        sds=sds,
        loss=loss,
    )
    for name, value in changes.items():
        section = next((each for each in (sds, loss, config) if hasattr(each, name)), None)
        assert section is not None, name
        setattr(section, name, value)
    return config


def small_problem(config: FitConfig, bias: float = 0.0) -> Problem:
    """Return the problem of fitting a fresh scene to the truth."""
    c2w = cameras.orbit(cameras.orthogonal_azimuths(VIEWS))
    views = truth(c2w, torch.arange(FRAMES)).transpose(0, 1).contiguous()
    renderer = config.scene.renderer
    scene = Scene(DynamicField(config.scene.field, 0), OccupancyGrid(renderer), renderer)
    pipeline = SmallPipeline()
    denoiser = Oracle(pipeline, bias)
    perceptual = partial(encoders.latent_distance, pipeline.vae)  # type: ignore[arg-type]
    target = build_target(views[0], views, c2w, TIMES, 0, input_video())
    return Problem(config, pipeline, denoiser, perceptual, scene, target)  # type: ignore[arg-type]


def psnr_of(problem: Problem, azimuth_deg: float = 0.0) -> float:
    """Return the PSNR in dB of the scene's renders of all frames and V views, from a first azimuth on."""
    c2w = cameras.orbit(cameras.orthogonal_azimuths(VIEWS, azimuth_deg))
    expected = truth(c2w, torch.arange(FRAMES)).flatten(0, 1)
    rendered, _ = render_views(
        problem.scene, c2w.repeat(FRAMES, 1, 1), cameras.FOVY_DEG, TIMES.repeat_interleave(VIEWS), SIZE
    )
    return float(-10 * (rendered - expected).square().mean().log10())
