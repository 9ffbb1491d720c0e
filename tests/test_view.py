"""The verb `view`: its loop with a page that records its messages, and a running fit."""

import math
import threading
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scene.shapes import ball_scene
from scene.test_pictures import small_scene

from fourdiffusion import view as verb
from fourdiffusion.cameras import FOVY_DEG, orbit, rays
from fourdiffusion.errors import UserError
from fourdiffusion.files import save_tensors
from fourdiffusion.media.read import video_frames
from fourdiffusion.scene.frames import occupancy_at, render_frame, show
from fourdiffusion.scene.live import load_newest
from fourdiffusion.scene.paths import read_path
from fourdiffusion.scene.renderer import render_image
from fourdiffusion.scene.scene import load_scene, save_scene
from fourdiffusion.settings import ViewConfig

pytestmark = pytest.mark.slow

TIMES = torch.linspace(0, 1, 3)
CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_scene(tmp_path / "run" / "scene", small_scene())
    save_tensors(tmp_path / "run" / "input.safetensors", {"rgba": torch.rand(3, 4, 8, 8), "times": TIMES}, {})
    return tmp_path / "run"


def checkpoint(run: Path, seed: int, step: int) -> None:
    """The files of a running fit."""
    scene = small_scene(seed)
    tensors = {f"scene.{name}": value for name, value in scene.field.state_dict().items()}
    tensors |= {f"occupancy.{name}": value for name, value in scene.occupancy.state_dict().items()}
    save_tensors(run / "checkpoint.safetensors", tensors | {"optimizer.0.step": torch.ones(1)}, {"step": step})
    settings = {"field": yaml.safe_load((run / "field.json").read_text()), "renderer": vars(scene.renderer)}
    (run / "config.yaml").write_text(yaml.safe_dump({"settings": {"scene": settings}}))


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """The folder of a fit that has saved a checkpoint and no scene yet."""
    folder = tmp_path / "running"
    folder.mkdir()
    (folder / "field.json").write_text(yaml.safe_dump(asdict(small_scene().field.config)))
    checkpoint(folder, 1, 20)
    return folder


def session(run: Path) -> verb.Session:
    config = ViewConfig(str(run), size=48, device="cpu")
    return verb.Session(run, config, *load_newest(run, CPU), CPU)


class Page:
    """A browser at azimuth 90 and the values of the page's widgets."""

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []
        self.camera = SimpleNamespace(
            update_timestamp=1.0, wxyz=np.array([0.0, 0.0, math.sqrt(0.5), -math.sqrt(0.5)]),
            position=np.array([0.0, 1.1, 0.0]), fov=math.radians(FOVY_DEG), aspect=1.5,
        )  # fmt: skip
        self.scene = SimpleNamespace(set_background_image=lambda pixels, **_: self.shown.append(pixels))

    def flush(self) -> None:
        pass


def controls(**values: Any) -> verb.Controls:
    chosen = {
        "moment": 0.5,
        "playing": False,
        "speed": "1",
        "channel": "rgb",
        "background": "black",
        "size": 48,
        "recording": False,
    } | values
    widgets: dict[str, Any] = {name: SimpleNamespace(value=value) for name, value in chosen.items()}
    return verb.Controls(**widgets, status=SimpleNamespace(content=""), image=SimpleNamespace(image=None))


