"""Training from cached latents and embeddings is training from pictures, without the encoders."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_config, tiny_pipeline, write_clips
from torch import Tensor

from fourdiffusion.datasets.sampling import ClipSamples, collate
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.objectives import DiffusionObjective
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.errors import UserError
from fourdiffusion.prepare.pack import pack
from fourdiffusion.prepare.settings import PackConfig
from fourdiffusion.train.loop import train
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.step import diffusion_inputs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a model whose motion layers move, and shards with its latents in half and in single precision."""
    folder = tmp_path_factory.mktemp("latents")
    write_clips(folder / "clips")
    tiny_pipeline(moving=True).save_whole(folder / "model")
    for dtype in ("float16", "float32"):
        model = ModelConfig(path=str(folder / "model"))
        pack(PackConfig(str(folder / "clips"), str(folder / dtype), latents=True, latents_dtype=dtype, model=model))
    return folder


def settings(folder: Path, stage: str, dtype: str, latents: bool, **changes: object) -> TrainConfig:
    values: dict[str, object] = {"stage": stage, "batch_size": 8, "max_steps": 2, "cpu": True, "log_every": 1}
    values |= {"validation_every": 0, "learning_rate": 1e-3, "cond_drop_prob": 0.5, "text_drop_prob": 0.5}
    data = DataConfig(str(folder / dtype), num_views=2, num_frames=3, latents=latents)
    return TrainConfig(model=tiny_config(str(folder / "model")), data=data, **values | changes)  # type: ignore[arg-type]


def step(folder: Path, stage: str, dtype: str, latents: bool) -> tuple[float, Tensor]:
    """The loss of one batch and all its gradients; with latents, the replaced encoders are removed."""
    config = settings(folder, stage, dtype, latents)
    motion = stage == "motion"
    data = ClipSamples(config.data, 3 if motion else 1, 0, config.batch_size, motion)
    batch = collate([data[0, number] for number in range(8)])
    pipeline = load_pipeline(folder / "model")
    objective = DiffusionObjective(pipeline, stage, 0.5, 0.5, True, None)  # type: ignore[arg-type]
    inputs = diffusion_inputs(config, pipeline.vae, 1000, batch, 0)
    dropped = inputs[6] < 0.5  # type: ignore[operator]
    assert 0 < dropped[:, 0].sum() < 8 and 0 < dropped[:, 1].sum() < 8  # type: ignore[index]  # all four cases are tried
    if latents:
        pipeline.vae.to("meta")
        if motion:
            pipeline.text_encoder.to("meta")
            pipeline.image_encoder.to("meta")
            assert batch.input.numel() == 0
        assert batch.target.numel() == 0
    loss = objective(*inputs)["mse"]
    loss.backward()
    gradients = [p.grad.flatten() for p in objective.trainable.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("stage", ["motion", "base"])
@pytest.mark.parametrize("dtype, of_gradient", [("float32", 1e-4), ("float16", 5e-3)])
def test_a_step_from_latents_is_one_from_pictures(folder: Path, stage: str, dtype: str, of_gradient: float) -> None:
    (loss, gradient), (cached_loss, cached_gradient) = (step(folder, stage, dtype, flag) for flag in (False, True))
    assert cached_loss == pytest.approx(loss, rel=1e-4)
    assert gradient.shape == cached_gradient.shape
    assert float((gradient - cached_gradient).norm() / gradient.norm()) < of_gradient


def test_training_from_latents(folder: Path, tmp_path: Path) -> None:
    logs = []
    for latents in (False, True):
        output = tmp_path / f"latents-{latents}"
        train(settings(folder, "motion", "float16", latents, output=str(output), validation_every=2,
                       validation_num_inference_steps=1))  # fmt: skip
        logs.append([json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()])
        assert (output / "sample_000002.png").is_file() and (output / "model/vae").is_dir()
    assert len(logs[0]) == 2 and logs[1] == pytest.approx(logs[0], rel=1e-4)


def refused(config: TrainConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_what_contradicts_latents_is_refused(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, "motion", "float16", True)
    refused(dataclasses.replace(config, stage="vae"), "stage=vae trains on pictures: set data.latents=false", tmp_path)
    data = dataclasses.replace(config.data, augment=True)
    refused(dataclasses.replace(config, data=data), "data.augment=true changes pictures", tmp_path)
    data = dataclasses.replace(config.data, path=str(folder / "clips"))
    refused(dataclasses.replace(config, data=data), "holds no cached latents: make them with", tmp_path)
    other = tiny_pipeline()
    with torch.no_grad():
        next(other.unet.resampler.parameters()).add_(0.1)
    other.save_whole(tmp_path / "other")
    config = dataclasses.replace(config, model=tiny_config(str(tmp_path / "other")))
    refused(config, "the image_tokens in .* were made by other weights", tmp_path)
