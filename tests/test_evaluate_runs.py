"""A run against truth that was filmed otherwise: a perfect scene scores as one, or the comparison is refused.

The scene is its own truth: its pictures are drawn with the truth's cameras, and input.json says what a fit would have
seen of them.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdiffusion.cameras import DISTANCE, FOVY_DEG, orbit
from fourdiffusion.datasets.clips import Clip, opaque_clip, write_clip
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.fit_input import FitInput
from fourdiffusion.evaluate.framing import frame_truth, match_times
from fourdiffusion.evaluate.measure import VideoResult
from fourdiffusion.evaluate.settings import EvaluateConfig, ProtocolConfig
from fourdiffusion.evaluate.summary import Row, summarize
from fourdiffusion.fit.camera import input_camera
from fourdiffusion.fit.settings import CameraConfig, FitConfig
from fourdiffusion.media.read import VideoInput
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, render_views, save_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

pytestmark = pytest.mark.slow

SIZE, AROUND = 24, [0.0, 90.0]
PROTOCOL = ProtocolConfig(metrics=["psnr"])
FRAME = VideoInput(torch.zeros(2, 4, SIZE, SIZE), [0, 1], 2, (0, 0, SIZE), "file", source_size=(SIZE, SIZE))


@pytest.fixture(scope="module")
def scene() -> Scene:
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    renderer = RendererConfig(num_samples=24, occupancy_resolution=8)
    field = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8), backend="torch")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        field.space.params.normal_(generator=generator)
        field.spacetime.params.normal_(generator=generator)
    return Scene(field, OccupancyGrid(renderer), renderer)


def film(scene: Scene, fovy_deg: float, times: Tensor, size: int = SIZE, elevation: float = 0.0) -> Tensor:
    """Return the view of the fit's camera at distance 1.1: [V, F, 3, S, S]."""
    c2w = orbit(torch.tensor(AROUND), elevation).repeat_interleave(len(times), 0)
    rgb, _ = render_views(scene, c2w, fovy_deg, times.repeat(len(AROUND)), size)
    return rgb.unflatten(0, (len(AROUND), len(times)))


def save_truth(folder: Path, rgb: Tensor, distance: float = DISTANCE, fovy: float = FOVY_DEG) -> str:
    write_clip(folder, opaque_clip(folder.name, rgb, orbit(torch.tensor(AROUND), distance=distance), fovy, "", "test"))
    return str(folder)


def save_run(folder: Path, scene: Scene, **recorded: Any) -> str:
    save_scene(folder / "scene", scene)
    (folder / "input.json").write_text(json.dumps(recorded))
    return str(folder)


def psnr(run: str, truth: str, tmp_path: Path) -> tuple[float, dict[str, Any]]:
    evaluate(EvaluateConfig(run, truth, str(tmp_path / "out"), "cpu", protocol=PROTOCOL))
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return report["scene"]["mean"]["psnr"], report


def world(scale: float, turn_deg: float = 0.0) -> dict[str, Any]:
    return {"center": [0.0, 0.0, 0.0], "scale": scale, "turn_deg": turn_deg}


TIMES = torch.linspace(0, 1, 2)


def test_another_distance_is_scaled_back(scene: Scene, tmp_path: Path) -> None:
    """A camera twice as far from an object twice as large sees the same."""
    truth = save_truth(tmp_path / "truth", film(scene, 45.0, TIMES), distance=2 * DISTANCE)
    run = save_run(tmp_path / "run", scene, fovy_deg=45.0, distance=DISTANCE, elevation_deg=0.0, times=[0.0, 1.0])
    value, report = psnr(run, truth, tmp_path)
    assert value > 45
    assert any("0.5 times the truth's size" in note for note in report["notes"])
    (tmp_path / "run" / "input.json").unlink()
    assert psnr(run, truth, tmp_path)[0] < 35  # nothing recorded: the cameras are taken as they are


