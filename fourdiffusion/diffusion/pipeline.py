"""4DM as a diffusers pipeline: monocular video in, V orthogonal videos out.

Letters: F frames, V views without the extra view, C h w latent channels and pixels, H W image pixels.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.hooks import apply_layerwise_casting
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fourdiffusion import cameras
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.attention import KeysValues
from fourdiffusion.diffusion.distillation import guide, noise_of_velocity
from fourdiffusion.diffusion.encoders import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModel
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.errors import UserError

NEGATIVE_PROMPT = (  # the sampler's, method.md section 5
    "uniform low no texture ugly, boring, bad anatomy, blurry, pixelated,  obscure, unnatural colors, "
    "poor lighting, dull, and unclear."
)
DISTILLATION_NEGATIVE_PROMPT = (  # the 4D stage's, likewise
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
    "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OFFLOADS = ("none", "model")


@dataclass
class ModelConfig:
    """Where the weights are, and the sizes of a model made from nothing. The sizes' defaults are the release's."""

    path: str | None = None  # pipeline folder; None makes a fresh, untrained model of the sizes below
    sampler: str = "ddim"  # ddim | dpm++ | unipc | euler, compared in docs/pipeline.md
    spacing: str | None = None  # of its steps: leading | trailing | linspace; None: the sampler's own
    sampling_steps: int = 100
    guidance: float = 5.0  # of the sampler
    negative_prompt: str = NEGATIVE_PROMPT  # of the sampler
    distillation_negative: str = DISTILLATION_NEGATIVE_PROMPT  # of the 4D stage
    window: int = 8  # frames that the model sees together, as many as it was trained with
    long_video: str = "windows"  # how longer videos are cut: windows | interleaved
    dtype: str = "float32"  # of all networks in generate and fit: float32 | bfloat16 | float16
    storage: str | None = None  # generate and fit: UNet, motion layers and towers lie in this, and compute in dtype
    channels_last: bool = False  # generate and fit: memory layout of UNet and VAE; convolutions may run faster
    compile: bool = False  # generate and fit: torch.compile of the UNet; minutes at the first step
    offload: str = "none"  # generate and fit: none | model: towers and UNet wait in the CPU's memory for their turn
    image_size: int = 256  # pixels
    channels: list[int] = field(default_factory=lambda: [320, 640, 1280, 1280])
    attention_levels: list[bool] = field(default_factory=lambda: [True, True, True, False])
    blocks_per_level: int = 2
    head_dim: int = 64
    context_dim: int = 1024
    num_image_tokens: int = 16
    resampler_layers: int = 4
    resampler_heads: int = 12
    resampler_head_dim: int = 64
    norm_groups: int = 32  # of the UNet's and the motion layers' group normalisation
    prediction: str = "epsilon"  # what the UNet's output means: epsilon | velocity
    positions: bool = False  # whether attention is told where in the picture a token stands
    motion_heads: int = 8
    max_frames: int = 32
    latent_channels: int = 4
    vae_channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])
    vae_blocks_per_level: int = 2
    vae_norm_groups: int = 32
    vae_attention: bool = True
    vocabulary: int = 49408
    text_length: int = 77
    text_layers: int = 23
    text_heads: int = 16
    image_encoder_size: int = 224
    image_patch: int = 14
    image_dim: int = 1280
    image_layers: int = 32
    image_heads: int = 16


FrameGroups = Callable[[int], list[Tensor]]  # number of a sampling step -> groups of frame numbers that cover the video


def windows(num_frames: int, length: int) -> FrameGroups:
    """Runs of ``length`` neighbouring frames that overlap by half; where they overlap, the predictions are averaged.

    The noise that a frame is denoised with is then one for all the windows it lies in (after MultiDiffusion, Bar-Tal
    et al. 2023), so neighbouring windows agree where they meet.
    """
    starts = [*range(0, num_frames - length, max(length // 2, 1)), max(num_frames - length, 0)]
    groups = [torch.arange(start, min(start + length, num_frames)) for start in starts]
    return lambda _: groups


def interleaved(num_frames: int, length: int) -> FrameGroups:
    """Every so manieth frame, so that a group spans the whole video (paper Fig. 5), in turn with plain runs.

    Groups that never meet differ from frame to frame; runs at every other step, shifted by half a run each time, join
    them.
    """
    count = -(-num_frames // length)
    spread = [torch.arange(first, num_frames, count) for first in range(count)]

    def groups(step: int) -> list[Tensor]:
        if step % 2 == 0:
            return spread
        bounds = [0, *range(max(length // 2, 1) if step % 4 == 3 else length, num_frames, length), num_frames]
        return [torch.arange(low, high) for low, high in pairwise(bounds)]

    return groups


def frame_groups(config: ModelConfig, num_frames: int, max_frames: int) -> FrameGroups | None:
    """What the settings ask for; None where the video fits into one group. ``max_frames``: the motion layers' length.

    UserError for an unknown kind, and for windows longer than the motion layers know.
    """
    kinds = {"windows": windows, "interleaved": interleaved}
    if config.long_video not in kinds:
        raise UserError(f"model.long_video={config.long_video} is none of {', '.join(kinds)}")
    if not 1 <= config.window <= max_frames:
        raise UserError(f"model.window={config.window}: the motion layers know 1 to {max_frames} frames")
    return kinds[config.long_video](num_frames, config.window) if num_frames > config.window else None


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


def open_pipeline(config: ModelConfig, device: torch.device) -> FourDiffusionPipeline:
    """The model as ``generate`` and ``fit`` run it: sampler, precision, layout and place as the settings ask.

    The VAE runs in the same precision, as in the release: what its gradient keeps is the largest part of an SDS step.

    Raises:
        UserError: a setting that is unknown or cannot be had here; or ``load_pipeline``'s.
    """
    if config.dtype not in DTYPES:
        raise UserError(f"model.dtype={config.dtype} is none of {', '.join(DTYPES)}")
    if config.storage is not None and config.storage not in DTYPES:
        raise UserError(f"model.storage={config.storage} is none of {', '.join(DTYPES)}")
    if config.offload not in OFFLOADS:
        raise UserError(f"model.offload={config.offload} is none of {', '.join(OFFLOADS)}")
    if config.offload == "model" and device.type == "cpu":
        raise UserError("model.offload=model needs a GPU, and the device is the CPU: set model.offload=none")
    pipeline = load_pipeline(config.path, DTYPES[config.dtype])
    set_sampler(pipeline, config.sampler, config.spacing)
    if config.storage is not None:  # not the VAE: its gradient needs the weights after the pass
        for module in (pipeline.unet, pipeline.motion, pipeline.text_encoder, pipeline.image_encoder):
            apply_layerwise_casting(module, DTYPES[config.storage], DTYPES[config.dtype])
    if config.channels_last:
        for module in (pipeline.unet, pipeline.vae):
            module.to(memory_format=torch.channels_last)
    if config.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if config.compile:
        pipeline.unet.compile()
    return pipeline


def load_pipeline(path: str | Path | None, dtype: torch.dtype = torch.float32) -> FourDiffusionPipeline:
    """A pipeline folder from disk, in ``dtype`` at once; UserError where it is missing, foreign or damaged."""
    if path is None or not (Path(path) / "model_index.json").is_file():
        raise UserError(f"model.path={path} holds no model: name a pipeline folder (one with model_index.json)")
    folder = Path(path)
    try:
        pipeline = FourDiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype)
        _check_whole(folder, pipeline)
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the model in {folder} cannot be loaded ({reason}): restore the folder, or choose another"
        ) from error
    return pipeline


def _check_whole(folder: Path, pipeline: FourDiffusionPipeline) -> None:
    """ValueError where ``from_pretrained`` only warned: what a file lacks it fills with fresh weights and no words."""
    if len(pipeline.tokenizer) < 256:  # one for each byte at least
        raise ValueError(f"tokenizer: its vocabulary has {len(pipeline.tokenizer)} entries")
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            stored: set[str] = set()
            for path in (folder / name).glob("*.safetensors"):
                with safe_open(path, framework="pt") as file:
                    stored.update(file.keys())
            if different := sorted(stored ^ part.state_dict().keys()):
                raise ValueError(f"{name}: the file and the model differ in {', '.join(different[:3])}")


SAMPLERS = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}
SPACINGS = ("leading", "trailing", "linspace")


def set_sampler(pipeline: FourDiffusionPipeline, name: str, spacing: str | None = None) -> None:
    """Lets the pipeline sample with another of diffusers' schedulers, on its own noise schedule.

    DDIM's own steps are leading ones, as in the release: few of them begin far from pure noise, where trailing ones
    begin always (Lin et al. 2023).
    """
    if name not in SAMPLERS:
        raise UserError(f"model.sampler={name} is none of {', '.join(SAMPLERS)}")
    if spacing not in (None, *SPACINGS):
        raise UserError(f"model.spacing={spacing} is none of {', '.join(SPACINGS)}")
    chosen = {} if spacing is None else {"timestep_spacing": spacing}
    pipeline.register_modules(scheduler=SAMPLERS[name].from_config(pipeline.scheduler.config, **chosen))


def noise_schedule() -> DDIMScheduler:
    """SD's 1000 steps: scaled-linear betas 0.00085 to 0.0120, epsilon prediction (method.md section 1)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.0120,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def fresh_pipeline(config: ModelConfig, tokenizer: CLIPTokenizer, seed: int) -> FourDiffusionPipeline:
    """An untrained model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = MultiviewUNet(
            in_channels=config.latent_channels,
            channels=list(config.channels),
            attention_levels=list(config.attention_levels),
            blocks_per_level=config.blocks_per_level,
            head_dim=config.head_dim,
            context_dim=config.context_dim,
            image_dim=config.image_dim,
            num_image_tokens=config.num_image_tokens,
            resampler_layers=config.resampler_layers,
            resampler_heads=config.resampler_heads,
            resampler_head_dim=config.resampler_head_dim,
            norm_groups=config.norm_groups,
            prediction=config.prediction,
            positions=config.positions,
        )
        return FourDiffusionPipeline(
            unet=unet,
            motion=MotionModules(unet.block_channels(), config.motion_heads, config.max_frames, config.norm_groups),
            vae=encoders.fresh_vae(
                config.vae_channels,
                config.vae_blocks_per_level,
                config.vae_norm_groups,
                config.vae_attention,
                config.latent_channels,
            ),
            tokenizer=tokenizer,
            text_encoder=encoders.fresh_text_encoder(
                tokenizer, config.vocabulary, config.context_dim, config.text_layers, config.text_heads
            ),
            image_encoder=encoders.fresh_image_encoder(
                config.image_encoder_size, config.image_patch, config.image_dim, config.image_layers, config.image_heads
            ),
            feature_extractor=encoders.image_processor(config.image_encoder_size),
            scheduler=noise_schedule(),
        )
