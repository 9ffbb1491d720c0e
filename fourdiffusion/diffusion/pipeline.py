"""4DM as a diffusers pipeline: monocular video in, V orthogonal videos out.

Letters: F frames, V views without the extra view, C h w latent channels and pixels, H W image pixels.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.denoiser import Denoiser, unconditional
from fourdiffusion.diffusion.encoders import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModel
from fourdiffusion.diffusion.finite import require_finite
from fourdiffusion.diffusion.generation import Progress, generate_views, sample_latents, with_overrides
from fourdiffusion.diffusion.generation_config import NAME as GENERATION_CONFIG
from fourdiffusion.diffusion.generation_config import (
    check_generation_config,
    read_generation_config,
    write_generation_config,
)
from fourdiffusion.diffusion.images import Images
from fourdiffusion.diffusion.long_video import FrameGroups
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.diffusion.schedulers import set_scheduler
from fourdiffusion.diffusion.settings import GenerationConfig
from fourdiffusion.errors import UserError
from fourdiffusion.files import fill_folder

__all__ = ["Denoiser", "FourDiffusionPipeline", "unconditional"]
OUTPUT_TYPES = ("pt", "np", "pil", "latent")


class FourDiffusionPipeline(DiffusionPipeline):
    """The networks of 4DM: ``unet`` (frozen), ``motion`` (trained), VAE, text and image encoder, and the scheduler.

    ``generation_config`` has the model's own sampling settings, a file next to the networks.
    """

    generation_config: GenerationConfig

    # Motion layers run inside the UNet, and SDS alternates between VAE and UNet at each step: both stay on the device.
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
        self.generation_config = GenerationConfig()

    @torch.no_grad()
    def prepare(self, images: Tensor, prompt: str, negative_prompt: str | None, use_motion: bool = True) -> Denoiser:
        """Encode the conditions of one input video.

        Args:
            images: input frames on the background of the views, RGB in [0, 1], [F, 3, H, W].
            prompt: describes the object.
            negative_prompt: of the unconditional branch; None omits that branch, for guidance scale 1.
            use_motion: False gives the frozen image model frame by frame (the paper's "without 4D-SDS").

        Raises:
            UserError: an encoder's output is not finite.
        """
        images = images.to(self._execution_device)
        prompts = [prompt] if negative_prompt is None else [prompt, negative_prompt]
        text = encoders.encode_text(self.tokenizer, self.text_encoder, prompts)
        image = encoders.encode_image(self.feature_extractor, self.image_encoder, images)
        latents = torch.cat([encoders.encode_latents(self.vae, part) for part in images.split(encoders.VAE_BATCH)])
        for name, value in (("text", text), ("image", image), ("VAE", latents)):
            require_finite(value, f"conditions: the {name} encoder's output")
        return Denoiser(
            unet=self.unet,
            motion=self.motion if use_motion else None,
            context=self.unet.encode_context(text, torch.stack([image, torch.zeros_like(image)][: len(prompts)])),
            extra=torch.stack([latents, torch.zeros_like(latents)][: len(prompts)]).to(self.unet.dtype),
            alphas_cumprod=self.scheduler.alphas_cumprod.to(latents.device),
        )

    def sample(
        self,
        denoiser: Denoiser,
        c2w: Tensor,
        steps: int,
        guidance: float,
        generator: torch.Generator,
        groups: FrameGroups | None = None,
        progress: Progress = lambda _: None,
    ) -> Tensor:
        """Return latents [F, V, C, h, w] of the views ``c2w``: ``sample_latents`` with this pipeline's scheduler."""
        return sample_latents(
            denoiser, self.scheduler, c2w, steps, guidance, generator, groups=groups, progress=progress
        )

    def __call__(
        self,
        images: Images,
        prompt: str = "",
        negative_prompt: str | None = None,
        num_views: int = 4,
        elevation_deg: float = 0.0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        groups: FrameGroups | None = None,
        output_type: str = "pt",
    ) -> Any:
        """Return V evenly spaced videos of the object, the first from the input camera.

        Args:
            images: square input frames: a tensor [F, 3, H, W] or an array [F, H, W, 3], uint8 or float in [0, 1], or
                a list of PIL pictures; resized to the model's size.
            prompt: describes the object.
            negative_prompt, num_inference_steps, guidance_scale: None: the model's own, of ``generation_config``.
            num_views, elevation_deg: number and elevation of the views.
            generator: of the initial noise; None: seed 0.
            groups: frames denoised together; None: the model's own windows.
            output_type: "pt", "np", "pil" or "latent".

        Returns:
            "pt": RGB in [0, 1], [V, F, 3, H, W], float32, CPU. "np": an array [V, F, H, W, 3]. "pil": V lists of F
            pictures. "latent": latents [F, V, C, h, w].

        Raises:
            ValueError: an unknown output type, images or a step count that cannot be used.
            UserError: see ``generate_views``.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        if not 1 <= num_views <= 360:
            raise ValueError(f"num_views={num_views}: give 1 to 360")
        settings = with_overrides(self.generation_config, num_inference_steps, guidance_scale, negative_prompt)
        try:
            check_generation_config(settings, "")
        except UserError as error:
            raise ValueError(str(error)) from error
        with self.progress_bar(total=settings.num_inference_steps) as bar:
            views = generate_views(
                self,
                images,
                prompt,
                num_views=num_views,
                elevation_deg=elevation_deg,
                settings=settings,
                generator=generator,
                groups=groups,
                output_type="latent" if output_type == "latent" else "pt",
                progress=bar.update,
            )
        self.maybe_free_model_hooks()
        if output_type in ("pt", "latent"):
            return views
        pixels = views.movedim(2, -1).numpy()
        if output_type == "np":
            return pixels
        return [[Image.fromarray((frame * 255).round().astype("uint8")) for frame in video] for video in pixels]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "FourDiffusionPipeline":
        """Load a pipeline folder as diffusers does, with the scheduler and the sampling defaults of the model.

        Weights are loaded as ``dtype`` (float32 by default), whatever their type in the files: networks of different
        precision cannot run together. A folder without ``generation_config.json`` gets the release's sampling
        defaults, with a line on stderr.
        """
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = torch.float32
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        own = read_generation_config(folder)
        if own is None:
            own = GenerationConfig()
            tqdm.write(
                f"{folder} has no {GENERATION_CONFIG}: sampled as the release, {own.image_size} pixels, "
                f"{own.num_inference_steps} steps, guidance scale {own.guidance_scale:g}",
                file=sys.stderr,
            )
        pipeline.generation_config = own
        if "scheduler" not in kwargs:
            set_scheduler(pipeline, own.scheduler, own.timestep_spacing)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a pipeline folder as diffusers does, with the sampling defaults."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()  # a tokenizer file records how the last text was padded and cut: reset both
        backend.no_truncation()
        super().save_pretrained(save_directory, **kwargs)
        write_generation_config(Path(save_directory), self.generation_config)

    def save_motion(self, folder: str | Path) -> None:
        """Write only the motion layers, as a diffusers folder."""
        self.motion.save_pretrained(folder)

    def load_motion(self, folder: str | Path) -> None:
        """Load motion layers written by ``save_motion``.

        Raises:
            ValueError: they belong to a UNet of other widths.
        """
        motion = MotionModules.from_pretrained(folder, local_files_only=True, dtype=self.unet.dtype)
        if (found := list(motion.config.channels)) != (widths := self.unet.block_channels()):
            raise ValueError(f"{folder} holds motion layers for blocks of widths {found}, this UNet has {widths}")
        self.register_modules(motion=motion.to(self._execution_device))

    def save_whole(self, folder: Path) -> None:
        """Write the pipeline; ``folder`` is replaced after everything is written."""
        fill_folder(folder, self.save_pretrained, replace=True)
