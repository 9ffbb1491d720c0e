"""The whole 4D stage on the smallest real model: terms, ablations, resume, and what it refuses."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from forks import Fork
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_model import FRAMES, LATENT, SIZE, balls, picture, tiny_config, tiny_pipeline, write_model

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import opaque_clip, read_clip, write_clip
from fourdiffusion.diffusion.distillation import draw_window
from fourdiffusion.diffusion.loading import with_own_settings
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.fit.camera import InputCamera
from fourdiffusion.fit.loop import fit, update
from fourdiffusion.fit.settings import DistillationConfig, FitConfig, LossConfig
from fourdiffusion.fit.setup import generate_target, open_problem, read_inputs
from fourdiffusion.fit.step import plan_step
from fourdiffusion.media.read import load_video
from fourdiffusion.media.write import write_image
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.randomness import stream
from fourdiffusion.scene.settings import FieldConfig, RendererConfig, SceneConfig

pytestmark = pytest.mark.slow

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
    assert set(lines[1]) == {"step", "loss"} | names - {"sds"}  # between two SDS steps
    for step, line in enumerate(lines):
        weights = plan_step(config, step).weights
        assert line["loss"] == pytest.approx(sum(weights[name] * line[name] for name in names & set(line)), rel=1e-5)
    for name in ("orbit.mp4", "contact_sheet.png", "generated/contact_sheet.png", "generated/view_270.mp4"):
        assert os.path.getsize(f"{config.output}/{name}") > 0
    record = json.loads(Path(config.output, "input.json").read_text())
    assert record["source_size"] == [SIZE, SIZE] and Path(config.output, "matte.png").is_file()
    assert record["crop"] == [0, 0, SIZE] and record["frames"] == list(range(FRAMES)) and record["times"][-1] == 1
    assert (record["fovy_deg"], record["distance"], record["elevation_deg"]) == (45, 1.1, 0)


def test_the_run_says_which_backends_it_took_and_goes_on_with_others(config, capsys):
    config.max_steps = 1
    fit(config)
    assert "backends: grid_backend=numba, ray_backend=numba" in capsys.readouterr().out
    content = yaml.safe_load(Path(config.output, "config.yaml").read_text())
    assert content["backends"] == {"grid_backend": "numba", "ray_backend": "numba"}
    assert content["perceptual"] == "distance of VAE latents: LPIPS has no weights here"
    assert content["settings"]["scene"]["grid_backend"] == "auto"
    config.max_steps, config.scene.grid_backend, config.scene.ray_backend = 2, "torch", "torch"
    fit(config)
    content = yaml.safe_load(Path(config.output, "config.yaml").read_text())
    assert content["backends"] == {"grid_backend": "torch", "ray_backend": "torch"}
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


def test_a_ramp_to_guidance_above_1_has_an_unconditional_branch_from_the_first_step(config):
    config.sds = dataclasses.replace(config.sds, guidance_scale=1.0, guidance_scale_end=5.0)
    problem = open_problem(config, read_inputs(config))
    z = torch.randn(FRAMES, 4, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(*problem.denoiser(z, 500, problem.target.c2w))


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


@pytest.mark.parametrize("source", ["per_frame", "fourdm"])
def test_only_4d_sds_looks_at_other_frames(config, tmp_path, source):
    """With per_frame a frame's noise does not depend on the other frames; with fourdm it does."""
    tiny_pipeline(moving=True).save_whole(tmp_path / "moving")
    config.model.path = str(tmp_path / "moving")
    config.sds = dataclasses.replace(config.sds, source=source)
    inputs = read_inputs(config)
    write_generated(config, pipeline=inputs.pipeline)
    problem = open_problem(config, inputs)
    z = torch.randn(FRAMES, 4, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    other = torch.cat([z[:1], z[1:].flip(0)])
    first, second = (problem.denoiser(each, 500, problem.target.c2w)[0][0] for each in (z, other))
    assert (first - second).abs().max() < 1e-5 if source == "per_frame" else (first - second).abs().max() > 1e-3


def test_without_guidance_the_photometric_loss_and_the_regularizers_remain(config):
    config.sds = dataclasses.replace(config.sds, source="off")
    config.loss = dataclasses.replace(config.loss, anchor=False)
    config.max_steps = 1
    fit(config)
    assert set(log(config)[0]) == {"step", "loss", "views", "orientation", "opacity", "sparsity"}


def test_a_run_in_two_parts_equals_a_run_in_one(config, tmp_path):
    fit(config)
    halves = dataclasses.replace(config, output=str(tmp_path / "halves"), max_steps=3)
    fit(halves)
    fit(dataclasses.replace(halves, max_steps=STEPS))
    assert_equal_bits(scene_tensors(config), scene_tensors(halves))
    assert log(config) == log(halves)


@pytest.mark.parametrize(
    "sent, code, minutes, sign",
    [
        (signal.SIGKILL, -9, 0.0, "checkpoint.safetensors"),
        (signal.SIGTERM, 143, 60.0, "log.jsonl"),
    ],
    ids=["killed", "terminated"],
)
def test_a_stopped_run_goes_on_to_the_same_scene(config, tmp_path, sent, code, minutes, sign):
    """Killed after its first checkpoint; or asked to end before its first one is due, which loses no step."""
    config.max_steps, config.checkpoint_minutes = 6, minutes
    fit(config)
    killed = dataclasses.replace(config, output=str(tmp_path / "killed"))
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    process = Fork(lambda: fit(killed), tmp_path)
    while not (tmp_path / "killed" / sign).exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(sent)
    assert process.wait() == code, process.said()
    assert checkpoint.exists()
    if sent == signal.SIGTERM:
        assert load_tensors(checkpoint)[1]["step"] >= len(log(killed)) >= 1
    assert not (tmp_path / "killed" / "scene").exists(), "the run ended before it was killed"
    fit(killed)
    assert_equal_bits(scene_tensors(config), scene_tensors(killed))
    assert [line["step"] for line in log(killed)] == list(range(1, 7))


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
        ({"loss": LossConfig(anchor_view=99)}, "loss.anchor_view=99: give 0 to 3"),
        ({"loss": LossConfig(lambda_rgb=float("nan"))}, "loss.lambda_rgb=nan"),
        ({"sds": DistillationConfig(t_start=float("inf"))}, "sds.t_start=inf"),
        ({"sds": DistillationConfig(resolution_milestones=[1, 2, 3])}, r"resolution_milestones=.1, 2, 3.: give rising"),
        ({"scene": SceneConfig(field=FieldConfig(hidden_width=-1))}, "scene.field.hidden_width=-1: give 1 to 65536"),
        ({"trackers": ["abacus"]}, "trackers: abacus is not one of tensorboard, wandb"),
        (
            {"scene": SceneConfig(ray_backend="sun")},
            "ray_backend=sun is unknown: choose auto, numba, nerfacc, torch",
        ),
    ],
)
def test_what_it_refuses_leaves_no_run(config, change, words):
    config = dataclasses.replace(config, **change)
    with pytest.raises(UserError, match=words):
        fit(config)
    assert not os.path.exists(config.output)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, tmp_path, capsys):
    fit(config)
    damaged = dataclasses.replace(config, output=str(tmp_path / "damaged"), checkpoint_minutes=0.0, max_steps=4)
    fit(damaged)
    path = Path(damaged.output, "checkpoint.safetensors")
    os.truncate(path, 100)
    damaged.max_steps = STEPS
    fit(damaged)
    assert "checkpoint.safetensors is damaged: resuming from the previous one, of step 3" in capsys.readouterr().out
    assert_equal_bits(scene_tensors(config), scene_tensors(damaged))
    assert log(config) == log(damaged)


