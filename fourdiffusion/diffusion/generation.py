"""Sampling: encode the conditions, place the cameras, denoise, decode. All verbs sample with these functions.

Letters: F frames, V views, C h w latent channels and pixels, H W image pixels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.denoiser import Denoiser, unconditional
from fourdiffusion.diffusion.distillation import guide
from fourdiffusion.diffusion.finite import require_finite
from fourdiffusion.diffusion.images import Images, to_frames
from fourdiffusion.diffusion.long_video import FrameGroups, frame_groups
from fourdiffusion.diffusion.settings import GenerationConfig

Progress = Callable[[int], Any]


class Model(Protocol):
    """Interface of a pipeline for sampling."""

    unet: Any
    motion: Any
    vae: Any
    scheduler: Any
    generation_config: GenerationConfig

    def prepare(
        self, images: Tensor, prompt: str, negative_prompt: str | None, use_motion: bool = True
    ) -> Denoiser: ...


def check_image_size(pipeline: Model, size: int) -> None:
    """Raise ValueError if images of ``size`` pixels cannot be halved as often as the networks do."""
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1 + len(pipeline.unet.config.channels) - 1)
    if size < factor or size % factor:
        raise ValueError(f"image_size={size}: the levels of the model's VAE and UNet need a multiple of {factor}")


def generate_views(
    pipeline: Model,
    images: Images,
    prompt: str = "",
    *,
    num_views: int = 4,
    elevation_deg: float = 0.0,
    c2w: Tensor | None = None,
    settings: GenerationConfig | None = None,
    generator: torch.Generator | None = None,
    use_motion: bool = True,
    groups: FrameGroups | None = None,
    output_type: str = "pt",
    progress: Progress = lambda _: None,
) -> Tensor:
    """Return videos of the object in ``images`` from V views.

    Args:
        pipeline: a FourDiffusionPipeline; samples with its ``scheduler``.
        images: F input frames on the background of the views, see ``images.to_frames``.
        prompt: what the object is.
        num_views: V evenly spaced views, the first from the input camera.
        elevation_deg: of these views.
        c2w: cameras [V, 4, 4] relative to an input camera at azimuth 0; replaces the two settings above.
        settings: size, steps, guidance, negative prompt, windows; None: the model's own. Their scheduler is ignored
            (see ``schedulers.set_scheduler``): the pipeline's is used.
        generator: of the initial noise; None: seed 0.
        use_motion: False samples with the frozen image model, frame by frame.
        groups: frames denoised together at each step; None: those of the settings.
        output_type: "pt" or "latent".
        progress: called with 0 after the conditions are encoded and with 1 after each step.

    Returns:
        RGB in [0, 1], [V, F, 3, H, W], float32 on the CPU; with "latent" the latents [F, V, C, h, w] on the device.

    Raises:
        ValueError: unsuitable images, see ``to_frames``; a size that the networks cannot halve.
        UserError: a window longer than the motion layers' position table; conditions, latents or decoded images that
            are not finite.
    """
    settings = settings or pipeline.generation_config
    check_image_size(pipeline, settings.image_size)
    frames = to_frames(images, settings.image_size)
    if c2w is None:
        c2w = cameras.orbit(cameras.orthogonal_azimuths(num_views), elevation_deg)
    if groups is None:
        longest = pipeline.motion.config.max_frames
        groups = frame_groups(settings.long_video, len(frames), settings.window, longest)
    negative = unconditional(settings.negative_prompt, settings.guidance_scale)
    denoiser = pipeline.prepare(frames, prompt, negative, use_motion)
    progress(0)
    z = sample_latents(
        denoiser,
        pipeline.scheduler,
        c2w,
        settings.num_inference_steps,
        settings.guidance_scale,
        generator or torch.Generator().manual_seed(0),
        groups=groups,
        progress=progress,
    )
    return z if output_type == "latent" else encoders.decode_latents(pipeline.vae, z).transpose(0, 1).cpu()


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser,
    scheduler: Any,
    c2w: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    generator: torch.Generator | None = None,
    *,
    latents: Tensor | None = None,
    groups: FrameGroups | None = None,
    progress: Progress = lambda _: None,
) -> Tensor:
    """Return the latents [F, V, C, h, w] of views, sampled from noise.

    Args:
        denoiser: from ``FourDiffusionPipeline.prepare``.
        scheduler: a diffusers scheduler for a model that predicts noise.
        c2w: cameras [V, 4, 4].
        num_inference_steps: of the scheduler.
        guidance_scale: of classifier-free guidance.
        generator: of the initial noise.
        latents: the initial noise [F, V, C, h, w], instead of a generator.
        groups: frames denoised together; where groups overlap, their predictions are averaged
            (MultiDiffusion, Bar-Tal et al. 2023). None: all frames at once, up to the motion layers' length.
        progress: called with 1 after each step.

    Raises:
        UserError: the prediction or the latents of a step are not finite.
    """
    frames, channels, height, width = denoiser.extra.shape[1:]
    if latents is None:
        assert generator is not None, "give a generator or latents"
        shape = (frames, c2w.shape[0], channels, height, width)
        latents = torch.randn(shape, generator=generator, device=generator.device)
    z = latents.to(denoiser.extra.device)
    scheduler.set_timesteps(num_inference_steps, device=z.device)
    z = z * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        where = f"sampling step {step + 1} of {len(scheduler.timesteps)} (timestep {int(timestep)})"
        z_t = scheduler.scale_model_input(z, timestep)
        noise, passes = torch.zeros_like(z), torch.zeros(frames, 1, 1, 1, 1, device=z.device)
        for group in groups(step) if groups else [torch.arange(frames)]:
            branches = denoiser.at_frames(group)(z_t[group], int(timestep), c2w)
            for name, branch in zip(("conditional", "unconditional"), branches, strict=True):
                require_finite(branch, f"{where}: the UNet's {name} prediction")
            noise[group] += guide(*branches, guidance_scale)
            passes[group] += 1
        z = scheduler.step(noise / passes, timestep, z).prev_sample
        require_finite(z, f"{where}: the latents with guidance scale {guidance_scale:g}")
        progress(1)
    return z


def with_overrides(
    own: GenerationConfig,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    negative_prompt: str | None,
) -> GenerationConfig:
    """Return a model's own settings, overridden by the arguments of a call that are not None."""
    given = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
    }
    return replace(own, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
