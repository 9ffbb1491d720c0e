"""``train``: the stages that make a 4DM.

``stage=vae``, ``stage=clip`` and ``stage=base`` make the frozen part of a small model, which full size takes from
ImageDream; ``stage=motion`` is the paper's training: motion layers alone, on clips of V views x F frames.
"""

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from fourdiffusion.datasets.clips import list_clips, read_caption
from fourdiffusion.datasets.sampling import Batch, ClipSamples, collate
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.loading import DTYPES, fresh_pipeline, load_pipeline
from fourdiffusion.diffusion.objectives import AutoencoderObjective, DiffusionObjective, TowersObjective
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import architecture
from fourdiffusion.errors import UserError
from fourdiffusion.files import save_tensors
from fourdiffusion.media.write import contact_sheet, write_image
from fourdiffusion.metrics.lpips import load_lpips
from fourdiffusion.runs import (
    append_log,
    deferred_signals,
    folder_digest,
    load_checkpoint,
    lock_folder,
    open_run,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    terminable,
    trim_log,
)
from fourdiffusion.tracking import check_trackers, trackers
from fourdiffusion.train.settings import STAGES, TrainConfig
from fourdiffusion.train.step import (
    clip_inputs,
    diffusion_inputs,
    ema_decay,
    learning_rate_factor,
    micro_batch_size,
    micro_batches,
    vae_inputs,
)

FREE = {
    "max_steps",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_every",
    "validation_every",
    "trackers",
}
FREE |= {"num_workers", "cpu", "micro_batch_size", "gradient_checkpointing", "data.cache_mib"}  # the result is the same
Objective = AutoencoderObjective | TowersObjective | DiffusionObjective


def train(config: TrainConfig) -> None:
    """Train one stage until ``max_steps``; run again, it resumes from the last checkpoint, bit for bit on CPU."""
    if config.stage not in STAGES:
        raise UserError(f"stage={config.stage} is none of {', '.join(STAGES)}")
    check_trackers(config.trackers)
    output, accelerator = Path(config.output), _accelerator(config)
    main = accelerator.is_main_process
    data = ClipSamples(config.data, config.data.num_frames if config.stage == "motion" else 1, config.seed)
    pipeline = _pipeline(config, data)
    _check(config, pipeline, data, accelerator.num_processes)
    objective = _objective(config, pipeline)
    with terminable(), lock_folder(output) if main else contextlib.nullcontext():
        if main:
            content = {} if config.model.path is None else {"model.path": folder_digest(Path(config.model.path))}
            open_run(output, config, FREE, content=content)
        accelerator.wait_for_everyone()
        optimize(config, accelerator, pipeline, objective, data)
        if main:
            _export(config, pipeline, data, output / "model")
            tqdm.write(f"weights (moving average): {output / 'model'}")
    accelerator.end_training()


