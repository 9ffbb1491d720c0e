"""``train``: the stages that make a 4DM.

``stage=vae``, ``stage=clip`` and ``stage=base`` make the frozen part of a small model, which full size takes from
ImageDream; ``stage=motion`` is the paper's training: motion layers alone, on clips of V views x F frames.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.datasets.sampling import Batch, ClipSamples
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.runs import (
    Interruption,
    append_log,
    deferred_signals,
    folder_digest,
    lock_folder,
    open_run,
    save_checkpoint,
    terminable,
    trim_log,
)
from fourdiffusion.tracking import check_trackers, trackers
from fourdiffusion.train.batches import DataError, read_batches
from fourdiffusion.train.export import export
from fourdiffusion.train.health import LossWatch, Meter, check_gradients, check_loss, check_rise
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.setup import (
    Objective,
    check,
    check_settings,
    make_accelerator,
    make_objective,
    make_optimizer,
    make_pipeline,
    open_data,
    place,
)
from fourdiffusion.train.state import Training, checkpoint_tensors, keep_checkpoints, restore_scaler, resume
from fourdiffusion.train.step import (
    ema_decay,
    learning_rate_factor,
    micro_batch_size,
    objective_inputs,
    trained_names,
)
from fourdiffusion.train.validation import validate

FREE = {  # settings with which the result is the same
    "max_steps",
    "max_loss_rise",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_every",
    "keep_last",
    "keep_best",
    "validation_every",
    "validation_clips",
    "trackers",
}
FREE |= {"num_workers", "cpu", "micro_batch_size", "gradient_checkpointing", "compile", "vae_batch_size"}
FREE |= {"data.cache_mib"}


def train(config: TrainConfig) -> None:
    """Train one stage until ``max_steps``; run again, it resumes from the last checkpoint, bit for bit on CPU."""
    check_trackers(config.trackers)
    accelerator = make_accelerator(config)
    check_settings(config, accelerator.num_processes)
    output, main = Path(config.output), accelerator.is_main_process
    data = open_data(config)
    pipeline = make_pipeline(config, data)
    check(config, pipeline, data, accelerator.num_processes)
    objective = make_objective(config, pipeline)
    with terminable(), lock_folder(output) if main else contextlib.nullcontext():
        if main:
            content = {} if config.model.path is None else {"model.path": folder_digest(Path(config.model.path))}
            open_run(output, config, FREE, content=content)
        accelerator.wait_for_everyone()
        optimize(config, accelerator, pipeline, objective, data)
        if main:
            export(config, pipeline, data, output)
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
    output, main = Path(config.output), accelerator.is_main_process
    training, start = prepare(config, accelerator, pipeline, objective)
    if main:
        trim_log(output, start)
    batches = read_batches(config, data, start, accelerator.process_index, accelerator.num_processes)
    steps = range(start, config.max_steps)
    bar = tqdm(steps, f"train {config.stage}", config.max_steps, initial=start, disable=not main)
    meter, watch, saved = Meter(), LossWatch(), time.monotonic()
    with (
        deferred_signals() as interrupted,
        trackers(config.trackers if main else [], output, start, dataclasses.asdict(config)) as track,
    ):
        for step in bar:
            rate = config.learning_rate * learning_rate_factor(config, step)
            try:
                terms, norm = update(training, batches, step, rate, meter)
            except DataError:
                if main and step > start:
                    save_checkpoint(output, "train", checkpoint_tensors(training), step)
                raise
            check_rise(config, step, watch, float(sum(terms.values())))
            done, line = step + 1, {}
            if done % config.log_every == 0 or done == config.max_steps:
                means = {name: float(accelerator.reduce(value, "mean")) for name, value in terms.items()}
                line = {"loss": sum(means.values()), "grad_norm": norm, **means, "lr": rate}
                line |= meter.read(accelerator.device)
                bar.set_postfix(loss=f"{line['loss']:.4f}")
            if config.validation_every and done % config.validation_every == 0:
                line |= validate(training, done)
            if main and line:
                append_log(output, {"step": done, **line})
                track(line, done)
            stopping = stop_together(accelerator, interrupted)
            if main:
                keep_checkpoints(training, done, line.get("validation_loss"))
                due = 0 < config.checkpoint_minutes <= (time.monotonic() - saved) / 60
                if due or done % config.checkpoint_every == 0 or done == config.max_steps or stopping:
                    save_checkpoint(output, "train", checkpoint_tensors(training), done)
                    saved = time.monotonic()
            if stopping:
                accelerator.wait_for_everyone()  # a process that ends stops the others, also while they save
                interrupted.leave()
    objective.trainable.load_state_dict(training.ema)


def update(
    training: Training, batches: Iterator[Batch], step: int, rate: float, meter: Meter
) -> tuple[dict[str, Tensor], float]:
    """Take one optimizer step. Return the loss terms of this process's samples, and the gradient's norm."""
    config, accelerator, optimizer = training.config, training.accelerator, training.optimizer
    began = time.monotonic()
    for group in optimizer.param_groups:
        group["lr"] = rate
    sums: dict[str, Tensor] = {}
    for micro in range(training.accumulation):
        batch = meter.timed(batches)
        meter.note_skipped(batch.skipped)
        inputs = objective_inputs(config, training.pipeline, batch, step, accelerator.device)
        last = micro == training.accumulation - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(training.model):
            with accelerator.autocast():
                terms = {name: value / training.accumulation for name, value in training.model(*inputs).items()}
            check_loss(config, step, terms)
            loss = torch.stack(list(terms.values())).sum()
            accelerator.backward(loss)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach()

    trained = trained_names(config, step, training.parameters)
    for name in training.parameters.keys() - set(trained):
        training.parameters[name].grad = None  # the optimizer skips it
    norm = float(accelerator.clip_grad_norm_(list(training.parameters.values()), config.max_grad_norm))
    check_gradients(step, {name: training.parameters[name] for name in trained}, norm, accelerator.scaler is not None)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    weights, ema = training.objective.trainable.state_dict(), training.ema
    torch._foreach_lerp_([ema[name] for name in weights], list(weights.values()), 1 - ema_decay(config, step))
    meter.clips += config.batch_size
    meter.busy += time.monotonic() - began
    return sums, norm


def prepare(
    config: TrainConfig, accelerator: Accelerator, pipeline: FourDiffusionPipeline, objective: Objective
) -> tuple[Training, int]:
    """Return the run at its last checkpoint, on its device, and the step that comes next."""
    parameters = {name: p for name, p in objective.trainable.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(config, list(parameters.values()), accelerator.device)
    place(config, pipeline, objective, accelerator.device)  # first: the optimizer's state takes the weights' layout
    start, tensors = resume(Path(config.output), objective, optimizer)
    names = objective.trainable.state_dict()
    ema = {name: tensors[f"ema.{name}"].to(accelerator.device, copy=True) for name in names}
    model, prepared = accelerator.prepare(objective, optimizer)
    restore_scaler(accelerator.scaler, tensors)
    num_processes = accelerator.num_processes
    accumulation = config.batch_size // (micro_batch_size(config, num_processes) * num_processes)
    return Training(config, accelerator, pipeline, objective, model, prepared, ema, parameters, accumulation), start


def stop_together(accelerator: Accelerator, interrupted: Interruption) -> bool:
    """Return whether a signal came to any of the processes; then all leave after this step, once it is saved."""
    if accelerator.num_processes == 1:
        return interrupted()
    number = torch.tensor(float(interrupted.signal_number or 0), device=accelerator.device)
    found = int(accelerator.gather(number[None]).max())
    if found:  # else leave it: a signal that came while this process waited for the others counts after the next step
        interrupted.signal_number = found
    return found > 0
