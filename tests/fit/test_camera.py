"""The camera of the input: what it is by default, what the settings make of it, and where a fit uses it."""

import json
import math
from pathlib import Path

import pytest
import torch
from small_problem import TIMES, input_video, small_config, small_problem, truth
from tiny_model import FRAMES, tiny_clip, write_model
from tiny_verbs import tiny_fit, write_frames

from fourdiffusion import cameras
from fourdiffusion.api import fit_scene
from fourdiffusion.cli.config import from_values
from fourdiffusion.datasets.clips import write_clip
from fourdiffusion.errors import UserError
from fourdiffusion.fit.camera import InputCamera, check_camera, input_camera
from fourdiffusion.fit.settings import CameraConfig, FitConfig
from fourdiffusion.fit.setup import build_target, open_problem, read_inputs
from fourdiffusion.fit.step import draw_anchor, draw_input_pixels, draw_pixels, draw_side, plan_step
from fourdiffusion.media.read import VideoInput
from fourdiffusion.randomness import stream
from fourdiffusion.scene.pictures import recorded_camera

VIDEO = VideoInput(torch.zeros(2, 4, 8, 8), [0, 1], 2, (0, 0, 8), "file", source_size=(8, 8))


def given(**camera: object) -> InputCamera:
    return input_camera(FitConfig(camera=CameraConfig(**camera)), VIDEO)  # type: ignore[arg-type]


def test_without_settings_it_is_the_default_camera_exactly() -> None:
    camera = given()
    assert camera == InputCamera()
    assert camera.record() == {"fovy_deg": 45.0, "distance": 1.1, "elevation_deg": 0.0}
    assert torch.equal(camera.c2w, cameras.orbit(torch.zeros(1)))


@pytest.mark.parametrize("fovy", [20.0, 45.0, 90.0])
def test_it_sees_as_much_at_the_origin_as_the_default_camera(fovy: float) -> None:
    camera = given(fovy=fovy, distance=3.0, elevation=25.0)
    seen = camera.distance * math.tan(math.radians(camera.fovy_deg / 2))
    assert seen == pytest.approx(1.1 * math.tan(math.radians(22.5)))
    assert camera.fovy_deg == fovy and camera.elevation_deg == 25.0
    assert camera.world_to_scene == (0.0, pytest.approx(camera.distance / 3.0))


def test_a_file_gives_the_view_that_saw_the_video(tmp_path: Path) -> None:
    clip = tiny_clip(1)  # azimuths 70, 160, 250, 340, 0, 90, ...
    write_clip(tmp_path / "clip", clip)
    camera = given(file=str(tmp_path / "clip" / "transforms.json"))
    assert camera.fovy_deg == pytest.approx(45.0, abs=1e-3) and camera.elevation_deg == pytest.approx(0.0, abs=1e-3)
    assert camera.world_to_scene == (pytest.approx(0.0, abs=1e-3), pytest.approx(1.0, abs=1e-3))
    assert given(file=str(tmp_path / "clip"), view=1).world_to_scene == (
        pytest.approx(-160.0, abs=1e-3),
        pytest.approx(1.0, abs=1e-3),
    )
    with pytest.raises(UserError, match="camera.view=9: .* has the views 0 to 7"):
        given(file=str(tmp_path / "clip"), view=9)
    aside = clip.c2w.clone()
    aside[:, 2, 3] += 0.2  # looks past the origin
    clip.c2w = aside
    write_clip(tmp_path / "aside", clip)
    with pytest.raises(UserError, match="does not look at the origin upright"):
        given(file=str(tmp_path / "aside"))


