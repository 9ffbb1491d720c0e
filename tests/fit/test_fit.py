"""The whole 4D stage on the smallest real model: terms, ablations, resume, and what it refuses."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_model import FRAMES, SIZE, balls, picture, tiny_config, write_model

from fourdiffusion import cameras
from fourdiffusion.diffusion import distillation
from fourdiffusion.diffusion.distillation import draw_window
from fourdiffusion.diffusion.encoders import latent_distance
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.errors import UserError
from fourdiffusion.fit.loop import Stage, _generate, fit, loss_weights
from fourdiffusion.fit.settings import DistillationConfig, FitConfig, LossConfig
from fourdiffusion.media.read import load_video
from fourdiffusion.media.write import write_image
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig, SceneConfig

GRID = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    times = torch.linspace(0, 1, FRAMES)
    frames = picture(cameras.orbit(torch.zeros(FRAMES)), balls(0, times))
    for index, frame in enumerate(frames):
        write_image(folder / f"{index}.png", frame)
    return folder


@pytest.fixture
def config(model, video, tmp_path):
    return FitConfig(
        video=str(video),
        output=str(tmp_path / "run"),
        num_frames=FRAMES,
        crop="frame",
        device="cpu",
        max_steps=STEPS,
        occupancy_every=2,
        log_every=1,
        preview_minutes=0.0,
        model=dataclasses.replace(tiny_config(str(model)), num_inference_steps=2),
        scene=SceneConfig(
            field=FieldConfig(space=GRID, spacetime=GRID, hidden_width=8),
            renderer=RendererConfig(num_samples=24, occupancy_resolution=8),
        ),
        sds=DistillationConfig(every=2, ramp_steps=4, resolutions=[8, SIZE], resolution_milestones=[0, 3]),
        loss=LossConfig(lambda_rgb=10.0, rgb_rays=64, lambda_opacity=1.0, lambda_sparsity=1.0, sparsity_start_step=0),
    )


def log(config):
    return [json.loads(line) for line in open(f"{config.output}/log.jsonl")]


def scene_tensors(config):
    folder = f"{config.output}/scene"
    return load_file(f"{folder}/diffusion_pytorch_model.safetensors") | load_file(f"{folder}/occupancy.safetensors")


def assert_equal_bits(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_every_term_is_logged_and_the_loss_is_their_weighted_sum(config):
    fit(config)
    lines = log(config)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    names = {"sds", "perceptual", "d_ssim", "views", "orientation", "opacity", "sparsity"}
    assert set(lines[0]) == {"step", "loss"} | names
    assert set(lines[1]) == {"step", "loss", "perceptual", "d_ssim", "views"}  # between two SDS steps
    for step, line in enumerate(lines):
        weights = loss_weights(config, step)
        total = sum(weights[name] * line[name] for name in names & set(line))
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    for name in ("orbit.mp4", "contact_sheet.png", "generated/contact_sheet.png", "generated/view_270.mp4"):
        assert os.path.getsize(f"{config.output}/{name}") > 0


def test_the_run_says_which_backends_it_took_and_goes_on_with_others(config, capsys):
    config.max_steps = 1
    fit(config)
    assert "backends: grid_backend=numba, ray_backend=torch" in capsys.readouterr().out
    content = yaml.safe_load(Path(config.output, "config.yaml").read_text())
    assert content["backends"] == {"grid_backend": "numba", "ray_backend": "torch"}
    assert content["perceptual"] == "distance of VAE latents, for want of LPIPS' weights"
    assert content["settings"]["scene"]["grid_backend"] == "auto"
    config.max_steps, config.scene.grid_backend = 2, "torch"
    fit(config)
    assert yaml.safe_load(Path(config.output, "config.yaml").read_text())["backends"]["grid_backend"] == "torch"
    assert [line["step"] for line in log(config)] == [1, 2]
    for name in ("scene/config.json", "scene/renderer.json"):
        assert "backend" not in Path(config.output, name).read_text()


def test_tensorboard_has_the_curves_of_the_log(config):
    config.max_steps = 2
    fit(config)
    events = EventAccumulator(f"{config.output}/tensorboard").Reload()
    assert set(events.Tags()["scalars"]) == set().union(*log(config)) - {"step"}
    values = [(event.step, event.value) for event in events.Scalars("views")]
    assert values == [(line["step"], pytest.approx(line["views"])) for line in log(config)]


def test_guidance_falls_along_the_ramp(config, monkeypatch):
    """And with an end above 1 there is an unconditional branch from the first step, even where it begins at 1."""
    seen = []
    real = distillation.distil

    def spy(images, size, vae, denoise, alpha_bar, guidance, *rest):
        seen.append((guidance, torch.equal(*denoise(torch.randn(FRAMES, 4, 4, SIZE // 2, SIZE // 2)))))
        return real(images, size, vae, denoise, alpha_bar, guidance, *rest)

    monkeypatch.setattr(distillation, "distil", spy)
    config.sds = dataclasses.replace(config.sds, every=1, guidance_scale=1.0, guidance_scale_end=5.0)
    fit(config)
    assert [guidance for guidance, _ in seen] == [1.0, 2.0, 3.0, 4.0, 5.0, 5.0]
    assert not any(same for _, same in seen)


def test_a_line_of_the_log_has_the_means_since_the_line_before(config, tmp_path):
    fit(config)
    fit(dataclasses.replace(config, output=str(tmp_path / "seldom"), log_every=4))
    often = log(config)
    seldom = [json.loads(line) for line in open(tmp_path / "seldom/log.jsonl")]
    assert [line["step"] for line in seldom] == [4, STEPS]
    for line, part in zip(seldom, (often[:4], often[4:]), strict=True):
        assert line.keys() == set().union(*part)  # SDS too, which the last step of neither part has
        for name in line.keys() - {"step"}:
            values = [each[name] for each in part if name in each]
            assert line[name] == pytest.approx(sum(values) / len(values), rel=1e-5)


@pytest.mark.parametrize("change", [{"source": "per_frame"}, {"source": "off"}])
def test_the_ablations_run(config, change):
    config.sds = dataclasses.replace(config.sds, **change)
    config.loss = dataclasses.replace(config.loss, anchor=False)
    config.max_steps = 2
    fit(config)
    first = log(config)[0]
    assert ("sds" in first) == (change["source"] != "off")
    assert "perceptual" not in first and "d_ssim" not in first


def test_a_run_in_two_parts_equals_a_run_in_one(config, tmp_path):
    fit(config)
    halves = dataclasses.replace(config, output=str(tmp_path / "halves"), max_steps=3)
    fit(halves)
    fit(dataclasses.replace(halves, max_steps=STEPS))
    assert_equal_bits(scene_tensors(config), scene_tensors(halves))
    assert log(config) == log(halves)


@pytest.mark.parametrize(
    "sent, minutes, sign",
    [(signal.SIGKILL, 0.0, "checkpoint.safetensors"), (signal.SIGINT, 60.0, "log.jsonl")],
    ids=["killed", "interrupted"],
)
def test_a_stopped_run_goes_on_to_the_same_scene(config, tmp_path, sent, minutes, sign):
    """Killed after its first checkpoint; or stopped with Ctrl-C before its first one is due."""
    config.max_steps, config.checkpoint_minutes = 12, minutes
    fit(config)
    killed = dataclasses.replace(config, output=str(tmp_path / "killed"))
    program = "import pickle, sys; from fourdiffusion.fit.loop import fit; fit(pickle.load(open(sys.argv[1], 'rb')))"
    settings = tmp_path / "settings.pickle"
    settings.write_bytes(pickle.dumps(killed))
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    process = subprocess.Popen([sys.executable, "-c", program, str(settings)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / sign).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(sent)
    process.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "killed" / "scene").exists(), "the run ended before it was killed"
    fit(killed)
    assert_equal_bits(scene_tensors(config), scene_tensors(killed))
    assert [line["step"] for line in log(killed)] == list(range(1, 13))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"video": "nowhere.mp4"}, "nowhere.mp4"),
        ({"device": "tpu"}, "tpu"),
        ({"num_frames": 1}, "num_frames=1"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"sds": DistillationConfig(source="dreams")}, "dreams"),
        ({"sds": DistillationConfig(resolutions=[8])}, "resolution"),
        ({"sds": DistillationConfig(every=2), "loss": LossConfig(anchor=False)}, "sds.every=2.* without any loss"),
        ({"model": tiny_config("nowhere")}, "nowhere"),
        ({"scene": SceneConfig(grid_backend="tinycudann")}, "scene.grid_backend=tinycudann (needs|serves)"),
        ({"scene": SceneConfig(ray_backend="nerfacc")}, "scene.ray_backend=nerfacc (needs|serves)"),
        ({"loss": LossConfig(lpips_weights="nowhere")}, "lpips=nowhere lacks vgg16-397923af.pth or vgg.pth"),
        ({"trackers": ["abacus"]}, "trackers: abacus is none of tensorboard, wandb"),
        ({"scene": SceneConfig(ray_backend="sun")}, "scene.ray_backend=sun is unknown: choose auto, nerfacc, torch"),
    ],
)
def test_what_it_refuses_leaves_no_run(config, change, words):
    config = dataclasses.replace(config, **change)
    with pytest.raises(UserError, match=words):
        fit(config)
    assert not os.path.exists(config.output)


def test_a_damaged_checkpoint_is_named(config):
    config.max_steps = 1
    fit(config)
    path = f"{config.output}/checkpoint.safetensors"
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="checkpoint.safetensors"):
        fit(dataclasses.replace(config, max_steps=2))


def test_the_anchor_is_the_view_most_like_the_input_and_can_be_set(config):
    rgba = load_video(config.video, FRAMES, SIZE, crop="frame").rgba
    os.makedirs(config.output)
    target = _generate(config, load_pipeline(config.model.path), rgba, None, Path(config.output))
    errors = (target.views - target.images).square().flatten(1).mean(1)
    assert target.anchor == int(errors.argmin())
    config.loss.anchor_view = 2
    assert _generate(config, load_pipeline(config.model.path), rgba, None, Path(config.output)).anchor == 2


def test_windows_of_a_long_video_lie_inside_it_at_every_stride() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_window(8, 8, generator).tolist() == list(range(8))
    drawn = [draw_window(25, 8, generator) for _ in range(200)]
    assert all(0 <= window[0] and window[-1] < 25 and len(window) == 8 for window in drawn)
    assert {int(window[1] - window[0]) for window in drawn} == {1, 2, 3}
    assert torch.cat(drawn).unique().tolist() == list(range(25))


def test_an_empty_scene_stops_with_a_reason(config):
    config.scene.field.blob_std = 1e-3  # matter in one point
    with pytest.raises(UserError, match="the scene is empty at step 0"):
        fit(config)


@pytest.mark.parametrize("pixel_space", [False, True])
def test_gradients_in_chunks_are_the_whole_gradient(config, pixel_space):
    """Memory must not grow with the number of rays; nothing else may change."""
    pipeline = load_pipeline(config.model.path)
    rgba = load_video(config.video, FRAMES, SIZE, crop="frame").rgba
    os.makedirs(config.output)
    target = _generate(config, pipeline, rgba, None, Path(config.output))
    denoiser = pipeline.prepare(target.images, "", "")
    perceptual = partial(latent_distance, pipeline.vae)
    found = []
    for rays, pictures in ((0, 0), (0, 3), (100, 3), (777, 0)):
        config.sds = dataclasses.replace(config.sds, ray_chunk=rays, image_chunk=pictures, pixel_space=pixel_space)
        renderer = config.scene.renderer
        scene = Scene(DynamicField(config.scene.field, 0), OccupancyGrid(renderer), renderer)
        generator = torch.Generator().manual_seed(0)
        stage = Stage(config, pipeline, denoiser, perceptual, scene, target)
        terms = stage.terms(0, loss_weights(config, 0), generator)
        values = {name: float(value) for name, value in terms.items()}
        found.append((values, torch.cat([p.grad.flatten() for p in scene.field.parameters()])))
    (terms, gradient), *chunked = found
    assert {"sds", "orientation", "opacity", "sparsity"} <= terms.keys() and gradient.norm() > 0
    for other_terms, other in chunked:
        assert other_terms == {name: pytest.approx(value, rel=1e-5) for name, value in terms.items()}
        assert (other - gradient).norm() < 1e-5 * gradient.norm()