def test_the_pose_of_the_browser_is_the_camera_of_the_renderer() -> None:
    page = Page()
    torch.testing.assert_close(verb.to_c2w(page.camera.wxyz, page.camera.position), orbit(90.0), atol=1e-6, rtol=0)
    tilted = orbit(200.0, 40.0)
    opencv = (tilted[:3, :3] * torch.tensor([1.0, -1.0, -1.0])).double()
    w = math.sqrt(float(1 + opencv.trace())) / 2
    wxyz = [w, *(float(opencv[i, j] - opencv[j, i]) / (4 * w) for i, j in ((2, 1), (0, 2), (1, 0)))]
    torch.testing.assert_close(verb.to_c2w(np.array(wxyz), tilted[:3, 3].numpy()), tilted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channel", ["rgb", "depth", "normal", "alpha"])
def test_a_resting_page_gets_the_renderers_picture_once(run: Path, channel: str) -> None:
    page, picture, widgets, scene = Page(), verb.Picture(), controls(channel=channel), session(run)
    assert verb.draw(page, picture, widgets, scene)  # something new: coarse or not
    assert not verb.draw(page, picture, widgets, scene)
    picture.changed -= 1
    assert verb.draw(page, picture, widgets, scene) and not verb.draw(page, picture, widgets, scene)
    frame = render_frame(load_scene(run), orbit(90.0), FOVY_DEG, 0.5, 48, 72, normals=True)
    expected = verb.to_pixels(show(frame, channel, torch.zeros(3))[None])[0]
    assert page.shown[-1].shape == (48, 72, 3)
    assert abs(page.shown[-1].astype(int) - expected).max() <= 2


def test_every_change_is_drawn_again(run: Path) -> None:
    page, picture, widgets, scene = Page(), verb.Picture(), controls(), session(run)
    verb.draw(page, picture, widgets, scene)
    widgets.moment.value = 1.0
    assert verb.draw(page, picture, widgets, scene)
    page.camera.position = np.array([0.0, 1.3, 0.0])
    assert verb.draw(page, picture, widgets, scene)
    scene.version += 1
    assert verb.draw(page, picture, widgets, scene)
    page.camera.update_timestamp = 0
    widgets.moment.value = 0.0
    assert not verb.draw(page, picture, widgets, scene)  # the browser has not said where it looks from


def test_scenes_stand_side_by_side_under_one_camera(run: Path, running: Path) -> None:
    page, picture, widgets, scene = Page(), verb.Picture(), controls(), session(run)
    scene.beside = [session(running)]
    assert scene.status() == "run: finished scene | running: fit at step 20"
    verb.draw(page, picture, widgets, scene)
    picture.changed -= 1
    verb.draw(page, picture, widgets, scene)
    assert page.shown[-1].shape == (48, 72, 3)
    for panel, half in ((scene, page.shown[-1][:, :36]), (scene.beside[0], page.shown[-1][:, 36:])):
        frame = render_frame(panel.scene, orbit(90.0), FOVY_DEG, 0.5, 48, 36)
        expected = verb.to_pixels(show(frame, "rgb", torch.zeros(3))[None])[0]
        assert abs(half.astype(int) - expected).max() <= 2
    assert not np.array_equal(page.shown[-1][:, :36], page.shown[-1][:, 36:])
    time.sleep(0.02)
    checkpoint(running, 2, 40)
    scene.beside[0].looked -= 10
    assert scene.reload() and "running: fit at step 40" in scene.status()
    assert verb.draw(page, picture, widgets, scene)


def test_a_recorded_camera_path_becomes_a_video_that_render_repeats(run: Path) -> None:
    page, widgets, scene, recorder = Page(), controls(recording=True), session(run), verb.Recorder()
    for azimuth, moment in ((90.0, 0.0), (80.0, 0.5), (70.0, 1.0)):
        widgets.moment.value = moment
        angle = math.radians(azimuth)
        page.camera.position = np.array([1.1 * math.cos(angle), 1.1 * math.sin(angle), 0.0])
        recorder.due = 0.0
        verb.record(recorder, [page], widgets, scene)
        verb.record(recorder, [page], widgets, scene)  # not due
    assert len(recorder.poses) == 3 and not (run / "render").exists()
    widgets.recording.value = False
    verb.record(recorder, [page], widgets, scene)
    path = read_path(run / "render" / "recorded_1.json")
    torch.testing.assert_close(path.c2w[0], orbit(90.0), atol=1e-5, rtol=0)
    assert path.times.tolist() == [0.0, 0.5, 1.0] and path.fps == verb.RECORD_FPS
    assert path.fovy_deg.tolist() == pytest.approx([FOVY_DEG] * 3) and not torch.equal(path.c2w[0], path.c2w[1])
    frames = [frame for frame in video_frames(run / "render" / "recorded_1.mp4", {0, 1, 2, 3}) if frame is not None]
    assert len(frames) == 3 and frames[0].shape[:2] == (48, 48)
    first = render_frame(scene.scene, orbit(90.0), FOVY_DEG, 0.0, 48, 48)
    expected = verb.to_pixels(show(first, "rgb", torch.zeros(3))[None])[0]
    assert abs(frames[0][..., :3].astype(int) - expected).mean() < 6  # of the compression
    assert "recorded_1.mp4" in widgets.status.content and not recorder.poses
    verb.record(recorder, [page], widgets, scene)
    assert not (run / "render" / "recorded_2.json").exists()


def test_the_height_adapts_to_the_time_a_picture_takes() -> None:
    assert verb.adapted_height(128, 0.6, 0.15, 512) == 64
    assert verb.adapted_height(128, 0.15, 0.15, 512) == 128
    assert verb.adapted_height(128, 0.001, 0.15, 512) == 256
    assert verb.adapted_height(32, 9.0, 0.15, 512) == 32 and verb.adapted_height(400, 0.001, 0.15, 512) == 512
    height = 256
    for _ in range(10):  # a machine that renders 100 000 pixels a second
        height = verb.adapted_height(height, height**2 / 1e5, 0.15, 512)
    assert height == pytest.approx(math.sqrt(0.15e5), abs=8)


def test_play_steps_through_the_frames_at_the_speed(run: Path) -> None:
    widgets, scene = controls(moment=0.0, speed="2"), session(run)
    scene.images = np.stack([np.full((4, 4, 3), value, dtype=np.uint8) for value in (10, 20, 30)])
    verb.play(widgets, scene)
    assert widgets.moment.value == 0.0 and widgets.image.image[0, 0, 0] == 10  # does not play
    widgets.playing.value = True
    verb.play(widgets, scene)
    assert widgets.moment.value == 0.0  # not due yet
    for expected, gray in ((0.5, 20), (1.0, 30), (0.0, 10)):
        widgets.clock -= 1 / 15  # a frame at 8 frames a second and speed 2 lasts 1/16 s
        verb.play(widgets, scene)
        assert widgets.moment.value == expected and widgets.image.image[0, 0, 0] == gray


def test_a_running_fit_is_shown_and_followed(running: Path) -> None:
    scene = session(running)
    assert scene.status() == "fit at step 20" and scene.images is None and len(scene.times) == 8
    expected = small_scene(1)
    x, t = torch.rand(50, 3) - 0.5, torch.rand(50)
    torch.testing.assert_close(scene.scene.field.density(x, t), expected.field.density(x, t))
    assert torch.equal(scene.scene.occupancy.occupied, expected.occupancy.occupied)
    time.sleep(0.02)
    checkpoint(running, 2, 40)
    scene.looked = time.monotonic()
    assert not scene.reload()  # looked a moment ago
    scene.looked -= 10
    assert scene.reload() and scene.status() == "fit at step 40" and scene.version == 1
    torch.testing.assert_close(scene.scene.field.density(x, t), small_scene(2).field.density(x, t))
    scene.looked -= 10
    assert not scene.reload()
    time.sleep(0.02)
    save_scene(running / "scene", small_scene(3))
    scene.looked -= 10
    assert scene.reload() and scene.status() == "finished scene"


def test_a_checkpoint_that_is_none_is_named(running: Path) -> None:
    (running / "config.yaml").write_text("settings: {scene: {field: {}, renderer: {}}}")
    with pytest.raises(UserError, match="do not hold a fit's scene"):
        load_newest(running)
    (running / "checkpoint.safetensors").unlink()
    with pytest.raises(UserError, match="holds no scene"):
        load_newest(running)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene": "nowhere"}, "nowhere: no such folder"),
        ({"port": 0}, "port=0"),
        ({"port": 70000}, "port=70000"),
        ({"size": 4}, "size=4"),
        ({"fps": 0.0}, "fps=0.0 must be positive"),
        ({"output": "a.html"}, "only for html=true"),
        ({"output": "a.txt", "html": True}, "ends in .html"),
        ({"host": "no such host"}, "host=no such host"),
    ],
)
def test_wrong_settings_are_named(run: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        verb.view(ViewConfig(**({"scene": str(run), "device": "cpu"} | change)))


def test_the_lines_that_say_where() -> None:
    lines = verb._addresses("127.0.0.1", 8080)
    assert lines[0].startswith("viewer: http://127.0.0.1:8080") and "ssh -N -L 8080:127.0.0.1:8080 " in lines[1]
    assert len(verb._addresses("0.0.0.0", 8080)) == 1


def test_html(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb.view(ViewConfig(str(run), html=True, device="cpu"))
    assert (run / "export" / "scene.html").is_file() and "written:" in capsys.readouterr().out


def test_the_server_answers_and_stops(run: Path) -> None:
    viser = pytest.importorskip("viser")
    server = viser.ViserServer(host="127.0.0.1", port=18765, verbose=False)
    stop = threading.Event()
    thread = threading.Thread(target=verb.serve, args=(server, session(run), stop))
    thread.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}", timeout=20) as answer:
            assert answer.status == 200
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join(20)
        server.stop()
    assert not thread.is_alive()


def test_frames_hold_depth_along_the_axis_and_normals_toward_the_camera(run: Path) -> None:
    scene, c2w = load_scene(run), orbit(30.0, 10.0)
    frame = render_frame(scene, c2w, FOVY_DEG, 0.0, 16, 24, normals=True)
    assert {name: list(value.shape) for name, value in frame.items()} == {
        "rgb": [3, 16, 24], "alpha": [1, 16, 24], "depth": [1, 16, 24], "normal": [3, 16, 24],
    }  # fmt: skip
    solid = frame["alpha"][0] > 0.95
    origins, directions = rays(c2w, FOVY_DEG, 16, 24)
    z = -directions @ c2w[:3, 2]
    _, _, distance = render_image(
        scene.field, scene.occupancy, origins, directions, torch.zeros(()), torch.ones(3), scene.renderer
    )
    torch.testing.assert_close(frame["depth"][0], distance[0] * z)
    points = origins + directions * (frame["depth"][0] / z)[..., None]
    assert solid.sum() > 20 and (points[solid].norm(dim=-1) < 0.7).all()
    assert ((frame["normal"] * directions.movedim(-1, 0)).sum(0)[solid] < 0).float().mean() > 0.8
    white = show(frame, "rgb", torch.ones(3))
    torch.testing.assert_close(white, frame["rgb"] * frame["alpha"] + 1 - frame["alpha"])
    with pytest.raises(ValueError, match="channel=heat"):
        show(frame, "heat", torch.ones(3))


def test_the_grid_of_one_time_skips_what_is_elsewhere_then_and_changes_no_picture() -> None:
    scene = ball_scene(torch.linspace(0, 1, 5))  # a ball that rises by 0.3
    c2w, everywhere = orbit(40.0, 10.0), int(scene.occupancy.occupied.sum()) * 4**3
    grids = [occupancy_at(scene, moment) for moment in (0.0, 1.0)]
    for moment, grid in zip((0.0, 1.0), grids, strict=True):
        full = render_frame(scene, c2w, FOVY_DEG, moment, 48, 48)
        fast = render_frame(scene, c2w, FOVY_DEG, moment, 48, 48, occupancy=grid)
        assert all(float((full[name] - fast[name]).abs().max()) < 0.02 for name in full)
        assert full["alpha"].max() > 0.9
        assert int(grid.occupied.sum()) < 0.7 * everywhere
    wrong = render_frame(scene, c2w, FOVY_DEG, 1.0, 48, 48, occupancy=grids[0])
    assert float((wrong["alpha"] - render_frame(scene, c2w, FOVY_DEG, 1.0, 48, 48)["alpha"]).abs().max()) > 0.5


def test_a_new_checkpoint_forgets_the_grids_of_the_old_scene(running: Path) -> None:
    scene = session(running)
    old = scene.grid_at(0.5)
    assert scene.grid_at(0.5) is old
    checkpoint(running, 2, 40)
    scene.looked -= 2
    assert scene.reload() and scene.grid_at(0.5) is not old
