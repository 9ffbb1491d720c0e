"""The verb `evaluate`: clips and scenes whose distance from the truth is known."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fourdiffusion.cameras import DISTANCE, FOVY_DEG, orbit
from fourdiffusion.datasets.clips import opaque_clip, write_clip
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate import evaluate, view_roles
from fourdiffusion.evaluate.settings import EvaluateConfig
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, render_views, save_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

pytestmark = pytest.mark.slow

SIZE, FRAMES = 16, 3


def videos(azimuths: list[float], seed: int = 0) -> torch.Tensor:
    """[V, F, 3, S, S] in [0.2, 0.8]; a view's pictures depend on its azimuth only."""

    def one(azimuth: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + round(azimuth))
        return 0.2 + 0.6 * torch.rand(FRAMES, 3, SIZE, SIZE, generator=generator)

    return torch.stack([one(azimuth) for azimuth in azimuths])


def save_clip(
    folder: Path, rgb: torch.Tensor, azimuths: list[float], distance: float = DISTANCE, fovy: float = FOVY_DEG
) -> str:
    c2w = orbit(torch.tensor(azimuths), distance=distance)
    write_clip(folder, opaque_clip(folder.name, rgb, c2w, fovy, "", "a test"))
    return str(folder)


def report_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_generated_clip_is_compared_at_its_own_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The truth has more views, in another order; the prediction is off by one tenth everywhere."""
    around = [270.0, 45.0, 0.0, 90.0, 135.0, 180.0]
    truth = save_clip(tmp_path / "truth", videos(around), around)
    run = tmp_path / "run"
    run.mkdir()
    save_clip(run / "clip", videos([0.0, 90.0, 180.0, 270.0]) + 0.1, [0.0, 90.0, 180.0, 270.0])
    evaluate(EvaluateConfig(str(run), truth))
    assert "scene" not in report_of(run)
    report = report_of(run)["videos"]
    assert report["views"] == [2, 3, 5, 0]
    assert report["azimuth_deg"] == [0, 90, 180, 270]
    assert report["role"] == ["input", "generated", "generated", "generated"]
    assert report["per_view"]["psnr"] == pytest.approx([20.0] * 4, abs=0.15)
    assert [len(row) for row in report["per_frame"]["ssim"]] == [FRAMES] * 4
    baseline = report["baseline"]["per_view"]["psnr"]
    assert baseline[0] == 100 and max(baseline[1:]) < 15  # the input equals itself, and no other view
    assert report["mean_by_role"]["generated"]["psnr"] == pytest.approx(20, abs=0.15)
    assert Image.open(run / "comparison_videos.png").height > 4 * 2 * 64
    printed = capsys.readouterr().out
    assert "generated views (3)" in printed and "in brackets" in printed and str(run / "metrics.json") in printed


def test_scene_is_compared_at_all_views_and_roles_are_told_apart(tmp_path: Path) -> None:
    """A scene held against its own pictures: only rounding to 8 bits is left."""
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    renderer = RendererConfig(num_samples=16, occupancy_resolution=8)
    field = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8), backend="torch")
    with torch.no_grad():
        field.space.params.normal_(generator=torch.Generator().manual_seed(0))
    scene = Scene(field, OccupancyGrid(renderer), renderer)
    save_scene(tmp_path / "run" / "scene", scene)
    around = [0.0, 60.0, 90.0]
    c2w, times = orbit(torch.tensor(around)), torch.linspace(0, 1, FRAMES)
    rgb, _ = render_views(scene, c2w.repeat_interleave(FRAMES, 0), FOVY_DEG, times.repeat(3), SIZE)
    truth = save_clip(tmp_path / "truth", rgb.unflatten(0, (3, FRAMES)), around)
    evaluate(EvaluateConfig(str(tmp_path / "run"), truth, str(tmp_path / "out"), "cpu"))
    report = report_of(tmp_path / "out")["scene"]
    assert report["role"] == ["input", "novel", "generated"]
    assert min(report["per_view"]["psnr"]) > 50
    assert report["baseline"]["mean_by_role"]["novel"]["psnr"] < report["mean_by_role"]["novel"]["psnr"] - 10
    assert list(tmp_path.glob("run/*.json")) == []


def test_a_run_of_fit_shows_its_videos_beside_its_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    renderer = RendererConfig(num_samples=16, occupancy_resolution=8)
    field = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8), backend="torch")
    save_scene(tmp_path / "run" / "scene", Scene(field, OccupancyGrid(renderer), renderer))
    around = [0.0, 45.0, 90.0]
    truth = save_clip(tmp_path / "truth", videos(around), around)
    save_clip(tmp_path / "run" / "generated", videos([0.0, 90.0]), [0.0, 90.0])
    evaluate(EvaluateConfig(str(tmp_path / "run"), truth, device="cpu"))
    report = report_of(tmp_path / "run")
    assert report["videos"]["views"] == [0, 2] and report["videos"]["mean"]["psnr"] == 100
    assert report["scene"]["role"] == ["input", "novel", "generated"]
    printed = capsys.readouterr().out
    assert "videos, generated views (1)" in printed and "scene, novel views (1)" in printed

    other = save_clip(tmp_path / "other", videos([10.0]), [10.0])
    evaluate(EvaluateConfig(str(tmp_path / "run"), other, device="cpu"))
    assert "videos" not in report_of(tmp_path / "run")
    assert "generated videos are left out" in capsys.readouterr().out


def test_truth_without_the_input_view_has_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = save_clip(tmp_path / "truth", videos([30.0]), [30.0])
    prediction = save_clip(tmp_path / "clip", videos([30.0]), [30.0])
    evaluate(EvaluateConfig(prediction, truth))
    report = report_of(tmp_path / "clip")["videos"]
    assert report["baseline"] is None and report["per_view"]["psnr"] == [100.0]
    assert "baseline is left out" in capsys.readouterr().out


def test_view_roles_tell_azimuth_and_elevation_apart() -> None:
    c2w = orbit(torch.tensor([0.0, 0.0, 90.0, 91.0, 135.0]), torch.tensor([0.0, 30.0, 0.0, 0.0, 0.0]))
    generated = orbit(torch.tensor([0.0, 90.0]))
    assert view_roles(c2w, generated) == ["input", "novel", "generated", "generated", "novel"]


@pytest.mark.parametrize(
    "case, message",
    [
        ("missing", "nowhere: no such folder"),
        ("empty", "neither a scene .* nor a clip"),
        ("truth", "holds no videos"),
        ("size", "is 12 pixels high, the truth 16"),
        ("frames", "is 2 frames a view, the truth 3"),
        ("camera", "no camera where view 1 of the prediction stands"),
        ("fovy", "field of view of 50 deg, the truth 45"),
        ("two clips", "holds 2 clips: give one of them"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path: Path, case: str, message: str) -> None:
    around = [0.0, 90.0]
    truth, folder = save_clip(tmp_path / "truth", videos(around), around), tmp_path / "run"
    prediction = str(folder)
    if case == "missing":
        prediction = str(tmp_path / "nowhere")
    elif case in ("empty", "truth"):
        folder.mkdir()
        truth = str(folder) if case == "truth" else truth
    elif case == "size":
        save_clip(folder, videos(around)[..., :12, :12], around)
    elif case == "frames":
        save_clip(folder, videos(around)[:, :2], around)
    elif case == "camera":
        save_clip(folder, videos(around), [0.0, 80.0])
    elif case == "fovy":
        save_clip(folder, videos(around), around, fovy=50.0)
    else:
        folder.mkdir()
        save_clip(folder / "a", videos(around), around)
        save_clip(folder / "b", videos(around), around)
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(prediction, truth))
    assert not (folder / "metrics.json").exists()
