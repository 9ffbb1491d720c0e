"""Camera paths: where the camera stands at which time."""

import json
from pathlib import Path

import pytest
import torch

from fourdiffusion.cameras import azimuth_deg, orbit
from fourdiffusion.errors import UserError
from fourdiffusion.scene.paths import camera_path, nearest_times, read_path


def test_named_paths() -> None:
    still = camera_path("still", 9, 30.0, 10.0, 0.7)
    torch.testing.assert_close(still.c2w, orbit(torch.tensor([30.0]), 10.0))
    torch.testing.assert_close(still.times, torch.tensor([0.7]))
    fixed = camera_path("fixed", 3, 30.0)
    torch.testing.assert_close(fixed.c2w, orbit(torch.full((3,), 30.0)))
    assert fixed.times.tolist() == [0, 0.5, 1]
    around = camera_path("orbit", 4, -90.0, 0.0, 0.2, turns=1.0, distance=2.0)
    torch.testing.assert_close(around.c2w, orbit(torch.tensor([-90.0, 0.0, 90.0, 180.0]), 0.0, 2.0))
    torch.testing.assert_close(around.times, torch.full((4,), 0.2))
    both = camera_path("orbit_time", 3, turns=0.5)
    torch.testing.assert_close(both.c2w, orbit(torch.tensor([0.0, 60.0, 120.0])))
    assert both.times.tolist() == [0, 0.5, 1]
    with pytest.raises(ValueError, match="spiral"):
        camera_path("spiral", 3)


@pytest.mark.parametrize("time", [0.0, 0.25, 0.5, 1.0])
def test_bullet_time_turns_while_time_stands(time: float) -> None:
    path = camera_path("bullet_time", 16, 0.0, time=time)
    azimuths, times = azimuth_deg(path.c2w) % 360, path.times
    assert len(times) == 16 and times.min() >= 0 and times[-1] == (1.0 if time < 1 else time)
    assert (times.diff() >= 0).all()
    stopped = slice(round(8 * time), round(8 * time) + 8)
    assert (times[stopped] == time).all()
    expected = torch.tensor([45.0, 90, 135, 180, 225, 270, 315, 0])
    torch.testing.assert_close(azimuths[stopped].round() % 360, expected)
    others = torch.cat([azimuths[: stopped.start], azimuths[stopped.stop :]])
    assert ((others.round() % 360) == 0).all()
    assert (times[: stopped.start] < time).all() and (times[stopped.stop :] > time).all()


def write(folder: Path, content: object) -> Path:
    (folder / "path.json").write_text(json.dumps(content))
    return folder / "path.json"


def test_files_of_three_kinds(tmp_path: Path) -> None:
    matrices = orbit(torch.tensor([10.0, 50.0]), 5.0)
    expected = matrices
    ours = {"frames": [{"azimuth_deg": 10, "elevation_deg": 5, "time": 0.5, "fovy_deg": 30},
                       {"azimuth_deg": 50, "elevation_deg": 5, "time": 0.25}]}  # fmt: skip
    path = read_path(write(tmp_path, ours))
    torch.testing.assert_close(path.c2w, expected)
    assert path.times.tolist() == [0.5, 0.25] and path.fovy_deg.tolist() == [30, 45] and path.fps is None
    transforms = {"camera_angle_y": 1.0, "frames": [{"transform_matrix": m.tolist()} for m in matrices]}
    path = read_path(write(tmp_path, transforms))
    torch.testing.assert_close(path.c2w, expected)
    assert path.times.tolist() == [0, 1] and path.fovy_deg.tolist() == pytest.approx([57.29578] * 2)
    nerfstudio = {"fps": 24, "camera_path": [
        {"camera_to_world": m.flatten().tolist(), "fov": 60, "render_time": 0.5} for m in matrices]}  # fmt: skip
    path = read_path(write(tmp_path, nerfstudio))
    torch.testing.assert_close(path.c2w, expected)
    assert path.times.tolist() == [0.5, 0.5] and path.fovy_deg.tolist() == [60, 60] and path.fps == 24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frames": []}, "is not a camera path"),
        ([1, 2], "is not a camera path"),
        ({"frames": [{"time": 0.5}]}, "is not a camera path"),
        ({"frames": [{"transform_matrix": [[1, 0], [0, 1]]}]}, "is not a camera path"),
        ({"frames": [{"azimuth_deg": 0, "elevation_deg": 95}]}, "is not a camera path"),
        ({"frames": [{"azimuth_deg": 0, "time": 3}]}, r"times must lie in \[0, 1\]"),
        ({"frames": [{"azimuth_deg": 0, "fovy_deg": 200}]}, "fields of view"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_path(write(tmp_path, content))


def test_nearest_times() -> None:
    found = nearest_times(torch.tensor([0.0, 0.2, 0.3, 0.9]), torch.tensor([0.0, 0.5, 1.0]))
    assert found.tolist() == [0, 0, 0.5, 1]
