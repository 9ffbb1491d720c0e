"""What one training step needs, as pure functions of (settings, step, sample): schedules and random draws.

Letters: B samples of a micro-batch, F frames, V views, C latent channels, h w latent pixels.

Every sample of the global batch has a random stream of its own, ``stream(seed, sample, step)``. A step is
therefore the same for one process that accumulates gradients and for several that share the batch.
"""

from collections.abc import Iterable, Iterator

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fourdiffusion.datasets.sampling import Batch
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.randomness import stream
from fourdiffusion.train.settings import TrainConfig


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, linear decay over ``lr_decay_steps``."""
    up = (step + 1) / max(config.lr_warmup_steps, 1)
    down = (config.max_steps - step) / max(config.lr_decay_steps, 1)
    return min(1.0, up, down)


def trained_names(config: TrainConfig, step: int, names: Iterable[str]) -> list[str]:
    """Return which of the trained tensors a step changes: in the first ``projection_steps`` the projections alone.

    Motion layers from another base model know how things move, not what this base's features mean: first the linear
    layers between the two are fitted, then everything (``init_motion``).
    """
    first = step < config.projection_steps
    return [name for name in names if not first or {"proj_in", "proj_out"} & set(name.split("."))]


def ema_decay(config: TrainConfig, step: int) -> float:
    """Return the decay of the moving average at a step: a running mean at first, then ``ema_decay``."""
    return min(config.ema_decay, (step + 1) / (step + 10))


def micro_batch_size(config: TrainConfig, num_processes: int) -> int:
    """Return the samples that one process holds at once. Raise ValueError where they do not divide the batch."""
    share, rest = divmod(config.batch_size, num_processes)
    if rest:
        raise ValueError(f"batch_size={config.batch_size} does not divide over {num_processes} processes")
    size = config.micro_batch_size or share
    if size < 1 or share % size:
        raise ValueError(
            f"micro_batch_size={size} does not divide the {share} clips that each of {num_processes} processes takes "
            f"of batch_size={config.batch_size}"
        )
    return size


def micro_batches(config: TrainConfig, start: int, rank: int, num_processes: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the (step, sample) pairs of each micro-batch that one process reads, from step ``start`` to the end."""
    size = micro_batch_size(config, num_processes)
    for step in range(start, config.max_steps):
        for first in range(rank * size, config.batch_size, size * num_processes):
            yield [(step, sample) for sample in range(first, first + size)]


def draw_timesteps(config: TrainConfig, step: int, samples: list[int], num_train_timesteps: int) -> Tensor:
    """Draw the noise level of some samples of a step: [B] int64 in [0, num_train_timesteps).

    Uniform, and stratified over the global batch: less variance of the gradient (Kingma et al. 2021, appendix I.1).
    ``timestep_shift`` s moves u to s u / (1 + (s - 1) u), towards the noisy end for s > 1.
    """
    offset = torch.rand((), generator=stream(config.seed + 2, 0, step))
    u = (offset + torch.tensor(samples) / config.batch_size) % 1
    u = config.timestep_shift * u / (1 + (config.timestep_shift - 1) * u)
    return (u * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def latent_shape(vae: AutoencoderKL, height: int, width: int) -> tuple[int, int, int]:
    """Return (C, h, w) of the latents of pictures of a size in pixels."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.config.latent_channels, height // factor, width // factor


def vae_inputs(config: TrainConfig, vae: AutoencoderKL, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """Return images [B F V, 3, H, W] in [0, 1], one random crop for all, and the noise of their posterior."""
    images = batch.target.flatten(0, 2)
    height, width = images.shape[-2:]
    side = config.crop_size or height
    top, left = torch.randint(height - side + 1, (2,), generator=stream(config.seed + 2, 0, step)).tolist()
    images = images[..., top : top + side, left : left + side]
    shape = (images.shape[0] // len(batch.samples), *latent_shape(vae, *images.shape[-2:]))
    noise = [torch.randn(shape, generator=stream(config.seed + 1, s, step)) for s in batch.samples]
    return images, torch.cat(noise)


def clip_inputs(config: TrainConfig, batch: Batch, step: int) -> tuple[Tensor, list[str]]:
    """Return the first frame of one random view, the same for all samples [B, 3, H, W], and the captions."""
    views = batch.target.shape[2]
    view = int(torch.randint(views, (), generator=stream(config.seed + 2, 0, step)))
    return batch.target[:, 0, view], batch.captions


def diffusion_inputs(
    config: TrainConfig, vae: AutoencoderKL, num_train_timesteps: int, batch: Batch, step: int
) -> tuple[Tensor | list[str] | None, ...]:
    """Return the arguments of DiffusionObjective: the batch, its noise levels, noise and dropout draws, its cache."""
    frames, views, _, height, width = batch.target.shape[1:]
    cached = [batch.cached.get(name) for name in ("latents", "given_latents", "image_tokens", "text")]
    shape = (frames, views, *latent_shape(vae, height, width)) if cached[0] is None else cached[0].shape[1:]
    noise, dropout = [], []
    for sample in batch.samples:
        generator = stream(config.seed + 1, sample, step)
        noise.append(torch.randn(shape, generator=generator))
        dropout.append(torch.rand(2, generator=generator))
    timestep = draw_timesteps(config, step, batch.samples, num_train_timesteps)
    drawn = timestep, torch.stack(noise), torch.stack(dropout)
    return batch.target, batch.input, batch.c2w, batch.captions, *drawn, *cached


def objective_inputs(
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
