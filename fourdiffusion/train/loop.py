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
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from fourdiffusion.datasets.clips import list_clips, read_caption
from fourdiffusion.datasets.sampling import Batch, ClipBatches
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.loading import fresh_pipeline, load_pipeline
from fourdiffusion.diffusion.objectives import AutoencoderObjective, DiffusionObjective, TowersObjective
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import architecture
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors, save_tensors
from fourdiffusion.media.write import contact_sheet, write_image
from fourdiffusion.randomness import stream
from fourdiffusion.runs import append_log, open_run, optimizer_tensors, patient_interrupt, restore_optimizer, trim_log
from fourdiffusion.tracking import check_trackers, trackers
from fourdiffusion.train.settings import STAGES, TrainConfig

Objective = AutoencoderObjective | TowersObjective | DiffusionObjective


def train(config: TrainConfig) -> None:
    """Trains one stage until ``steps``; run again, it goes on from the last checkpoint, bit for bit on CPU."""
    if config.stage not in STAGES:
        raise UserError(f"stage={config.stage} is none of {', '.join(STAGES)}")
    check_trackers(config.trackers)
    output = Path(config.output)
    accelerator = _accelerator(config)
    main = accelerator.is_main_process
    num_frames = config.data.num_frames if config.stage == "motion" else 1
    data = ClipBatches(
        config.data, num_frames, config.batch_size, config.seed, accelerator.process_index, config.max_steps
    )
    pipeline = _pipeline(config, data)
    _check(config, pipeline, data)
    if main:
        open_run(
            output,
            config,
            free={"max_steps", "log_every", "checkpoint_every", "keep_every", "validation_every", "trackers"},
        )
    accelerator.wait_for_everyone()

    objective = _objective(config, pipeline)
    optimizer = torch.optim.AdamW(
        [p for p in objective.trainable.parameters() if p.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    start = _resume(output, objective, optimizer)
    if main:
        trim_log(output, start.step)
    ema = {name: value.to(accelerator.device, copy=True) for name, value in start.ema.items()}
    pipeline.to(accelerator.device)
    for module in (pipeline.unet, pipeline.vae):
        module.to(memory_format=torch.channels_last)  # convolutions run a quarter faster on CPU and in half precision
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    model, optimizer = accelerator.prepare(objective, optimizer)
    batches = DataLoader(
        Subset(data, range(start.step, config.max_steps)), batch_size=None, num_workers=config.num_workers
    )

    bar = tqdm(batches, f"train {config.stage}", config.max_steps, initial=start.step, disable=not main)
    began = time.monotonic()
    names = config.trackers if main else []
    with (
        patient_interrupt() as interrupted,
        trackers(names, output, start.step, dataclasses.asdict(config)) as track,
    ):
        for step, batch in enumerate(bar, start=start.step):
            generator = stream(config.seed + 1, accelerator.process_index, step)
            inputs = _inputs(config, pipeline, batch, generator, accelerator.device)
            terms = _update(config, step, accelerator, model, optimizer, inputs)
            decay = min(config.ema_decay, (step + 1) / (step + 10))
            trained = objective.trainable.state_dict()
            torch._foreach_lerp_([ema[name] for name in trained], list(trained.values()), 1 - decay)

            done = step + 1
            if main and (done % config.log_every == 0 or done == config.max_steps):
                line = {name: torch.as_tensor(value).item() for name, value in terms.items()}
                bar.set_postfix(loss=f"{line['loss']:.4f}")
                seconds = round(time.monotonic() - began, 2)
                append_log(output, {"step": done, **line, "seconds": seconds})
                track(line, done)
            stopping = main and interrupted()  # other processes go on until they are stopped
            if main and (done % config.checkpoint_every == 0 or done == config.max_steps or stopping):
                _save(output / "checkpoint.safetensors", objective, optimizer, ema, done)
            if main and config.keep_every and done % config.keep_every == 0:
                _save(output / "kept" / f"{done:06d}.safetensors", objective, optimizer, ema, done)
            if stopping:
                raise KeyboardInterrupt
            if main and config.validation_every and done % config.validation_every == 0:
                with _weights(objective, ema):
                    _sample(config, pipeline, output / f"sample_{done:06d}.png")
            accelerator.wait_for_everyone()
    if main:
        with _weights(objective, ema):
            _export(config, pipeline, data, output / "model")
        tqdm.write(f"weights (moving average): {output / 'model'}")
    accelerator.end_training()


def _update(
    config: TrainConfig,
    step: int,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: AcceleratedOptimizer,
    inputs: tuple[object, ...],
) -> dict[str, Tensor | float]:
    """One step of the optimiser; returns the loss, its terms, the gradient's norm and the learning rate."""
    rate = config.learning_rate * learning_rate_factor(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with accelerator.autocast():
        terms = model(*inputs)
    loss = torch.stack(list(terms.values())).sum()
    if not bool(loss.isfinite()):
        raise UserError(
            f"the loss is {loss.item()} at step {step}: lower learning_rate; {config.output} holds the last checkpoint"
        )
    accelerator.backward(loss)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss, "grad_norm": norm, **terms, "lr": rate}


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, linear decay over the last ``decay_steps``; a pure function of the step."""
    up = (step + 1) / max(config.lr_warmup_steps, 1)
    down = (config.max_steps - step) / max(config.lr_decay_steps, 1)
    return min(1.0, up, down)


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


def _check(config: TrainConfig, pipeline: FourDiffusionPipeline, data: ClipBatches) -> None:
    """UserError where clips, model and settings do not fit together: known before there is a run folder."""
    for name in ("batch_size", "log_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)}: give at least 1")
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
    height, width = data[0].target.shape[-2:]
    if height % 2**halvings or width % 2**halvings:
        raise UserError(
            f"{config.data.path} holds clips of {width} x {height} pixels: this model needs multiples of {2**halvings}"
        )


def _pipeline(config: TrainConfig, data: ClipBatches) -> FourDiffusionPipeline:
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
        return AutoencoderObjective(pipeline, config.kl_weight)
    if config.stage == "clip":
        return TowersObjective(pipeline)
    stage: Literal["base", "motion"] = "base" if config.stage == "base" else "motion"
    return DiffusionObjective(pipeline, stage, config.cond_drop_prob, config.cond_drop_camera, config.min_snr_gamma)


def _inputs(
    config: TrainConfig, pipeline: FourDiffusionPipeline, batch: Batch, generator: torch.Generator, device: torch.device
) -> tuple[object, ...]:
    """The objective's arguments: the batch, and everything random about this step, drawn on the CPU."""
    batch_size, frames, views, _, height, width = batch.target.shape
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    latent = (pipeline.vae.config.latent_channels, height // factor, width // factor)
    if config.stage == "vae":
        images, side = batch.target.flatten(0, 2), config.crop_size or height
        top, left = torch.randint(height - side + 1, (2,), generator=generator).tolist()
        images = images[..., top : top + side, left : left + side]
        latent = (latent[0], side // factor, side // factor)
        return images.to(device), torch.randn(len(images), *latent, generator=generator).to(device)
    if config.stage == "clip":
        view = int(torch.randint(views, (), generator=generator))
        return batch.target[:, 0, view].to(device), batch.captions
    # uniform, and spread evenly over the batch: less noise in the gradient (Kingma et al. 2021, appendix I.1)
    even = (torch.rand((), generator=generator) + torch.arange(batch_size) / batch_size) % 1
    even = config.timestep_shift * even / (1 + (config.timestep_shift - 1) * even)
    timestep = (even * pipeline.scheduler.config.num_train_timesteps).long()
    noise = torch.randn(batch_size, frames, views, *latent, generator=generator)
    chance = torch.rand(batch_size, 2, generator=generator)
    tensors = [x.to(device) for x in (batch.target, batch.input, batch.c2w)]
    return *tensors, batch.captions, timestep.to(device), noise.to(device), chance.to(device)


def _save(
    path: Path,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor],
    step: int,
) -> None:
    tensors = {f"weights.{name}": value for name, value in objective.trainable.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    tensors |= optimizer_tensors(getattr(optimizer, "optimizer", optimizer))
    save_tensors(path, tensors, {"step": step})


def _resume(output: Path, objective: Objective, optimizer: torch.optim.Optimizer) -> _State:
    """The state of the last checkpoint, put back; a fresh start where there is none."""
    path = output / "checkpoint.safetensors"
    if not path.is_file():
        return _State(0, objective.trainable.state_dict())
    tensors, metadata = load_tensors(path)
    prefixes = {
        name: {k[len(name) :]: v for k, v in tensors.items() if k.startswith(name)} for name in ("weights.", "ema.")
    }
    objective.trainable.load_state_dict(prefixes["weights."])
    restore_optimizer(optimizer, tensors)
    return _State(metadata["step"], prefixes["ema."])


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
    batch = ClipBatches(held_out, frames, 1 if config.stage == "motion" else 4, 0, 0, 1)[0]
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


def _export(config: TrainConfig, pipeline: FourDiffusionPipeline, data: ClipBatches, folder: Path) -> None:
    """The whole model as a diffusers folder; after stage=vae with the latents' scale measured on the data."""
    if config.stage == "vae":
        with torch.no_grad():
            images = torch.cat([data[step].target.flatten(0, 2) for step in range(math.ceil(64 / config.batch_size))])
            z = pipeline.vae.encode(images.to(pipeline.vae.device) * 2 - 1).latent_dist.mean
        pipeline.vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    pipeline.save_whole(folder)