def test_a_camera_that_the_fit_was_told_is_the_truths(scene: Scene, tmp_path: Path) -> None:
    """Field of view 30, elevation 20, azimuth 70, distance 3 of the world; another view from elsewhere and further."""
    unit = DISTANCE * math.tan(math.radians(45 / 2)) / (3.0 * math.tan(math.radians(30 / 2)))
    azimuths, elevations, distances = torch.tensor([0.0, 90.0]), torch.tensor([20.0, 5.0]), torch.tensor([3.0, 4.0])
    inside = orbit(azimuths, elevations, distances * unit).repeat_interleave(2, 0)
    rgb, _ = render_views(scene, inside, 30.0, TIMES.repeat(2), SIZE)
    truth = tmp_path / "truth"
    in_world = orbit(azimuths + 70, elevations, distances)
    write_clip(truth, opaque_clip("truth", rgb.unflatten(0, (2, 2)), in_world, 30.0, "", "test"))
    with pytest.raises(UserError, match="has 0 cameras at azimuth 0 among 2: say which .* camera.view=NUMBER"):
        input_camera(FitConfig(camera=CameraConfig(file=str(truth))), FRAME)
    record = input_camera(FitConfig(camera=CameraConfig(file=str(truth), view=0)), FRAME).record()
    run = save_run(tmp_path / "run", scene, times=[0.0, 1.0], **record)
    value, report = psnr(run, str(truth), tmp_path)
    assert value > 40 and report["scene"]["role"] == ["input", "novel"]
    assert report["scene"]["azimuth_deg"] == pytest.approx([0, 90], abs=0.01)
    for wrong in (world(unit, turn_deg=-60.0), None):  # None: the front view is not known as such
        (tmp_path / "run" / "input.json").write_text(json.dumps(record | {"world_to_scene": wrong}))
        assert psnr(run, str(truth), tmp_path)[0] < value - 3


def test_a_crop_narrows_the_field_of_view_that_the_fit_was_told(scene: Scene, tmp_path: Path) -> None:
    wide = math.degrees(2 * math.atan(math.tan(math.radians(45 / 2)) * 32 / SIZE))
    truth = save_truth(tmp_path / "truth", film(scene, wide, TIMES, size=32), fovy=wide)
    cropped = dataclasses.replace(FRAME, crop=(4, 4, 24), source_size=(32, 32))
    camera = input_camera(FitConfig(camera=CameraConfig(fovy=wide)), cropped)
    assert camera.fovy_deg == pytest.approx(45.0) and camera.distance == pytest.approx(DISTANCE)
    recorded = camera.record() | {"crop": [4, 4, 24], "source_size": [32, 32]}
    assert psnr(save_run(tmp_path / "run", scene, **recorded), truth, tmp_path)[0] > 45


def test_a_centered_crop_is_cut_from_the_truth(scene: Scene, tmp_path: Path) -> None:
    wide = math.degrees(2 * math.atan(math.tan(math.radians(45 / 2)) * 32 / SIZE))
    truth = save_truth(tmp_path / "truth", film(scene, wide, TIMES, size=32), fovy=wide)
    crop = {"crop": [4, 4, 24], "source_size": [32, 32]}
    run = save_run(tmp_path / "run", scene, fovy_deg=45.0, distance=DISTANCE, **crop)
    value, report = psnr(run, truth, tmp_path)
    assert value > 45 and report["scene"]["size"] == [24, 24]
    assert any("the run's crop, 24 pixels at (4, 4)" in note for note in report["notes"])


