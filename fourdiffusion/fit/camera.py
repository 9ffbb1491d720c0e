"""The camera of the input video, in the scene's units.

A single video does not tell how large its world is. The scene's unit is chosen so that the input's camera sees at the
origin what the default camera sees there, as in the training data: half of the picture's height is 1.1 tan(22.5 deg).
A known distance therefore scales the world, a known field of view sets the distance in the scene, and the azimuth of a
camera from a file turns the world until the camera stands at azimuth 0.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourdiffusion.cameras import DISTANCE, FOVY_DEG, azimuth_deg, orbit
from fourdiffusion.datasets.clips import open_clip
from fourdiffusion.errors import UserError
from fourdiffusion.fit.settings import CameraConfig, FitConfig
from fourdiffusion.media.read import VideoInput

FRONT_DEG = 2.0  # a camera of a file within so many degrees of azimuth 0 is the input's
AIM_TOLERANCE_DEG = 2.0  # between the optical axis and the line to the origin, and between the camera's up and z


@dataclass(frozen=True)
class InputCamera:
    """Where the input was seen from, in the scene."""

    fovy_deg: float = FOVY_DEG  # of the square crop
    distance: float = DISTANCE  # from the origin, scene units
    elevation_deg: float = 0.0
    world_to_scene: tuple[float, float] | None = None  # degrees that the world is turned about z, and its scale

    @property
    def c2w(self) -> Tensor:
        """The camera-to-world matrix, [1, 4, 4]."""
        return orbit(torch.zeros(1), self.elevation_deg, self.distance)

    def record(self) -> dict[str, Any]:
        """Return what input.json keeps."""
        kept: dict[str, Any] = {
            "fovy_deg": self.fovy_deg, "distance": self.distance, "elevation_deg": self.elevation_deg
        }  # fmt: skip
        if self.world_to_scene is not None:
            turn, scale = self.world_to_scene
            kept["world_to_scene"] = {"center": [0.0, 0.0, 0.0], "scale": scale, "turn_deg": turn}
        return kept


def check_camera(config: FitConfig) -> None:
    """UserError for camera settings that exclude each other, or leave no room for the views of SDS."""
    camera = config.camera
    if camera.file is not None:
        given = [name for name in ("fovy", "distance", "elevation") if getattr(camera, name) is not None]
        if given:
            raise UserError(f"camera.file={camera.file} holds the camera: leave camera.{given[0]} out")
    elif camera.view is not None:
        raise UserError(f"camera.view={camera.view} is a view of a file: give camera.file too")
    _check_elevation(camera.elevation or 0.0, config.sds.elevation_max_deg)


def input_camera(config: FitConfig, video: VideoInput) -> InputCamera:
    """Return the camera of the input video. UserError where the camera file does not tell it."""
    camera, turn = config.camera, 0.0
    if camera.file is not None:
        camera, turn = _read_camera(camera)
        _check_elevation(camera.elevation or 0.0, config.sds.elevation_max_deg)
    fovy = FOVY_DEG if camera.fovy is None else _crop_fovy(camera.fovy, video)
    distance = DISTANCE
    if fovy != FOVY_DEG:
        distance *= math.tan(math.radians(FOVY_DEG) / 2) / math.tan(math.radians(fovy) / 2)
    world = None if camera.distance is None else (turn, distance / camera.distance)
    return InputCamera(fovy, distance, camera.elevation or 0.0, world)


def _crop_fovy(fovy: float, video: VideoInput) -> float:
    """Return the field of view in degrees of the square crop, from that of the whole frame."""
    side, height = video.crop[2], video.source_size[1]
    if side == height:
        return fovy
    return math.degrees(2 * math.atan(math.tan(math.radians(fovy) / 2) * side / height))


def _read_camera(given: CameraConfig) -> tuple[CameraConfig, float]:
    """Return the camera of the input's view in a file, and the degrees that turn it to azimuth 0."""
    clip = open_clip(Path(str(given.file)))
    azimuths = azimuth_deg(clip.c2w).tolist()
    view = given.view
    if view is None:
        fronts = [number for number, azimuth in enumerate(azimuths) if abs(azimuth) < FRONT_DEG]
        if len(azimuths) == 1:
            fronts = [0]
        if len(fronts) != 1:
            raise UserError(
                f"camera.file={given.file} has {len(fronts)} cameras at azimuth 0 among {len(azimuths)}: say which one "
                "saw the video, camera.view=NUMBER"
            )
        view = fronts[0]
    if view >= len(azimuths):
        raise UserError(f"camera.view={view}: {given.file} has the views 0 to {len(azimuths) - 1}")
    c2w = clip.c2w[view].double()
    position = c2w[:3, 3]
    distance = float(position.norm())
    if distance < 1e-3:
        raise UserError(f"camera.file={given.file}: view {view} stands at the origin: the object must be there")
    elevation = math.degrees(math.asin(max(-1.0, min(1.0, float(position[2]) / distance))))
    if abs(elevation) > 89:
        raise UserError(f"camera.file={given.file}: view {view} stands above the object: no side faces it")
    upright = orbit(azimuths[view], elevation, distance).double()
    off = max(math.degrees(math.acos(min(1.0, float(c2w[:3, k] @ upright[:3, k])))) for k in (1, 2))
    if off > AIM_TOLERANCE_DEG:
        raise UserError(
            f"camera.file={given.file}: view {view} does not look at the origin upright (off by {off:.3g} degrees): "
            "move the world so that the object stands at the origin with z up"
        )
    return CameraConfig(clip.fovy_deg, distance, elevation), -azimuths[view]


def _check_elevation(elevation: float, spread: float) -> None:
    if abs(elevation) + spread >= 90:
        raise UserError(
            f"camera.elevation={elevation:.4g} and sds.elevation_max_deg={spread:g} reach beyond 90 degrees: lower "
            "sds.elevation_max_deg"
        )
