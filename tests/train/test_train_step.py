"""Schedules and draws of a training step, observed as functions and at their use in the loop."""

import json
from pathlib import Path

import pytest
import torch
from test_train import base, clips, settings  # noqa: F401
from tiny_model import tiny_pipeline

from fourdiffusion.datasets.sampling import Batch
from fourdiffusion.files import load_tensors
from fourdiffusion.train.loop import train
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.step import (
    diffusion_inputs,
    draw_timesteps,
    ema_decay,
    learning_rate_factor,
    micro_batch_size,
    micro_batches,
    vae_inputs,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_learning_rate() -> None:
    config = TrainConfig(max_steps=100, lr_warmup_steps=10, lr_decay_steps=20)
    factors = [learning_rate_factor(config, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:81] == [1.0] * 72 and factors[99] == pytest.approx(0.05)
    assert factors[:10] == sorted(factors[:10]) and factors[80:] == sorted(factors[80:], reverse=True)
    assert {learning_rate_factor(TrainConfig(max_steps=5), step) for step in range(5)} == {1.0}


def test_micro_batches_share_the_global_batch() -> None:
    config = TrainConfig(max_steps=5, batch_size=8, micro_batch_size=2)
    ranks = [list(micro_batches(config, 3, rank, 2)) for rank in range(2)]
    assert ranks[0] == [[(s, 0), (s, 1)] if m == 0 else [(s, 4), (s, 5)] for s in (3, 4) for m in (0, 1)]
    read = [pair for rank in ranks for micro in rank for pair in micro]
    assert sorted(read) == [(step, sample) for step in (3, 4) for sample in range(8)]  # each once
    assert micro_batch_size(TrainConfig(batch_size=8), 2) == 4
    with pytest.raises(ValueError, match="batch_size=8 does not divide over 3 processes"):
        micro_batch_size(config, 3)


def test_timesteps_are_stratified_over_the_global_batch_and_uniform_over_steps() -> None:
    config = TrainConfig(batch_size=10)
    drawn = torch.stack([draw_timesteps(config, step, list(range(10)), 1000) for step in range(500)])
    assert bool(((drawn.sort(1).values.diff(dim=1) - 100).abs() <= 1).all())
    assert 0 <= drawn.min() < 5 and 995 < drawn.max() <= 999
    assert abs(float(drawn[:, 0].float().mean()) - 499.5) < 40  # one sample sees all levels in time
    assert torch.equal(draw_timesteps(config, 7, [3, 8], 1000), drawn[7, [3, 8]])


def test_timestep_shift_moves_the_draws_to_the_noisy_end() -> None:
    plain = draw_timesteps(TrainConfig(batch_size=100), 0, list(range(100)), 1000)
    shifted = draw_timesteps(TrainConfig(batch_size=100, timestep_shift=3.0), 0, list(range(100)), 1000)
    u = (plain.double() + 0.5) / 1000
    torch.testing.assert_close(shifted.double(), 1000 * 3 * u / (1 + 2 * u), atol=2.5, rtol=0)
    assert shifted.float().mean() > plain.float().mean() + 100


def a_batch(samples: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(len(samples), 2, 3, 3, 16, 16, generator=generator)
    return Batch(target, target[:, :, 0], torch.eye(4).expand(len(samples), 3, 4, 4), ["a"] * len(samples), samples)


def test_the_noise_of_a_sample_is_its_own() -> None:
    config, vae = TrainConfig(batch_size=4), tiny_pipeline().vae
    whole = diffusion_inputs(config, vae, 1000, a_batch([0, 1, 2, 3]), 5)
    part = diffusion_inputs(config, vae, 1000, a_batch([1, 3]), 5)
    for a, b in zip(whole[4:7], part[4:7], strict=True):  # timestep, noise, dropout draws
        assert torch.equal(a[[1, 3]], b)  # type: ignore[arg-type, call-overload, index]
    assert whole[5].shape == (4, 2, 3, 4, 4, 4) and whole[6].shape == (4, 2)  # type: ignore[union-attr]
    assert not torch.equal(whole[5], diffusion_inputs(config, vae, 1000, a_batch([0, 1, 2, 3]), 6)[5])  # type: ignore[arg-type]


def test_vae_crops_are_one_window_of_all_pictures() -> None:
    batch = a_batch([0, 1])
    images, noise = vae_inputs(TrainConfig(batch_size=2, crop_size=8), tiny_pipeline().vae, batch, 3)
    assert images.shape == (12, 3, 8, 8) and noise.shape == (12, 4, 2, 2)
    flat = batch.target.flatten(0, 2)
    found = [(y, x) for y in range(9) for x in range(9) if torch.equal(flat[..., y : y + 8, x : x + 8], images)]
    assert len(found) == 1


# ---- at their use ---------------------------------------------------------------------------------------------------


def test_the_moving_average_is_its_closed_form(base: Path, clips: Path, tmp_path: Path) -> None:  # noqa: F811
    """ema_n = d ema_(n-1) + (1 - d) w_n, from the weights that each step leaves."""
    config = settings("motion", base, clips, tmp_path / "run", max_steps=3, keep_every=1, ema_decay=0.5)
    train(config)
    name = "motion.layers.0.proj_out.weight"
    expected = torch.zeros_like(load_tensors(tmp_path / "run/checkpoint.safetensors")[0][f"ema.{name}"])
    for step in range(3):
        kept = load_tensors(tmp_path / f"run/kept/{step + 1:06d}.safetensors")[0]
        decay = ema_decay(config, step)
        assert decay == min(0.5, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * kept[f"weights.{name}"]
        torch.testing.assert_close(kept[f"ema.{name}"], expected)
    assert expected.any() and not torch.equal(expected, kept[f"weights.{name}"])


def test_the_learning_rate_scales_each_update(base: Path, clips: Path, tmp_path: Path) -> None:  # noqa: F811
    """AdamW's first step moves a weight without decay by its learning rate, whatever the gradient."""
    moved = {}
    for name, warmup in (("whole", 0), ("tenth", 10)):
        config = settings("motion", base, clips, tmp_path / name, max_steps=1, weight_decay=0.0, lr_warmup_steps=warmup)
        train(config)
        weight = load_tensors(tmp_path / name / "checkpoint.safetensors")[0]["weights.motion.layers.0.proj_out.weight"]
        moved[name] = float(weight.abs().median())  # zero-initialized
    assert moved["whole"] == pytest.approx(1e-3, rel=0.05) and moved["tenth"] == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize("stage, steps, rate", [("vae", 30, 3e-3), ("base", 30, 3e-3), ("motion", 40, 1e-2)])
def test_a_stage_learns_one_batch(base: Path, clips: Path, tmp_path: Path, stage, steps, rate, monkeypatch) -> None:  # noqa: F811
    """The same batch and noise at each step: the loss falls, as it cannot with a gradient of the wrong sign."""
    from fourdiffusion.train import loop

    draw = loop.objective_inputs  # type: ignore[attr-defined]
    monkeypatch.setattr(
        loop,
        "objective_inputs",
        lambda config, pipeline, batch, step, device: draw(config, pipeline, first.setdefault(0, batch), 0, device),
    )
    first: dict[int, Batch] = {}
    config = settings(stage, base, clips, tmp_path / "run", max_steps=steps, learning_rate=rate, cond_drop_prob=0.0)
    train(config)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert min(losses[-5:]) < 0.7 * losses[0], losses