@pytest.mark.parametrize(
    "recorded, message",
    [
        (
            {"fovy_deg": 30.0, "distance": 1.1},
            "field of view of 30 deg, the truth has 45.0 there .camera.fovy=45.. Fit the video with crop=frame",
        ),
        ({"crop": [8, 0, 16], "source_size": [24, 24]}, "percent of its side off the frame's middle"),
        ({"crop": [0, 0, 24], "source_size": [24, 36]}, "its video was 24 x 36, the truth is 24 x 24"),
        ({"fovy_deg": 45.0, "distance": 1.1, "elevation_deg": 20.0}, "fitted as seen from 20 deg.*camera.elevation=0"),
        ({"times": [0.3, 0.6]}, "fitted at none of the truth's times"),
        (
            {"fovy_deg": 45.0, "distance": 1.1, "elevation_deg": 0.0, "world_to_scene": world(0.5)},
            "seen from a distance of 2.2, the truth's front view stands at 1.1 .camera.distance=1.1.",
        ),
    ],
)
def test_what_cannot_be_made_up_for_is_refused(
    scene: Scene, tmp_path: Path, recorded: dict[str, Any], message: str
) -> None:
    truth = save_truth(tmp_path / "truth", film(scene, 45.0, TIMES))
    run = save_run(tmp_path / "run", scene, **recorded)
    with pytest.raises(UserError, match=message):
        psnr(run, truth, tmp_path)
    assert not (tmp_path / "out").exists()


def test_half_of_the_frames_are_drawn_at_their_own_times(scene: Scene, tmp_path: Path) -> None:
    """A fit of frames 0, 2, 4 of 6 spread over [0, 1]: the truth's frame 2 is the scene's time 1 / 2."""
    scene_times = torch.arange(6) / 4
    rgb = film(scene, 45.0, scene_times.clamp(max=1))
    truth = save_truth(tmp_path / "truth", rgb)
    recorded = {"frames": [0, 2, 4], "times": [0.0, 0.5, 1.0], "fovy_deg": 45.0, "distance": DISTANCE}
    value, report = psnr(save_run(tmp_path / "run", scene, **recorded), truth, tmp_path)
    assert value > 45 and report["scene"]["fitted"] == [True, False, True, False, True, False]
    between = report["scene"]["between_fitted_times"]
    assert between["frames"] == [1, 3, 5] and between["mean"]["psnr"] > 40
    assert any("3 of 6 times lie between the fitted ones" in note for note in report["notes"])
    curve = report["scene"]["per_frame"]["psnr"][1]  # of all frames in their order
    assert len(curve) == 6 and curve[1::2] == between["per_frame"]["psnr"][1]
    assert sum(curve[::2]) / 3 == pytest.approx(report["scene"]["per_view"]["psnr"][1])


def test_times_are_matched_by_number_where_the_truth_has_the_whole_video() -> None:
    pixels, times = torch.zeros(1, 4, 4, 8, 8, dtype=torch.uint8), torch.linspace(0, 1, 4)
    clip = Clip("c", pixels, orbit(torch.zeros(1)), 45.0, times, "", "", "")
    chosen = FitInput(frames=[0, 1, 2], times=[0.0, 0.5, 1.0])
    assert match_times(clip, chosen) == ([0, 0.5, 1, 1], [True, True, True, False])
    # a truth at twice the rate has all of the fit's times: its frame 1 is none of the fit's two
    times_of_two, known_of_two = match_times(clip, FitInput(frames=[0, 1], times=[0.0, 1.0]))
    assert known_of_two == [True, False, False, True] and times_of_two == pytest.approx([0, 1 / 3, 2 / 3, 1])
    # chosen of a video longer than the truth: the truth has other numbers, times decide
    found, known = match_times(clip, FitInput(frames=[0, 4, 8, 12], times=[0.0, 1 / 3, 2 / 3, 1.0]))
    assert known == [True] * 4 and found == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert match_times(clip, FitInput())[1] == [True] * 4
    assert frame_truth(Path("run"), clip, FitInput()).square == (0, 0, 8)


def test_a_damaged_record_is_named(scene: Scene, tmp_path: Path) -> None:
    truth = save_truth(tmp_path / "truth", film(scene, 45.0, TIMES))
    run = save_run(tmp_path / "run", scene, crop=[1, 2])
    with pytest.raises(UserError, match="input.json is damaged"):
        psnr(run, truth, tmp_path)


