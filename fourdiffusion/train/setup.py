"""What a run is made of before its first step: processes, clips, networks, objective, optimizer."""

import importlib.util
import os
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from tqdm import tqdm

from fourdiffusion.datasets.sampling import ClipSamples, open_clips
from fourdiffusion.diffusion import encoders, precompute
from fourdiffusion.diffusion.loading import DTYPES, cast, fresh_pipeline, load_pipeline
from fourdiffusion.diffusion.lora import add_lora
from fourdiffusion.diffusion.motion_sources import read_motion
from fourdiffusion.diffusion.objectives import AutoencoderObjective, DiffusionObjective, TowersObjective
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import architecture
from fourdiffusion.errors import UserError
from fourdiffusion.metrics.lpips import load_lpips
from fourdiffusion.train.settings import OPTIMIZERS, STAGES, TrainConfig
from fourdiffusion.train.step import micro_batch_size

Objective = AutoencoderObjective | TowersObjective | DiffusionObjective
DIVIDING = {  # what `accelerate launch` tells its processes, and what it means
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return the processes that train. UserError for a precision that cannot be had here, and for divided weights."""
    for variable, name in DIVIDING.items():
        if os.environ.get(variable, "").lower() == "true":
            raise UserError(
                f"accelerate's {name} divides weights and optimizer, which checkpoints here do not gather: use "
                "distributed_type MULTI_GPU, configs/accelerate/ddp.yaml (a process fits on 24 GB)"
            )
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of the gradients
    try:
        return Accelerator(cpu=config.cpu, mixed_precision=config.mixed_precision, kwargs_handlers=[views])
    except ValueError as error:
        raise UserError(f"mixed_precision={config.mixed_precision}: {error}") from error


def open_data(config: TrainConfig) -> ClipSamples:
    """Return the training samples: item (step, number in the global batch). Stages before motion read single frames."""
    motion = config.stage == "motion"
    return ClipSamples(config.data, config.data.num_frames if motion else 1, config.seed, config.batch_size, motion)


def check(config: TrainConfig, pipeline: FourDiffusionPipeline, data: ClipSamples, num_processes: int) -> None:
    """UserError where clips, model and settings do not fit together: known before there is a run folder."""
    check_settings(config, num_processes)
    longest = pipeline.motion.config.max_frames
    if config.stage == "motion" and config.data.num_frames > longest:
        raise UserError(f"data.num_frames={config.data.num_frames}: the motion layers know {longest} frames at most")
    if config.validation_every and config.validation_data is not None:
        open_clips(config.validation_data)
    halvings = len(pipeline.vae.config.block_out_channels) - 1
    halvings += len(pipeline.unet.config.channels) - 1 if config.stage != "vae" else 0
    _ = data[0, 0]  # what is wrong with all clips is known here
    height, width = data.picture_size
    if config.data.latents:
        check_latents(config, pipeline, data)
    side, factor = config.crop_size, 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    if config.stage == "vae" and side is not None and (side > min(height, width) or side % factor):
        raise UserError(
            f"crop_size={side}: give a multiple of {factor}, at most the pictures' {min(height, width)} pixels"
        )
    if height % 2**halvings or width % 2**halvings:
        raise UserError(
            f"{config.data.path} holds clips of {width} x {height} pixels: this model needs multiples of {2**halvings}"
        )


def check_latents(config: TrainConfig, pipeline: FourDiffusionPipeline, data: ClipSamples) -> None:
    """UserError where cached tensors are of no use to the stage, or were made by other weights."""
    if config.stage not in ("base", "motion"):
        raise UserError(f"data.latents=true, and stage={config.stage} trains on pictures: set data.latents=false")
    names = precompute.NAMES if config.stage == "motion" else (precompute.LATENTS,)
    for name, digest in precompute.encoder_digests(pipeline, names).items():
        if data.source.encoders.get(name) != digest:
            raise UserError(
                f"data.latents=true: the {name} in {config.data.path} were made by other weights than those in "
                f"model.path={config.model.path}: pack the clips with this model, or set data.latents=false"
            )


def check_settings(config: TrainConfig, num_processes: int) -> None:
    """UserError for a setting that is wrong whatever the clips and the model are."""
    if config.stage not in STAGES:
        raise UserError(f"stage={config.stage} is none of {', '.join(STAGES)}")
    for name in ("batch_size", "log_every", "checkpoint_every", "vae_batch_size", "validation_clips"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)}: give at least 1")
    try:
        micro_batch_size(config, num_processes)
    except ValueError as error:
        raise UserError(f"{error}: choose sizes that do") from error
    if config.frozen_dtype not in DTYPES:
        raise UserError(f"frozen_dtype={config.frozen_dtype} is none of {', '.join(DTYPES)}")
    if config.frozen_dtype != "float32" and config.mixed_precision == "no":
        raise UserError(
            f"frozen_dtype={config.frozen_dtype} computes in half precision: set mixed_precision=bf16 (or fp16) too"
        )
    if config.timestep_shift <= 0:
        raise UserError(f"timestep_shift={config.timestep_shift}: give a number above 0; 1 is uniform")
    if config.model.dtype != "float32":
        raise UserError(f"model.dtype={config.model.dtype}: training keeps float32 weights, set mixed_precision=bf16")
    if config.optimizer not in OPTIMIZERS:
        raise UserError(f"optimizer={config.optimizer} is none of {', '.join(OPTIMIZERS)}")
    if config.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("optimizer=adamw_8bit: bitsandbytes is not installed: pip install bitsandbytes, or take adamw")
    if config.stage != "motion":
        for name, off in (("init_motion", None), ("projection_steps", 0), ("lora_rank", 0)):
            if getattr(config, name) != off:
                raise UserError(f"{name}={getattr(config, name)} is for stage=motion: leave it out")
    if config.lora_rank and importlib.util.find_spec("peft") is None:
        raise UserError(f"lora_rank={config.lora_rank}: peft is not installed: pip install peft, or set lora_rank=0")
    if config.stage == "clip" and config.batch_size < 2:
        raise UserError(f"batch_size={config.batch_size}: stage=clip tells captions apart, give at least 2")
    if config.stage == "clip" and config.validation_every:
        raise UserError("stage=clip has no pictures to show: set validation_every=0")


def make_pipeline(config: TrainConfig, data: ClipSamples) -> FourDiffusionPipeline:
    """Return the model that the run starts from: loaded, or fresh; with motion layers from ``init_motion``."""
    if config.model.path is not None:
        pipeline = load_pipeline(config.model.path)
        if config.init_motion is not None:
            state = read_motion(Path(config.init_motion), pipeline.unet, pipeline.motion, "init_motion")
            pipeline.motion.load_state_dict(state)
        return pipeline
    if config.stage == "motion":
        raise UserError("stage=motion needs a trained base: set model.path to its pipeline folder")
    captions = [data.source.caption(number) for number in range(len(data.source))]
    if config.stage == "base":
        tqdm.write("model.path=null: VAE and towers are untrained; set it to what the stages vae and clip made")
    try:
        sizes = architecture(config.model)
        tokenizer = encoders.train_tokenizer(captions, sizes.vocab_size, sizes.text_length)
        return fresh_pipeline(config.model, tokenizer, config.seed)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def make_objective(config: TrainConfig, pipeline: FourDiffusionPipeline) -> Objective:
    """Return what the stage minimizes; its networks are the pipeline's, of which it freezes what it does not train."""
    if config.stage == "vae":
        lpips = None
        if config.lpips_weight:
            lpips = load_lpips(config.lpips_weights, "squeeze")
            if lpips is None:
                raise UserError(
                    f"lpips_weight={config.lpips_weight:g} needs SqueezeNet 1.1 and LPIPS' heads, which are not in "
                    f"{config.lpips_weights or 'the caches of torch and lpips'}: set lpips_weights to their folder"
                )
        return AutoencoderObjective(pipeline, config.kl_weight, config.lpips_weight, lpips)
    if config.stage == "clip":
        return TowersObjective(pipeline)
    stage: Literal["base", "motion"] = "base" if config.stage == "base" else "motion"
    return DiffusionObjective(
        pipeline,
        stage,
        config.cond_drop_prob,
        config.text_drop_prob,
        config.cond_drop_camera,
        config.min_snr_gamma,
        config.vae_batch_size,
        add_lora(pipeline.unet, config.lora_rank, config.seed) if config.lora_rank else None,
    )


def make_optimizer(
    config: TrainConfig, parameters: list[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW over the trained parameters, and nothing else."""
    if config.optimizer == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    fused = device.type in ("cpu", "cuda")  # faster, and no temporary tensors as large as the weights
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def idle_encoders(config: TrainConfig, pipeline: FourDiffusionPipeline) -> list[torch.nn.Module]:
    """Return the encoders that cached tensors stand in for: they stay on the CPU but for validation."""
    if not config.data.latents:
        return []
    return [pipeline.vae, *([pipeline.text_encoder, pipeline.image_encoder] if config.stage == "motion" else [])]


def place(config: TrainConfig, pipeline: FourDiffusionPipeline, objective: Objective, device: torch.device) -> None:
    """Move the networks to the device, their frozen parameters to ``frozen_dtype``."""
    idle = idle_encoders(config, pipeline)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module) and not any(module is each for each in idle):
            module.to(device)
    frozen = DTYPES[config.frozen_dtype]
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder):
        if not any(parameter.requires_grad for parameter in module.parameters()):
            cast(module, frozen)
        elif config.lora_rank:
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(frozen)
    for module in (pipeline.unet, pipeline.vae):
        module.to(memory_format=torch.channels_last)  # convolutions run a quarter faster on CPU and in half precision
    objective.to(device)
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    if config.compile:
        pipeline.unet.compile()