def write_generated(config, size=SIZE, pipeline=None):
    """Write the generated views that a run begins with, so that none need be sampled."""
    c2w = cameras.orbit(cameras.orthogonal_azimuths(config.num_views))
    views = torch.rand(config.num_views, FRAMES, 3, size, size, generator=torch.Generator().manual_seed(0))
    write_clip(Path(config.output, "generated"), opaque_clip("generated", views, c2w, cameras.FOVY_DEG, "", ""))
    recorded = pipeline and dataclasses.replace(config, model=with_own_settings(config.model, pipeline))
    record = {"settings": dataclasses.asdict(recorded or config)}
    Path(config.output, "config.yaml").write_text(yaml.safe_dump(record))
    return views


def target_of(config):
    rgba = load_video(config.video, FRAMES, SIZE, crop="frame").rgba
    return generate_target(config, None, rgba, torch.linspace(0, 1, FRAMES), rgba, InputCamera())  # type: ignore[arg-type]


def test_the_anchor_is_the_view_most_like_the_input_and_can_be_set(config):
    write_generated(config)
    target = target_of(config)
    errors = (target.views - target.images).square().flatten(1).mean(1)
    assert target.anchor == int(errors.argmin())
    config.loss.anchor_view = (target.anchor + 1) % 4
    assert target_of(config).anchor == config.loss.anchor_view


