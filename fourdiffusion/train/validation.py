"""What a run shows of itself: the loss on fixed clips by noise level, and pictures from fixed noise.

The plain loss of a diffusion model hardly falls: its mean is of the noise levels drawn. Here clips, noise and noise
levels are the same at every call, nothing is dropped or weighed, and the moving average of the weights is measured.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from fourdiffusion.datasets.curation.settings import TEST_SETS
from fourdiffusion.datasets.sampling import Batch, ClipSamples, collate
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.objectives import DiffusionObjective
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.media.write import contact_sheet, write_image, write_video
from fourdiffusion.randomness import stream
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.setup import idle_encoders
from fourdiffusion.train.state import Training, averaged_weights
from fourdiffusion.train.step import objective_inputs

BUCKETS = 4  # equal parts of the noise levels; each is measured in its middle
SEED = 20_000  # of the clips' views and frames, and of the noise


def validate(training: Training, step: int) -> dict[str, float]:
    """Return the validation losses after ``step`` steps, and write pictures of what the model makes of the first clip.

    Every process measures its share of the clips.
    """
    config, pipeline, device = training.config, training.pipeline, training.accelerator.device
    for module in idle_encoders(config, pipeline):
        module.to(device)
    with averaged_weights(training), torch.no_grad():
        if isinstance(training.objective, DiffusionObjective):
            losses = bucket_losses(training, training.objective)
        else:
            losses = plain_loss(training)
        if training.accelerator.is_main_process:
            show(config, pipeline, training.output / f"sample_{step:06d}")
    for module in idle_encoders(config, pipeline):
        module.to("cpu")
    return losses


def validation_samples(config: TrainConfig) -> ClipSamples:
    """Return the samples of ``validation_data``, without augmentation; items (0, i) take each clip once, then anew."""
    path = config.validation_data or config.data.path
    frames = config.data.num_frames if config.stage == "motion" else 1
    allowed = [*TEST_SETS]  # measuring on a test set is what it is for
    own = dataclasses.replace(config.data, path=path, latents=False, augment=False, allow_test_sets=allowed)
    return ClipSamples(own, frames, SEED, config.validation_clips)


def _shares(training: Training) -> range:
    """Return the numbers of the clips that this process measures."""
    accelerator = training.accelerator
    return range(accelerator.process_index, training.config.validation_clips, accelerator.num_processes)


def bucket_losses(training: Training, objective: DiffusionObjective) -> dict[str, float]:
    """Return the mean squared error of the prediction in each bucket of noise levels, and their mean."""
    pipeline, device = training.pipeline, training.accelerator.device
    samples, levels = validation_samples(training.config), pipeline.scheduler.config.num_train_timesteps
    sums = torch.zeros(BUCKETS, device=device)
    for number in _shares(training):
        batch = collate([samples[0, number]])
        target, given, c2w = (value.to(device) for value in (batch.target, batch.input, batch.c2w))
        with training.accelerator.autocast():
            encoded = objective.encode(target, given, batch.captions)
            for bucket in range(BUCKETS):
                timestep = torch.tensor([int((bucket + 0.5) / BUCKETS * levels)], device=device)
                noise = torch.randn(encoded.z.shape, generator=stream(SEED, number, bucket)).to(device)
                kept = torch.ones(1, 2, device=device)
                sums[bucket] += objective.errors(encoded, c2w, timestep, noise, kept)[0].sum()
    means = (training.accelerator.reduce(sums, "sum") / training.config.validation_clips).tolist()
    edges = [bucket * levels // BUCKETS for bucket in range(BUCKETS + 1)]
    named = {f"validation_loss_{edges[i]}_{edges[i + 1]}": means[i] for i in range(BUCKETS)}
    return {"validation_loss": sum(means) / BUCKETS, **named}


def plain_loss(training: Training) -> dict[str, float]:
    """Return the sum of the objective's terms on the validation clips."""
    config, device = training.config, training.accelerator.device
    samples, total = validation_samples(config), torch.zeros((), device=device)
    for number in _shares(training):
        inputs = objective_inputs(config, training.pipeline, collate([samples[0, number]]), 0, device)
        with training.accelerator.autocast():
            total += torch.stack(list(training.objective(*inputs).values())).sum()
    return {"validation_loss": float(training.accelerator.reduce(total, "sum")) / config.validation_clips}


def show(config: TrainConfig, pipeline: FourDiffusionPipeline, path: Path) -> None:
    """Write PATH.png of the first clip, truth above model, in stage motion a PATH.mp4 of it as well."""
    samples = validation_samples(config)
    batch = collate([samples[0, number] for number in range(1 if config.stage == "motion" else 4)])
    if config.stage == "vae":
        images = batch.target.flatten(0, 2)[:16]
        latents = encoders.encode_latents(pipeline.vae, images.to(pipeline.vae.device))
        sheet = contact_sheet(torch.stack([images, encoders.decode_latents(pipeline.vae, latents).cpu()]))
        write_image(path.with_suffix(".png"), sheet)
        return
    rows = torch.cat([_truth_and_model(config, pipeline, batch, i) for i in range(len(batch.captions))], dim=1)
    write_image(path.with_suffix(".png"), contact_sheet(rows[::2].flatten(0, 1)))
    if config.stage == "motion":
        write_video(path.with_suffix(".mp4"), torch.stack([contact_sheet(frame) for frame in rows]))


def _truth_and_model(config: TrainConfig, pipeline: FourDiffusionPipeline, batch: Batch, i: int) -> Tensor:
    """Return [F, 2, 1 + V, 3, H, W]: the input and the true views, below the input and the model's, of one sample."""
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
    both = torch.stack([batch.target[i], views.transpose(0, 1)], dim=1)  # [F, 2, V, 3, H, W]
    return torch.cat([batch.input[i][:, None, None].expand(-1, 2, -1, -1, -1, -1), both], dim=2)