def test_an_unrecorded_crop_is_said(scene: Scene, tmp_path: Path) -> None:
    truth = save_truth(tmp_path / "truth", film(scene, 45.0, TIMES))
    save_scene(tmp_path / "run" / "scene", scene)
    (tmp_path / "run" / "config.yaml").write_text("settings: {video: a.mp4, crop: object}\n")
    _, report = psnr(str(tmp_path / "run"), truth, tmp_path)
    assert any("crop=object and does not record its square" in note for note in report["notes"])


def test_several_runs_and_their_clips_are_paired_by_name(scene: Scene, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_truth(tmp_path / "truth" / name, film(scene, 45.0, TIMES))
        save_run(tmp_path / "runs" / name, scene)
    evaluate(EvaluateConfig(str(tmp_path / "runs"), str(tmp_path / "truth"), device="cpu", protocol=PROTOCOL))
    report = json.loads((tmp_path / "runs" / "metrics.json").read_text())
    assert list(report["runs"]) == ["a", "b"] and report["num_objects"] == 2 and report["mean"]["psnr"] > 45
    (tmp_path / "runs" / "b").rename(tmp_path / "runs" / "c")
    with pytest.raises(UserError, match="lacks b; .* lacks c"):
        evaluate(EvaluateConfig(str(tmp_path / "runs"), str(tmp_path / "truth"), device="cpu", protocol=PROTOCOL))


def test_a_run_is_compared_at_the_protocols_views_and_frames(scene: Scene, tmp_path: Path) -> None:
    truth = save_truth(tmp_path / "truth", film(scene, 45.0, torch.linspace(0, 1, 3)))
    run = save_run(tmp_path / "run", scene)
    protocol = ProtocolConfig(metrics=["psnr"], views=["1"], frames=2)
    evaluate(EvaluateConfig(run, truth, str(tmp_path / "out"), "cpu", protocol=protocol))
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["scene"]["views"] == [1] and report["scene"]["frames"] == [0, 1]
    assert any("views 0 are no part" in note for note in report["notes"])
    for changes, message in (
        ({"views": ["1", "7"]}, "compares views 1, 7, here are 0, 1"),
        ({"frames": 9}, "3 frames"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(EvaluateConfig(run, truth, device="cpu", protocol=ProtocolConfig(metrics=["psnr"], **changes)))
    with pytest.raises(UserError, match="weights=nowhere: no such folder"):
        evaluate(EvaluateConfig(run, truth, device="cpu", weights="nowhere", protocol=PROTOCOL))


def test_a_scene_that_is_not_finite_is_named(scene: Scene, tmp_path: Path) -> None:
    truth = save_truth(tmp_path / "truth", film(scene, 45.0, TIMES))
    run = save_run(tmp_path / "run", scene)
    from safetensors.torch import load_file, save_file

    path = next((tmp_path / "run" / "scene").glob("diffusion_pytorch_model.safetensors"))
    save_file({key: value * math.nan for key, value in load_file(path).items()}, path)
    with pytest.raises(UserError, match="numbers that are NaN or infinite"):
        psnr(run, truth, tmp_path)


# ---- Frechet distances of a table -----------------------------------------------------------------------------------


def rows(num_clips: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    return [
        Row(
            f"o{n}",
            "0",
            VideoResult({}, {"psnr": 20.0}, (torch.randn(1, 400, generator=generator), torch.zeros(1, 400))),
        )
        for n in range(num_clips)
    ]


def test_a_set_of_one_is_refused_unless_the_protocol_names_a_formula() -> None:
    protocol = ProtocolConfig(metrics=["psnr", "fvd"], fvd="set")
    with pytest.raises(UserError, match="of one clip is not defined.*protocol.fvd=mean_only"):
        summarize(rows(1), protocol, {})
    named = summarize(rows(1), ProtocolConfig(metrics=["fvd"], fvd="set", fvd_of_one="mean_only"), {})
    assert "fvd [mean_only]" in named["mean"] and "fvd [set]" not in named["mean"]
    several = summarize(rows(3), protocol, {})
    assert "fvd [set]" in several["mean"] and any("3 clips a side" in note for note in several["notes"])