def optimize(
    config: TrainConfig,
    accelerator: Accelerator,
    pipeline: FourDiffusionPipeline,
    objective: Objective,
    data: ClipSamples,
) -> None:
    """Run the steps from the last checkpoint to ``max_steps``; leave the moving average in the networks."""
    output, device, main = Path(config.output), accelerator.device, accelerator.is_main_process
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    parameters = [p for p in objective.trainable.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    start = _resume(output, objective, optimizer)
    if main:
        trim_log(output, start.step)
    ema = {name: value.to(device, copy=True) for name, value in start.ema.items()}
    _place(config, pipeline, objective, device)
    model, optimizer = accelerator.prepare(objective, optimizer)
    accumulation = config.batch_size // (micro_batch_size(config, num_processes) * num_processes)
    batches = iter(
        DataLoader(
            data,
            batch_sampler=micro_batches(config, start.step, rank, num_processes),
            num_workers=config.num_workers,
            collate_fn=collate,
        )
    )
    bar = tqdm(
        range(start.step, config.max_steps), f"train {config.stage}", config.max_steps, start.step, disable=not main
    )
    began = saved = time.monotonic()
    names = config.trackers if main else []
    with (
        deferred_signals() as interrupted,
        trackers(names, output, start.step, dataclasses.asdict(config)) as track,
    ):
        for step in bar:
            rate = config.learning_rate * learning_rate_factor(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            sums: dict[str, Tensor] = {}
            for micro in range(accumulation):
                inputs = _inputs(config, pipeline, next(batches), step, device)
                last = micro == accumulation - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    with accelerator.autocast():
                        terms = {name: value / accumulation for name, value in model(*inputs).items()}
                    loss = torch.stack(list(terms.values())).sum()
                    if not bool(loss.isfinite()):
                        raise UserError(_diverged(config, step, terms))
                    accelerator.backward(loss)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0) + value.detach()
            norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
            if accelerator.scaler is None and not math.isfinite(norm):  # fp16's scaler skips such steps itself
                raise UserError(f"the gradient's norm is {float(norm)} at step {step}: lower learning_rate")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            trained = objective.trainable.state_dict()
            torch._foreach_lerp_([ema[name] for name in trained], list(trained.values()), 1 - ema_decay(config, step))

            done, now = step + 1, time.monotonic()
            if done % config.log_every == 0 or done == config.max_steps:
                means = {name: float(accelerator.reduce(value, "mean")) for name, value in sums.items()}
                line = {"loss": sum(means.values()), "grad_norm": float(norm), **means, "lr": rate}
                if main:
                    bar.set_postfix(loss=f"{line['loss']:.4f}")
                    append_log(output, {"step": done, **line, "seconds": round(now - began, 2)})
                    track(line, done)
            stopping = main and interrupted()  # the other processes go on until they are stopped
            due = 0 < config.checkpoint_minutes <= (now - saved) / 60
            if main and (due or done % config.checkpoint_every == 0 or done == config.max_steps or stopping):
                save_checkpoint(output, "train", _state(objective, optimizer, ema), done)
                saved = now
            if main and config.keep_every and done % config.keep_every == 0:
                kept = _state(objective, optimizer, ema)
                save_tensors(output / "kept" / f"{done:06d}.safetensors", kept, {"step": done})
            if stopping:
                interrupted.leave()
            if main and config.validation_every and done % config.validation_every == 0:
                with _weights(objective, ema):
                    _sample(config, pipeline, output / f"sample_{done:06d}.png")
            accelerator.wait_for_everyone()
    objective.trainable.load_state_dict(ema)


def _diverged(config: TrainConfig, step: int, terms: dict[str, Tensor]) -> str:
    """Return the message for a loss that is not finite; it names the first term that is not."""
    name, value = next((n, v) for n, v in terms.items() if not bool(v.isfinite()))
    return (
        f"the loss is {value.item()} at step {step} (term {name}): lower learning_rate; "
        f"{config.output} holds the last checkpoint"
    )


def _place(config: TrainConfig, pipeline: FourDiffusionPipeline, objective: Objective, device: torch.device) -> None:
    """Move the networks to the device, the frozen ones to their type."""
    pipeline.to(device)
    frozen = DTYPES[config.frozen_dtype]
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder):
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.to(frozen)
    for module in (pipeline.unet, pipeline.vae):
        module.to(memory_format=torch.channels_last)  # convolutions run a quarter faster on CPU and in half precision
    objective.to(device)
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()


@dataclass
class _State:
    step: int
    ema: dict[str, Tensor]


def _accelerator(config: TrainConfig) -> Accelerator:
    """The processes that train. UserError for a precision that cannot be had here."""
    try:
        return Accelerator(cpu=config.cpu, mixed_precision=config.mixed_precision)
    except ValueError as error:
        raise UserError(f"mixed_precision={config.mixed_precision}: {error}") from error


def _check(config: TrainConfig, pipeline: FourDiffusionPipeline, data: ClipSamples, num_processes: int) -> None:
    """UserError where clips, model and settings do not fit together: known before there is a run folder."""
    for name in ("batch_size", "log_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)}: give at least 1")
    try:
        micro_batch_size(config, num_processes)
    except ValueError as error:
        raise UserError(f"{error}: choose sizes that do") from error
    if config.frozen_dtype not in DTYPES:
        raise UserError(f"frozen_dtype={config.frozen_dtype} is none of {', '.join(DTYPES)}")
    if (config.frozen_dtype == "float32") != (config.mixed_precision == "no") and config.frozen_dtype != "float32":
        raise UserError(
            f"frozen_dtype={config.frozen_dtype} computes in half precision: set mixed_precision=bf16 (or fp16) too"
        )
    if config.timestep_shift <= 0:
        raise UserError(f"timestep_shift={config.timestep_shift}: give a number above 0; 1 is uniform")
    if config.model.dtype != "float32":
        raise UserError(f"model.dtype={config.model.dtype}: training keeps float32 weights, set mixed_precision=bf16")
    longest = pipeline.motion.config.max_frames
    if config.stage == "motion" and config.data.num_frames > longest:
        raise UserError(f"data.num_frames={config.data.num_frames}: the motion layers know {longest} frames at most")
    if config.stage == "clip" and config.batch_size < 2:
        raise UserError(f"batch_size={config.batch_size}: stage=clip tells captions apart, give at least 2")
    if config.validation_every and config.stage == "clip":
        raise UserError("stage=clip has no pictures to show: set validation_every=0")
    if config.validation_every and config.validation_data is not None:
        list_clips(Path(config.validation_data))
    halvings = len(pipeline.vae.config.block_out_channels) - 1
    halvings += len(pipeline.unet.config.channels) - 1 if config.stage != "vae" else 0
    height, width = data[0, 0].target.shape[-2:]
    if height % 2**halvings or width % 2**halvings:
        raise UserError(
            f"{config.data.path} holds clips of {width} x {height} pixels: this model needs multiples of {2**halvings}"
        )


