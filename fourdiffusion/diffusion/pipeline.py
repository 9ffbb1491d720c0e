"""4DM as a diffusers pipeline: monocular video in, V orthogonal videos out.

Letters: F frames, V views without the extra view, C h w latent channels and pixels, H W image pixels.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.attention import KeysValues
from fourdiffusion.diffusion.distillation import guide, noise_of_velocity
from fourdiffusion.diffusion.encoders import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModel
from fourdiffusion.diffusion.long_video import FrameGroups
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.diffusion.settings import NEGATIVE_PROMPT


def unconditional(negative_prompt: str, guidance: float) -> str | None:
    """The prompt of the unconditional branch; None where guidance does without one."""
    return None if guidance == 1 else negative_prompt


@dataclass
class Denoiser:
    """The guided model of one input video: the branches' conditions, encoded once.

    ``context`` and ``extra`` hold the conditional branch first and the unconditional (negative prompt, zero image
    tokens, zero extra view) second, if there is one: guidance 1 does without.
    """

    unet: MultiviewUNet
    motion: MotionModules | None  # None: the image model, frame by frame
    context: list[KeysValues | None]
    extra: Tensor  # latents of the extra view, [2 or 1, F, C, h, w]
    alphas_cumprod: Tensor  # of the noise schedule, [1000]

    def at_frames(self, frames: Tensor) -> "Denoiser":
        """The model of some of the video's frames, given by their numbers [N]; nothing is encoded again."""
        context = [layer and layer.at_frames(frames) for layer in self.context]
        return replace(self, context=context, extra=self.extra[:, frames])

    @torch.no_grad()
    def __call__(self, z: Tensor, timestep: int, c2w: Tensor) -> tuple[Tensor, Tensor]:
        """Noise of the branches, in one batch.

        Args:
            z: noisy latents [F, V, C, h, w].
            timestep: 0..999.
            c2w: cameras [V, 4, 4], relative to an input camera at azimuth 0.

        Returns:
            Conditional and unconditional noise, [F, V, C, h, w] each; twice the same without a second branch.
        """
        branches = len(self.extra)
        views = torch.cat([z.to(self.extra.dtype).expand(branches, *z.shape), self.extra[:, :, None]], dim=2)
        camera = cameras.conditioning(c2w.to(z.device, torch.float32))
        camera = torch.cat([camera, torch.zeros_like(camera[:1])]).to(self.extra.dtype).expand(branches, -1, -1)
        step = torch.full((branches,), timestep, device=z.device)
        noise = self.unet(views, step, self.context, camera, self.motion)[:, :, :-1].to(z.dtype)
        if self.unet.config.prediction == "velocity":
            noise = noise_of_velocity(z, noise, self.alphas_cumprod[timestep])
        return noise[0], noise[-1]


