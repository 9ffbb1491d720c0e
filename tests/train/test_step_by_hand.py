"""Schedules, shares and draws of a training step against values worked out by hand. No training runs here."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fourdiffusion.datasets.sampling import Batch
from fourdiffusion.randomness import stream
from fourdiffusion.train import step as steps
from fourdiffusion.train.settings import TrainConfig

VAE: Any = SimpleNamespace(config=SimpleNamespace(block_out_channels=[8, 16, 16], latent_channels=3))


def a_batch(samples: list[int], frames: int = 2, views: int = 3, side: int = 8) -> Batch:
    target = torch.rand(len(samples), frames, views, 3, side, side, generator=torch.Generator().manual_seed(0))
    captions = [f"sample {sample}" for sample in samples]
    return Batch(target, target[:, :, 1], torch.eye(4).expand(len(samples), views, 4, 4), captions, samples)


def test_the_learning_rate_is_warmed_up_held_and_lowered() -> None:
    config = TrainConfig(max_steps=10, lr_warmup_steps=4, lr_decay_steps=5)
    factors = [steps.learning_rate_factor(config, step) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    both = TrainConfig(max_steps=4, lr_warmup_steps=4, lr_decay_steps=4)
    assert [steps.learning_rate_factor(both, step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.5, 0.25])


def test_the_average_is_a_running_mean_at_first() -> None:
    config = TrainConfig(ema_decay=0.5)
    assert [steps.ema_decay(config, step) for step in (0, 1, 7, 8, 9, 100)] == pytest.approx(
        [1 / 10, 2 / 11, 8 / 17, 0.5, 0.5, 0.5]
    )


@pytest.mark.parametrize(
    ("batch_size", "micro", "processes", "expected"),
    [(8, None, 2, 4), (8, 4, 2, 4), (8, 1, 2, 1), (8, 8, 1, 8), (6, None, 3, 2)],
)
def test_micro_batches_divide_the_share(batch_size: int, micro: int | None, processes: int, expected: int) -> None:
    config = TrainConfig(batch_size=batch_size, micro_batch_size=micro)
    assert steps.micro_batch_size(config, processes) == expected


@pytest.mark.parametrize(
    ("batch_size", "micro", "processes", "message"),
    [
        (8, None, 3, "batch_size=8 does not divide over 3 processes"),
        (8, 3, 2, "micro_batch_size=3 does not divide the 4 clips that each of 2 processes takes of batch_size=8"),
        (8, 8, 2, "micro_batch_size=8 does not divide the 4 clips"),
        (8, -1, 2, "micro_batch_size=-1 does not divide the 4 clips"),
    ],
)
def test_shares_that_do_not_divide_are_refused(
    batch_size: int, micro: int | None, processes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        steps.micro_batch_size(TrainConfig(batch_size=batch_size, micro_batch_size=micro), processes)


def test_each_rank_reads_its_own_samples_from_the_start_step_on() -> None:
    config = TrainConfig(max_steps=3, batch_size=4, micro_batch_size=1)
    assert list(steps.micro_batches(config, 2, 0, 2)) == [[(2, 0)], [(2, 2)]]
    assert list(steps.micro_batches(config, 1, 1, 2)) == [[(1, 1)], [(1, 3)], [(2, 1)], [(2, 3)]]
    assert list(steps.micro_batches(config, 3, 0, 2)) == []


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_levels_by_their_formula(shift: float) -> None:
    config = TrainConfig(batch_size=4, timestep_shift=shift, seed=5)
    offset = float(torch.rand((), generator=stream(7, 0, 9)))
    levels = [(offset + sample / 4) % 1 for sample in range(4)]
    expected = [math.floor(1000 * shift * u / (1 + (shift - 1) * u)) for u in levels]
    found = steps.draw_timesteps(config, 9, [0, 1, 2, 3], 1000)
    assert found.dtype == torch.int64 and (found - torch.tensor(expected)).abs().max() <= 1


def test_latents_are_halved_once_less_than_there_are_levels() -> None:
    assert steps.latent_shape(VAE, 16, 24) == (3, 4, 6)


def test_the_inputs_of_the_towers_are_the_first_frame_of_one_view() -> None:
    batch, seen = a_batch([4, 7]), set()
    for step in range(40):
        images, captions = steps.clip_inputs(TrainConfig(), batch, step)
        assert captions == ["sample 4", "sample 7"]
        (view,) = [v for v in range(3) if torch.equal(images, batch.target[:, 0, v])]
        assert view == int(torch.randint(3, (), generator=stream(TrainConfig().seed + 2, 0, step)))
        seen.add(view)
    assert seen == {0, 1, 2}


def test_crops_come_from_everywhere_and_rows_are_drawn_apart_from_columns() -> None:
    batch = a_batch([0, 1], frames=1, views=2)
    flat, places = batch.target.flatten(0, 2), set()
    for step in range(80):
        images, noise = steps.vae_inputs(TrainConfig(crop_size=4), VAE, batch, step)
        top, left = torch.randint(5, (2,), generator=stream(TrainConfig().seed + 2, 0, step)).tolist()
        assert torch.equal(images, flat[..., top : top + 4, left : left + 4])
        assert images.shape == (4, 3, 4, 4) and noise.shape == (4, 3, 1, 1)
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(flat[..., y : y + 4, x : x + 4], images)]
        places.update(found)
    assert {y for y, _ in places} == {x for _, x in places} == {0, 1, 2, 3, 4} and len(places) > 15
    whole, _ = steps.vae_inputs(TrainConfig(crop_size=None), VAE, batch, 0)
    assert torch.equal(whole, flat)


def test_each_sample_draws_from_its_own_stream() -> None:
    config, batch = TrainConfig(seed=3, batch_size=8), a_batch([2, 6])
    found: tuple[Any, ...] = steps.diffusion_inputs(config, VAE, 1000, batch, 11)
    target, given, c2w, captions, timestep, noise, dropout, *cached = found
    assert cached == [None] * 4
    assert torch.equal(target, batch.target) and torch.equal(given, batch.input) and torch.equal(c2w, batch.c2w)
    assert captions == batch.captions and noise.shape == (2, 2, 3, 3, 2, 2) and dropout.shape == (2, 2)
    for row, sample in enumerate((2, 6)):
        generator = stream(4, sample, 11)
        assert torch.equal(noise[row], torch.randn(2, 3, 3, 2, 2, generator=generator))
        assert torch.equal(dropout[row], torch.rand(2, generator=generator))
    assert torch.equal(timestep, steps.draw_timesteps(config, 11, [2, 6], 1000))
    images, posterior = steps.vae_inputs(config, VAE, batch, 11)
    expected = [torch.randn(6, 3, 2, 2, generator=stream(4, sample, 11)) for sample in (2, 6)]
    assert torch.equal(posterior, torch.cat(expected)) and len(images) == 12