def _pipeline(config: TrainConfig, data: ClipSamples) -> FourDiffusionPipeline:
    if config.model.path is not None:
        return load_pipeline(config.model.path)
    if config.stage == "motion":
        raise UserError("stage=motion needs a trained base: set model.path to its pipeline folder")
    captions = [read_caption(folder) for folder in data.folders]
    if config.stage == "base":
        tqdm.write("model.path=null: VAE and towers are untrained; set it to what the stages vae and clip made")
    try:
        sizes = architecture(config.model)
        tokenizer = encoders.train_tokenizer(captions, sizes.vocab_size, sizes.text_length)
        return fresh_pipeline(config.model, tokenizer, config.seed)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def _objective(config: TrainConfig, pipeline: FourDiffusionPipeline) -> Objective:
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
        pipeline, stage, config.cond_drop_prob, config.text_drop_prob, config.cond_drop_camera, config.min_snr_gamma
    )


def _inputs(
    config: TrainConfig, pipeline: FourDiffusionPipeline, batch: Batch, step: int, device: torch.device
) -> tuple[object, ...]:
    """Return the objective's arguments on the device: the batch and everything random about this step."""
    if config.stage == "vae":
        values: tuple[object, ...] = vae_inputs(config, pipeline.vae, batch, step)
    elif config.stage == "clip":
        values = clip_inputs(config, batch, step)
    else:
        levels = pipeline.scheduler.config.num_train_timesteps
        values = diffusion_inputs(config, pipeline.vae, levels, batch, step)
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in values)


def _state(objective: Objective, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return everything that a checkpoint holds: trained weights, their moving average, optimizer."""
    tensors = {f"weights.{name}": value for name, value in objective.trainable.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    return tensors | optimizer_tensors(getattr(optimizer, "optimizer", optimizer))


def _resume(output: Path, objective: Objective, optimizer: torch.optim.Optimizer) -> _State:
    """Restore the last checkpoint and return its step and moving average; a fresh start where there is none."""
    fresh = objective.trainable.state_dict()
    expected = {f"{prefix}.{name}": value for prefix in ("weights", "ema") for name, value in fresh.items()}
    found = load_checkpoint(output, "train", expected, tqdm.write)
    if found is None:
        return _State(0, fresh)
    tensors, step = found
    objective.trainable.load_state_dict({name: tensors[f"weights.{name}"] for name in fresh})
    restore_optimizer(optimizer, tensors)
    return _State(step, {name: tensors[f"ema.{name}"] for name in fresh})


@contextlib.contextmanager
def _weights(objective: Objective, ema: dict[str, Tensor]):  # type: ignore[no-untyped-def]
    """The moving average in place of the trained weights, for as long as the block lasts."""
    trained = {name: value.clone() for name, value in objective.trainable.state_dict().items()}
    objective.trainable.load_state_dict(ema)
    try:
        yield
    finally:
        objective.trainable.load_state_dict(trained)


@torch.no_grad()
def _sample(config: TrainConfig, pipeline: FourDiffusionPipeline, path: Path) -> None:
    """A picture of what the model makes of the first clip: truth above, model below."""
    folder = list_clips(Path(config.validation_data or config.data.path))[0]
    frames = config.data.num_frames if config.stage == "motion" else 1
    held_out = DataConfig(str(folder.parent), config.data.num_views, config.data.num_frames, config.data.frame_stride)
    samples = ClipSamples(held_out, frames, 0)
    batch = collate([samples[0, number] for number in range(1 if config.stage == "motion" else 4)])
    device = pipeline.unet.device
    rows = []
    if config.stage == "vae":
        images = batch.target.flatten(0, 2)[:16]
        decoded = encoders.decode_latents(pipeline.vae, encoders.encode_latents(pipeline.vae, images.to(device)))
        rows = [images, decoded.cpu()]
    else:
        for i in range(batch.target.shape[0]):
            settings = dataclasses.replace(
                pipeline.generation_config,
                image_size=batch.input.shape[-1],
                num_inference_steps=config.validation_num_inference_steps,
                guidance_scale=config.validation_guidance_scale,
                negative_prompt="",
            )
            views = generate_views(
                pipeline,
                batch.input[i],
                batch.captions[i],
                c2w=batch.c2w[i],
                settings=settings,
                generator=torch.Generator().manual_seed(i),
                use_motion=config.stage == "motion",
            )
            images = views.transpose(0, 1)  # [F, V, 3, H, W]
            for f in range(0, frames, 2):
                rows += [torch.cat([batch.input[i, f : f + 1], x[f]]) for x in (batch.target[i], images)]
    write_image(path, contact_sheet(torch.stack(rows)))


def _export(config: TrainConfig, pipeline: FourDiffusionPipeline, data: ClipSamples, folder: Path) -> None:
    """The whole model as a diffusers folder; after stage=vae with the latents' scale measured on the data."""
    if config.stage == "vae":
        with torch.no_grad():
            images = torch.cat([data[0, number].target.flatten(0, 1) for number in range(64)])
            z = pipeline.vae.encode(images.to(pipeline.vae.device) * 2 - 1).latent_dist.mean
        pipeline.vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    pipeline.save_whole(folder)
