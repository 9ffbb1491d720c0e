"""From settings to a pipeline: opened as the verbs run it, loaded from disk, or made from nothing."""

from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.hooks import apply_layerwise_casting
from safetensors import SafetensorError, safe_open
from torch import nn

from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.encoders import CLIPTokenizer
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OFFLOADS = ("none", "model")
SAMPLERS = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}
SPACINGS = ("leading", "trailing", "linspace")


def open_pipeline(config: ModelConfig, device: torch.device) -> FourDiffusionPipeline:
    """The model as ``generate`` and ``fit`` run it: sampler, precision, layout and place as the settings ask.

    The VAE runs in the same precision, as in the release: what its gradient keeps is the largest part of an SDS step.

    Raises:
        UserError: a setting that is unknown or cannot be had here; or ``load_pipeline``'s.
    """
    if config.dtype not in DTYPES:
        raise UserError(f"model.dtype={config.dtype} is none of {', '.join(DTYPES)}")
    if config.storage_dtype is not None and config.storage_dtype not in DTYPES:
        raise UserError(f"model.storage_dtype={config.storage_dtype} is none of {', '.join(DTYPES)}")
    if config.offload not in OFFLOADS:
        raise UserError(f"model.offload={config.offload} is none of {', '.join(OFFLOADS)}")
    if config.offload == "model" and device.type == "cpu":
        raise UserError("model.offload=model needs a GPU, and the device is the CPU: set model.offload=none")
    pipeline = load_pipeline(config.path, DTYPES[config.dtype])
    set_sampler(pipeline, config.scheduler, config.timestep_spacing)
    if config.storage_dtype is not None:  # not the VAE: its gradient needs the weights after the pass
        for module in (pipeline.unet, pipeline.motion, pipeline.text_encoder, pipeline.image_encoder):
            apply_layerwise_casting(module, DTYPES[config.storage_dtype], DTYPES[config.dtype])
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


def set_sampler(pipeline: FourDiffusionPipeline, name: str, spacing: str | None = None) -> None:
    """Lets the pipeline sample with another of diffusers' schedulers, on its own noise schedule.

    DDIM's own steps are leading ones, as in the release: few of them begin far from pure noise, where trailing ones
    begin always (Lin et al. 2023).
    """
    if name not in SAMPLERS:
        raise UserError(f"model.scheduler={name} is none of {', '.join(SAMPLERS)}")
    if spacing not in (None, *SPACINGS):
        raise UserError(f"model.timestep_spacing={spacing} is none of {', '.join(SPACINGS)}")
    chosen = {} if spacing is None else {"timestep_spacing": spacing}
    pipeline.register_modules(scheduler=SAMPLERS[name].from_config(pipeline.scheduler.config, **chosen))


def noise_schedule(beta_end: float = 0.0120) -> DDIMScheduler:
    """SD's 1000 steps: scaled-linear betas from 0.00085 to 0.0120, or else to ``beta_end`` (method.md section 1)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=beta_end,
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
                tokenizer, config.vocab_size, config.context_dim, config.text_layers, config.text_heads
            ),
            image_encoder=encoders.fresh_image_encoder(
                config.image_encoder_size, config.image_patch, config.image_dim, config.image_layers, config.image_heads
            ),
            feature_extractor=encoders.image_processor(config.image_encoder_size),
            scheduler=noise_schedule(config.beta_end),
        )
