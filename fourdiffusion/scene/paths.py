"""Camera paths: a camera and a time for each picture.

Letters: N pictures.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourdiffusion.cameras import DISTANCE, FOVY_DEG, orbit
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.media.paths import printable

PATHS = ("still", "fixed", "orbit", "orbit_time", "bullet_time")
FPS = (0.1, 1000.0)  # of a file, both included
RUNNING = 0.5  # share of bullet time's pictures in which time advances


@dataclass
class CameraPath:
    """N cameras, each with a time."""

    c2w: Tensor  # [N, 4, 4]
    times: Tensor  # [N] in [0, 1]
    fovy_deg: Tensor  # [N]
    fps: float | None = None  # of the path's file


def camera_path(
    name: str,
    num_pictures: int,
    azimuth_deg: float = 0.0,
    elevation_deg: float = 0.0,
    time: float = 0.0,
    turns: float = 1.0,
    distance: float = DISTANCE,
) -> CameraPath:
    """Return one of the named paths.

    Args:
        name: still: one picture; fixed: static camera, time from 0 to 1; orbit: ``turns`` around the object at
            ``time``, without repeating the first picture; orbit_time: both at once; bullet_time: time advances to
            ``time``, stops for an orbit, and advances to 1.
        num_pictures: N, except for a still.
    """
    if name not in PATHS or num_pictures < 1:
        raise ValueError(f"a path is one of {', '.join(PATHS)} with at least one picture, got {name}, {num_pictures}")
    if name == "still":
        num_pictures = 1
    turning = torch.arange(num_pictures) / num_pictures
    running = torch.linspace(0, 1, num_pictures)
    standing = torch.zeros(num_pictures)
    if name == "bullet_time":
        turning, running = _bullet_time(num_pictures, time)
    elif name in ("still", "orbit"):
        running = torch.full((num_pictures,), float(time))
    if name in ("still", "fixed"):
        turning = standing
    azimuths = azimuth_deg + 360 * turns * turning
    return CameraPath(orbit(azimuths, elevation_deg, distance), running, torch.full((num_pictures,), FOVY_DEG))


def _bullet_time(num_pictures: int, time: float) -> tuple[Tensor, Tensor]:
    """Return the fraction of the orbit [N] and the times [N]."""
    running = max(round(num_pictures * RUNNING), 1)
    before = round(running * time)
    stopped = num_pictures - running
    turning = torch.cat(
        [torch.zeros(before), torch.arange(1, stopped + 1) / max(stopped, 1), torch.ones(running - before)]
    )
    times = torch.cat(
        [
            torch.linspace(0, time, before + 1)[:-1],
            torch.full((stopped,), float(time)),
            torch.linspace(time, 1, running - before + 1)[1:] if running > before else torch.zeros(0),
        ]
    )
    return turning, times


def read_path(file: Path) -> CameraPath:
    """Read cameras and times from a JSON file.

    Three formats: {"frames": [{"transform_matrix": 4 x 4, "time": 0..1}]}, as in a transforms.json ("fovy_deg" of a
    frame, or "camera_angle_y", in radians, of the file, if it differs from 45 degrees); {"frames": [{"azimuth_deg",
    "elevation_deg", "distance", "time", "fovy_deg"}]}; and nerfstudio's {"camera_path": [{"camera_to_world": 16
    numbers by rows, "fov": degrees, "render_time": 0..1}], "fps": 24}. Without times, time goes from 0 to 1.

    Raises:
        UserError: the file is missing or has another format.
    """
    content = read_json(file, f"give path={printable(file)} a JSON file of cameras")
    try:
        frames = content["camera_path"] if "camera_path" in content else content["frames"]
        angle = content.get("camera_angle_y")
        fovy_deg = FOVY_DEG if angle is None else float(torch.rad2deg(torch.tensor(angle)))
        poses = [_pose(frame) for frame in frames]
        fovs = [float(frame.get("fov", frame.get("fovy_deg", fovy_deg))) for frame in frames]
        times = [frame.get("render_time", frame.get("time")) for frame in frames]
        fps = None if content.get("fps") is None else float(content["fps"])
        running = torch.linspace(0, 1, len(frames)).tolist()
        moments = torch.tensor([float(run if time is None else time) for run, time in zip(running, times, strict=True)])
        path = CameraPath(torch.stack(poses), moments, torch.tensor(fovs), fps)
    except (OverflowError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"path={file} is not a camera path ({reason}): give frames with transform_matrix") from error
    if not path.c2w.isfinite().all() or not ((path.times >= 0) & (path.times <= 1)).all():
        raise UserError(f"path={file}: times must lie in [0, 1] and cameras be finite")
    if not ((path.fovy_deg > 0) & (path.fovy_deg < 180)).all():
        raise UserError(f"path={file}: fields of view must lie between 0 and 180 degrees")
    if path.fps is not None and not FPS[0] <= path.fps <= FPS[1]:
        raise UserError(f"path={file}: fps={path.fps:g}: give {FPS[0]} to {FPS[1]}")
    return path


def write_path(file: Path, path: CameraPath) -> None:
    """Write a path in the format of ``read_path``, with the cameras as matrices."""
    frames = [
        {"transform_matrix": c2w, "time": time, "fovy_deg": fovy_deg}
        for c2w, time, fovy_deg in zip(path.c2w.tolist(), path.times.tolist(), path.fovy_deg.tolist(), strict=True)
    ]
    text = json.dumps({"fps": path.fps, "frames": frames}) + "\n"
    write_atomic(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def _pose(frame: dict[str, Any]) -> Tensor:
    """Return the camera-to-world matrix [4, 4] of a frame of a file."""
    values = frame.get("camera_to_world", frame.get("transform_matrix"))
    if values is None:
        return orbit(
            float(frame["azimuth_deg"]), float(frame.get("elevation_deg", 0.0)), float(frame.get("distance", DISTANCE))
        )
    pose = torch.tensor(values, dtype=torch.float32).reshape(4, 4)
    turn = pose[:3, :3]
    if not torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-3) or torch.linalg.det(turn) < 0:
        raise ValueError("a matrix scales, shears or mirrors")
    return pose


def nearest_times(times: Tensor, known: Tensor) -> Tensor:
    """Return for each time [N] the nearest known time [F]."""
    return known[(times[:, None] - known).abs().argmin(dim=1)]