def test_the_input_stands_in_for_the_view_from_its_place_where_asked(config):
    views = write_generated(config)
    target = target_of(config)
    torch.testing.assert_close(target.views, views, rtol=0, atol=1 / 255)
    config.loss.use_input_view = True
    target = target_of(config)
    assert torch.equal(target.views[0], target.images)
    torch.testing.assert_close(target.views[1:], views[1:], rtol=0, atol=1 / 255)
    assert target.anchor == 0


def test_generated_views_of_another_size_are_refused(config):
    write_generated(config, 2 * SIZE)
    with pytest.raises(UserError, match="generated holds images .* of another run"):
        target_of(config)


def test_a_run_is_its_content_not_its_paths(config, tmp_path, monkeypatch):
    config.max_steps = 1
    config.loss = dataclasses.replace(config.loss, anchor=False)
    fit(config)
    shutil.copytree(config.video, tmp_path / "video")
    shutil.copytree(config.model.path, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    moved = dataclasses.replace(config, video="video", output="run", log_every=3, trackers=[])
    moved.model = dataclasses.replace(config.model, path="model")
    moved.sds = dataclasses.replace(config.sds, ray_chunk=999)
    inputs = read_inputs(moved)
    open_problem(moved, inputs)
    os.replace(tmp_path / "video/0.png", tmp_path / "video/3.png")  # another video under the same name
    shutil.copy(tmp_path / "video/2.png", tmp_path / "video/0.png")
    with pytest.raises(UserError, match="holds a run with another video .*: choose another output$"):
        open_problem(moved, dataclasses.replace(inputs, video=load_video("video", FRAMES, SIZE, crop="frame")))
    with open(tmp_path / "model/motion/config.json", "a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="another model.path"):
        open_problem(moved, inputs)
    moved.model.path = config.model.path
    with pytest.raises(UserError, match="holds a run with perceptual=off, this one has perceptual=LPIPS"):
        open_problem(moved, dataclasses.replace(inputs, perceptual_name="LPIPS (VGG-16)"))


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
    """Of rays and of encoded images together; memory must not grow with their number, and nothing else may change."""
    config.sds = dataclasses.replace(config.sds, pixel_space=pixel_space)
    inputs = read_inputs(config)
    write_generated(config, pipeline=inputs.pipeline)
    found: list[tuple[dict[str, float], torch.Tensor]] = []
    for rays, images in ((0, 0), (777, 3)):
        config.sds = dataclasses.replace(config.sds, ray_chunk=rays, image_chunk=images)
        problem = open_problem(config, inputs)
        optimizer = torch.optim.SGD([{"params": list(problem.scene.field.parameters()), "base_lr": 1.0}], lr=1.0)
        before = parameters(problem)
        terms = update(problem, optimizer, plan_step(config, 0), stream(0, 0, 0))
        found.append(({name: float(value) for name, value in terms.items()}, before - parameters(problem)))
    (whole_terms, gradient), (chunked_terms, chunked) = found
    assert {"sds", "orientation", "opacity", "sparsity"} <= whole_terms.keys() and gradient.norm() > 0
    assert chunked_terms == {name: pytest.approx(value, rel=1e-5) for name, value in whole_terms.items()}
    assert (chunked - gradient).norm() < 1e-5 * gradient.norm()


def parameters(problem):
    return torch.cat([value.detach().flatten().clone() for value in problem.scene.field.parameters()])


def test_the_scene_and_its_files_have_the_true_times_of_the_frames(config):
    """Frames are shown at the times that they were taken at, not evenly."""
    inputs = read_inputs(config)
    times = [0.0, 0.1, 0.25, 1.0]
    video = dataclasses.replace(inputs.video, times=times, digest="another")
    problem = open_problem(config, dataclasses.replace(inputs, video=video))
    assert problem.target.times.tolist() == pytest.approx(times)
    assert json.loads(Path(config.output, "input.json").read_text())["times"] == times
    assert read_clip(Path(config.output, "generated")).times.tolist() == pytest.approx(times)