@pytest.mark.parametrize(
    "camera, message",
    [
        ({"file": "a.json", "distance": 2.0}, "holds the camera: leave camera.distance out"),
        ({"view": 2}, "camera.view=2 is a view of a file"),
        ({"elevation": 86.0}, "reach beyond 90 degrees"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(camera: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_camera(FitConfig(camera=CameraConfig(**camera)))  # type: ignore[arg-type]


def test_the_inputs_rays_are_those_of_its_camera() -> None:
    """Of the input's own pixels, of the view that it stands in for, and of the anchor; SDS looks from as high."""
    problem = small_problem(small_config(elevation_max_deg=5.0))
    camera = InputCamera(30.0, 1.7, 20.0)
    c2w = cameras.orbit(cameras.orthogonal_azimuths(4), 20.0)
    fovy = torch.full((4,), cameras.FOVY_DEG)
    c2w[0], fovy[0] = camera.c2w[0], camera.fovy_deg
    views = truth(c2w, torch.arange(FRAMES)).transpose(0, 1).contiguous()
    problem.target = target = build_target(views[0], views, c2w, TIMES, 0, input_video(), camera, fovy)
    side = target.rgba.shape[-1]
    own = [value[0].reshape(-1, 3) for value in cameras.rays(camera.c2w, 30.0, side, side)]
    rays, _ = draw_input_pixels(target, 50, stream(0, 0, 0))
    assert all((own[1] - direction).norm(dim=1).min() < 1e-6 for direction in rays.directions)
    assert torch.allclose(rays.origins, own[0][:50])
    _, anchor = draw_anchor(target, side, stream(0, 0, 0))
    assert torch.allclose(anchor.directions, own[1], atol=1e-6)
    pixels, _, _ = draw_pixels(target, 200, stream(0, 0, 0))
    size = target.views.shape[-1]
    every = torch.stack([cameras.rays(c2w[v], fovy[v], size, size)[1] for v in range(4)]).reshape(-1, 3)
    assert all((every - direction).norm(dim=1).min() < 1e-6 for direction in pixels.directions)
    draws = [draw_side(problem, plan_step(problem.config, 0), stream(0, 0, number)) for number in range(8)]
    heights = torch.stack([draw.c2w[0, 2, 3] / 1.1 for draw in draws]).asin() * (180 / math.pi)
    assert 20 <= float(heights.min()) < float(heights.max()) <= 25


@pytest.mark.slow
def test_a_run_keeps_the_camera_that_it_was_told(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "frames")
    settings = tiny_fit(str(write_model(tmp_path / "model")))
    settings["loss"] |= {"lambda_input": 1.0, "input_rays": 32, "use_input_view": True}
    settings["camera"] = {"fovy": 30.0, "distance": 2.5, "elevation": 10.0}
    fit_scene(frames, tmp_path / "run", **settings)
    record = json.loads((tmp_path / "run" / "input.json").read_text())
    inside = 1.1 * math.tan(math.radians(22.5)) / math.tan(math.radians(15))
    assert record["fovy_deg"] == 30.0 and record["elevation_deg"] == 10.0
    assert record["distance"] == pytest.approx(inside) and record["world_to_scene"]["scale"] == pytest.approx(
        inside / 2.5
    )
    found = recorded_camera(tmp_path / "run")
    assert found is not None and found[1] == 30.0
    assert torch.allclose(found[0], cameras.orbit(torch.zeros(1), 10.0, inside))
    for stands_in in (True, False):
        settings["loss"]["use_input_view"] = stands_in
        output = tmp_path / f"views{stands_in}"
        config = from_values("fit", FitConfig, settings | {"video": frames, "output": output})
        target = open_problem(config, read_inputs(config)).target
        ring = cameras.orbit(cameras.orthogonal_azimuths(4), 10.0)
        first = found[0][0] if stands_in else ring[0]
        assert torch.allclose(target.c2w, torch.cat([first[None], ring[1:]]))
        assert target.fovy_deg.tolist() == [30.0 if stands_in else 45.0, 45.0, 45.0, 45.0]
    settings["loss"]["use_input_view"] = True
    with pytest.raises(UserError, match="holds a run with camera.distance=2.5, this one has camera.distance=2.0"):
        fit_scene(frames, tmp_path / "run", **settings | {"camera": {**settings["camera"], "distance": 2.0}})