class FourDiffusionPipeline(DiffusionPipeline):
    """The parts of 4DM in one folder: ``unet`` (frozen), ``motion`` (trained), VAE, both towers, scheduler."""

    # Motion layers run inside the UNet, and fit goes from VAE to UNet and back at each step: they take no turns.
    model_cpu_offload_seq = "text_encoder->image_encoder->unet"
    _exclude_from_cpu_offload = ["motion", "vae"]

    def __init__(
        self,
        unet: MultiviewUNet,
        motion: MotionModules,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        image_encoder: CLIPVisionModel,
        feature_extractor: CLIPImageProcessorPil,
        scheduler: DDIMScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            motion=motion,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            scheduler=scheduler,
        )

    @torch.no_grad()
    def prepare(self, images: Tensor, prompt: str, negative_prompt: str | None, use_motion: bool = True) -> Denoiser:
        """Encodes the conditions of one input video.

        Args:
            images: input frames on the colour of the renders' background, RGB in [0, 1], [F, 3, H, W].
            prompt: what the object is.
            negative_prompt: what the picture must not be; None leaves the unconditional branch out, for guidance 1.
            use_motion: False gives the frozen image model frame by frame (the paper's "without 4D-SDS").
        """
        images = images.to(self._execution_device)
        prompts = [prompt] if negative_prompt is None else [prompt, negative_prompt]
        text = encoders.encode_text(self.tokenizer, self.text_encoder, prompts)
        image = encoders.encode_image(self.feature_extractor, self.image_encoder, images)
        latents = torch.cat([encoders.encode_latents(self.vae, part) for part in images.split(encoders.PICTURES)])
        return Denoiser(
            unet=self.unet,
            motion=self.motion if use_motion else None,
            context=self.unet.encode_context(text, torch.stack([image, torch.zeros_like(image)][: len(prompts)])),
            extra=torch.stack([latents, torch.zeros_like(latents)][: len(prompts)]).to(self.unet.dtype),
            alphas_cumprod=self.scheduler.alphas_cumprod.to(latents.device),
        )

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        c2w: Tensor,
        steps: int,
        guidance: float,
        generator: torch.Generator,
        groups: FrameGroups | None = None,
        progress: Callable[[float], bool | None] = lambda _: None,
    ) -> Tensor:
        """Latents [F, V, C, h, w] of the views ``c2w`` [V, 4, 4], from noise, with this pipeline's scheduler.

        Args:
            denoiser: from ``prepare``.
            steps: of the scheduler.
            guidance: scale of classifier-free guidance.
            generator: of the first noise.
            groups: which frames the model sees together; None: all at once, up to the motion layers' length.
            progress: called with 1 after each step.
        """
        frames, channels, height, width = denoiser.extra.shape[1:]
        shape = (frames, c2w.shape[0], channels, height, width)
        z = torch.randn(shape, generator=generator, device=generator.device).to(denoiser.extra.device)
        self.scheduler.set_timesteps(steps, device=z.device)
        z = z * self.scheduler.init_noise_sigma
        for number, timestep in enumerate(self.scheduler.timesteps):
            z_t = self.scheduler.scale_model_input(z, timestep)
            noise, passes = torch.zeros_like(z), torch.zeros(frames, 1, 1, 1, 1, device=z.device)
            for group in groups(number) if groups else [torch.arange(frames)]:
                noise[group] += guide(*denoiser.at_frames(group)(z_t[group], int(timestep), c2w), guidance)
                passes[group] += 1
            noise = noise / passes
            z = self.scheduler.step(noise, timestep, z).prev_sample
            progress(1)
        return z

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        prompt: str = "",
        negative_prompt: str = NEGATIVE_PROMPT,
        num_views: int = 4,
        elevation_deg: float = 0.0,
        num_inference_steps: int = 100,
        guidance_scale: float = 5.0,
        generator: torch.Generator | None = None,
        groups: FrameGroups | None = None,
    ) -> Tensor:
        """V evenly spaced videos of the object, the first from where the input camera stands.

        Args:
            images: input frames, RGB in [0, 1], [F, 3, H, W].
            groups: for more frames than the motion layers know; ``windows(F, 8)`` or ``interleaved(F, 8)``.

        Returns:
            RGB in [0, 1], [V, F, 3, H, W], float32.
        """
        c2w = cameras.orbit(cameras.orthogonal_azimuths(num_views), elevation_deg)
        denoiser = self.prepare(images, prompt, unconditional(negative_prompt, guidance_scale))
        generator = generator or torch.Generator().manual_seed(0)
        with self.progress_bar(total=num_inference_steps) as bar:
            z = self.sample(denoiser, c2w, num_inference_steps, guidance_scale, generator, groups, bar.update)
        views = encoders.decode_latents(self.vae, z).transpose(0, 1)
        self.maybe_free_model_hooks()
        return views

    def save_motion(self, folder: str | Path) -> None:
        """Writes the motion layers alone, as a diffusers folder: what training adds to the base."""
        self.motion.save_pretrained(folder)

    def load_motion(self, folder: str | Path) -> None:
        """Puts motion layers that ``save_motion`` wrote in place of the present ones.

        Raises:
            ValueError: they belong to a UNet of other widths.
        """
        motion = MotionModules.from_pretrained(folder, local_files_only=True, dtype=self.unet.dtype)
        if (theirs := list(motion.config.channels)) != (ours := self.unet.block_channels()):
            raise ValueError(f"{folder} holds motion layers for blocks of widths {theirs}, this UNet has {ours}")
        self.register_modules(motion=motion.to(self._execution_device))

    def save_whole(self, folder: Path) -> None:
        """``save_pretrained`` that replaces ``folder`` only once everything is written."""
        partial = folder.with_name(folder.name + ".partial")
        if partial.exists():  # left by an interrupted run
            shutil.rmtree(partial)
        self.save_pretrained(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
