"""`fit views=`: a scene from known cameras, without a model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import SIZE, tiny_clip

from fourdiffusion import cameras
from fourdiffusion.cli import main
from fourdiffusion.datasets.clips import write_clip
from fourdiffusion.datasets.readers import open_views
from fourdiffusion.evaluate.runs import compare_run
from fourdiffusion.files import load_tensors
from fourdiffusion.fit_views import loop
from fourdiffusion.fit_views.pixels import load_pixels, visual_hull
from fourdiffusion.fit_views.settings import FitViewsConfig
from fourdiffusion.media.image import composite
from fourdiffusion.metrics.image import psnr
from fourdiffusion.metrics.lpips import Lpips
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.optimization import make_optimizer
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

pytestmark = pytest.mark.slow

SMALL = ["num_rays=512", "trackers=[]", "log_every=20", "device=cpu"]
SMALL += ["scene.renderer.num_samples=32", "scene.renderer.occupancy_resolution=16"]
SMALL += [f"scene.field.{grid}.num_levels=4" for grid in ("space", "spacetime")]
SMALL += [f"scene.field.{grid}.log2_hashmap_size=11" for grid in ("space", "spacetime")]


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_pictures", lambda *args, **kwargs: [])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "balls"
    write_clip(folder, tiny_clip(0))
    return folder


def fit(clip: Path, output: Path, *words: str, steps: int = 200) -> int:
    return main(["fit", f"views={clip}", f"output={output}", f"max_steps={steps}", *SMALL, *words])


def score(output: Path) -> float:
    return json.loads((output / "held_out.json").read_text())["psnr"]


def test_held_out_views_are_met_and_wrong_cameras_are_not(clip: Path, tmp_path: Path) -> None:
    assert fit(clip, tmp_path / "right", "held_out=[5]") == 0
    turned = tmp_path / "turned"
    shutil.copytree(clip, turned)
    meta = json.loads((turned / "transforms.json").read_text())
    c2w = cameras.turn(tiny_clip(0).c2w, torch.tensor([0.0, 25, -25, 40, 0, 0, -40, 10]))  # each by another angle
    for entry in meta["frames"]:
        entry["transform_matrix"] = c2w[entry["view"]].tolist()
    (turned / "transforms.json").write_text(json.dumps(meta))
    assert fit(turned, tmp_path / "wrong", "held_out=[5]") == 0
    assert score(tmp_path / "right") > 17.5
    assert score(tmp_path / "right") > score(tmp_path / "wrong") + 2


def test_empty_space_holds_no_fog_of_the_background(clip: Path, tmp_path: Path) -> None:
    from fourdiffusion.scene.scene import load_scene, render_views

    assert fit(clip, tmp_path / "run", "lambda_alpha=0") == 0  # the colors alone must tell
    truth = tiny_clip(0)
    scene = load_scene(tmp_path / "run")
    _, opacity = render_views(scene, truth.c2w[:4], truth.fovy_deg, truth.times[[0, 1, 2, 3]], 16)
    alpha = torch.stack([truth.rgba[k, k, 3] for k in range(4)]).float() / 255
    assert (opacity[:, 0][alpha == 0]).mean() < 0.05
    assert (opacity[:, 0] - alpha).abs().mean() < 0.1


def test_every_layout_of_the_same_videos_gives_the_same_scene(clip: Path, tmp_path: Path) -> None:
    truth = tiny_clip(0)
    plain = tmp_path / "plain"
    for v in range(8):
        (plain / f"view_{v}").mkdir(parents=True)
        for f in range(4):
            pixels = np.ascontiguousarray(truth.rgba[v, f].permute(1, 2, 0).numpy())
            Image.fromarray(pixels).save(plain / f"view_{v}" / f"{f}.png")
    (plain / "cameras.json").write_text(
        json.dumps({"c2w": truth.c2w.tolist(), "fovy_deg": truth.fovy_deg, "times": truth.times.tolist()})
    )
    scenes = []
    for name, folder in (("clip", clip), ("json", clip / "transforms.json"), ("plain", plain)):
        assert fit(folder, tmp_path / f"run-{name}", steps=6) == 0
        scenes.append(load_tensors(tmp_path / f"run-{name}/scene/diffusion_pytorch_model.safetensors")[0])
    for other in scenes[1:]:
        assert all(torch.equal(value, other[key]) for key, value in scenes[0].items())


def test_a_killed_fit_goes_on_bit_for_bit(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["checkpoint_minutes=0"]
    assert fit(clip, tmp_path / "whole", *words, steps=24) == 0
    before, steps = loop.save_checkpoint, []  # type: ignore[attr-defined]

    def killed(*args: object) -> None:
        before(*args)  # type: ignore[arg-type]
        steps.append(args[3])
        if args[3] == 19:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    assert fit(clip, tmp_path / "cut", *words, steps=24) == 130
    monkeypatch.setattr(loop, "save_checkpoint", before)
    assert fit(clip, tmp_path / "cut", *words, steps=24) == 0
    whole, cut = (load_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["held_out=[8]"], "held_out=[8]: balls has the views 0 to 7"),
        (["held_out=[0,1,2,3,4,5,6,7]"], "leaves no view"),
        (["num_frames=9"], "num_frames=9: balls has 4 frames"),
        (["frame_stride=2", "num_frames=3"], "2 of them at frame_stride=2"),
        (["background=blue"], "background=blue is not one of auto, random, white, black"),
        (["scene.renderer.radius=1"], "scene.renderer.radius=1 differ"),
        (["grid_lr=nan"], "grid_lr=nan"),
        (["azimuths_deg=[0,90]"], "its transforms.json holds the cameras"),
    ],
)
def test_mistakes_are_one_line(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    assert fit(clip, tmp_path / "run", *words) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and part in error[0]
    assert not (tmp_path / "run").exists()


def test_unequal_views_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for v, frames in enumerate((3, 3, 2)):
        (tmp_path / f"clip/view_{v}").mkdir(parents=True)
        for f in range(frames):
            Image.new("RGB", (16, 16)).save(tmp_path / f"clip/view_{v}/{f}.png")
    assert fit(tmp_path / "clip", tmp_path / "run", "azimuths_deg=[0,120,240]") == 2
    assert "view 2 has 2 frames, view 0 has 3" in capfd.readouterr().err


def test_another_clip_does_not_go_on(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit(clip, tmp_path / "run", steps=2) == 0
    write_clip(tmp_path / "balls", tiny_clip(1))
    assert fit(tmp_path / "balls", tmp_path / "run", steps=4) == 2
    assert "another views" in capfd.readouterr().err


def test_evaluate_sees_a_moved_and_scaled_world_as_the_fit_did(clip: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    truth = tiny_clip(0)
    truth.c2w[:, :3, 3] = truth.c2w[:, :3, 3] * 3 + torch.tensor([1.0, -2.0, 0.5])
    write_clip(far, truth)
    assert fit(far, tmp_path / "run", "held_out=[5]") == 0
    record = json.loads((tmp_path / "run/input.json").read_text())["world_to_scene"]
    assert record["scale"] == pytest.approx(1 / 3, rel=0.01) and record["center"] == pytest.approx(
        [1, -2, 0.5], abs=0.02
    )
    assert main(["evaluate", f"prediction={tmp_path}/run", f"reference={far}", f"output={tmp_path}/out"]) == 0
    text = (tmp_path / "out/metrics.json").read_text()
    assert "views [0, 1, 2, 3, 4, 6, 7] of the clip that was fitted were seen" in text
    parts, _ = compare_run(tmp_path / "run", far, torch.device("cpu"))
    seen = torch.from_numpy(parts[0].truth[5]).permute(0, 3, 1, 2).float() / 255
    assert float(psnr(parts[0].rgb[5], composite(seen)).mean()) == pytest.approx(score(tmp_path / "run"), abs=0.1)


def small_problem(clip: Path, background: str = "random") -> tuple[loop.Problem, torch.optim.Optimizer]:
    settings = FitViewsConfig(views=str(clip), num_rays=64, grid_lr=0.1, mlp_lr=0.2, lr_decay=0.01)
    opened = open_views(clip)
    pixels = load_pixels(opened, [0, 1], [0, 1], opened.c2w)
    small = HashGridConfig(num_levels=2, log2_hashmap_size=8)
    renderer = RendererConfig(num_samples=16, occupancy_resolution=8)
    scene = Scene(DynamicField(FieldConfig(space=small, spacetime=small)), OccupancyGrid(renderer), renderer)
    optimizer = make_optimizer(scene, settings.grid_lr, settings.mlp_lr)
    return loop.Problem(settings, pixels, scene, visual_hull(pixels, 8, 1.0), background), optimizer


def test_the_learning_rates_rise_and_fall(clip: Path) -> None:
    for number, progress, factor in ((0, 0.0, 1 / 20), (9, 0.0, 0.5), (50, 0.0, 1.0), (50, 0.5, 0.1), (50, 1.0, 0.01)):
        problem, optimizer = small_problem(clip)
        loop.update(problem, optimizer, number, progress, torch.Generator().manual_seed(0))
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * factor, 0.2 * factor])


def test_random_is_the_mean_over_all_backgrounds(clip: Path) -> None:
    """Of e + m b with b uniform the mean square is (e^2 + (e + m)^2 + e (e + m)) / 3."""
    errors = {}
    for name in ("black", "white", "random"):
        terms = loop.update(*small_problem(clip, name), 0, 0.0, torch.Generator().manual_seed(0))
        errors[name] = float(terms["rgb"])
    ends, product = errors["black"] + errors["white"], (errors["black"] * errors["white"]) ** 0.5
    assert (ends - product) / 3 <= errors["random"] <= (ends + product) / 3
    assert all(abs(errors["random"] - errors[name]) > 0.02 * ends for name in ("black", "white"))


def test_the_perceptual_term_brings_the_pictures_nearer_by_lpips(clip: Path) -> None:
    """Untrained trunks serve: a distance of features falls when it is descended."""
    torch.manual_seed(0)
    lpips = Lpips("vgg")
    for head in lpips.heads:
        torch.nn.init.constant_(head, 1.0)
    ends = {}
    for weight in (0.0, 1.0, -1.0):
        problem, optimizer = small_problem(clip)
        problem.config.lambda_lpips, problem.config.patch_size, problem.perceptual = weight, SIZE, lpips
        traces = [
            float(loop.update(problem, optimizer, n, 0.0, torch.Generator().manual_seed(n))["lpips"]) for n in range(20)
        ]
        ends[weight] = sum(traces[-5:])
    assert ends[1.0] < 0.97 * ends[0.0] < 0.97 * ends[-1.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lambda_lpips=1"], "patch_size=48: LPIPS on vgg needs 16 pixels at least, and the pictures have"),
        (["lambda_lpips=1", "lpips_net=resnet"], "lpips_net=resnet is not one of vgg, alex, squeeze"),
        (["lambda_lpips=1", "patch_size=16", "lpips_weights=nowhere"], "nowhere"),
    ],
)
def test_a_perceptual_term_that_cannot_be_had_is_one_line(
    words: list[str], message: str, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(clip, tmp_path / "run", *words) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
