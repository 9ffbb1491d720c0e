"""How a run's video and a truth are brought to one frame and one time line, or why they cannot be.

Letters: V views, F frames, S the side of a square picture in pixels.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.cameras import azimuth_deg
from fourdiffusion.datasets.clips import Clip
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.fit_input import FitInput
from fourdiffusion.media.crop import resample

SAME_VIEW_DEG = 2.0
FOVY_TOLERANCE_DEG = 1.5  # the perspective of a field of view that is off by more is not made up for by scaling
SAME_DISTANCE = 0.02  # relative, between the camera that a fit was told and the truth's front view
OFF_CENTER = 0.025  # of the crop's side: a crop further from the middle of the frame turns the camera


@dataclass
class Framing:
    """How the truth is brought to the frame of the fit."""

    square: tuple[int, int, int]  # left, top, side of the truth's pictures that are compared
    fovy_deg: float  # of the truth's cameras over that square
    scale: float  # of the scene's units over the truth's
    notes: list[str]


def frame_truth(folder: Path, truth: Clip, fit: FitInput) -> Framing:
    """Return how a fit's frame is found in the truth's pictures. UserError where it cannot be, with the two ways on."""
    height, width = truth.rgba.shape[-2:]
    notes: list[str] = []
    square, off = (0, 0, height), 0.0
    if fit.crop is not None:
        source_width, source_height = fit.source_size or (width, height)
        if abs(source_width / source_height - width / height) > 0.01:
            raise _refusal(
                folder, f"its video was {source_width:g} x {source_height:g}, the truth is {width} x {height}"
            )
        left, top, side = (value * width / source_width for value in fit.crop)
        off = max(abs(left + side / 2 - width / 2), abs(top + side / 2 - height / 2)) / side
        square = (round(left), round(top), max(1, round(side)))
    elif height != width:
        raise UserError(f"the truth's pictures are {width} x {height}: a run is compared on square ones")
    if off > OFF_CENTER:
        raise _refusal(folder, f"its crop stands {100 * off:.0f} percent of its side off the frame's middle")
    front = _check_front(folder, truth, fit)
    fovy = math.degrees(2 * math.atan(math.tan(math.radians(truth.fovy_deg) / 2) * square[2] / height))
    scale = 1.0
    if fit.fovy_deg is not None and fit.distance is not None:
        if abs(fovy - fit.fovy_deg) > FOVY_TOLERANCE_DEG:
            raise _refusal(
                folder,
                f"it was fitted with a field of view of {fit.fovy_deg:.4g} deg, the truth has {fovy:.1f} there "
                f"(camera.fovy={truth.fovy_deg:.4g})",
            )
        if not fit.knows_world:
            seen = fit.distance * math.tan(math.radians(fit.fovy_deg) / 2)
            distance = distance_of(truth.c2w) if front is None else distance_of(truth.c2w[front : front + 1])
            scale = seen / (distance * math.tan(math.radians(fovy) / 2))
        if abs(scale - 1) > 1e-3:
            notes.append(f"the scene is {scale:.4g} times the truth's size (distance {fit.distance:g}): scaled back")
    if square != (0, 0, height):
        notes.append(f"the run's crop, {square[2]} pixels at ({square[0]}, {square[1]}), is cut from the truth too")
    return Framing(square, fovy, scale, notes)


def _check_front(folder: Path, truth: Clip, fit: FitInput) -> int | None:
    """Return which view of the truth stands where the fit's camera stood, None where none does.

    UserError where a view at that azimuth has another elevation, or another distance than the fit was told.
    """
    fronts = [number for number, azimuth in enumerate(azimuths_of(truth.c2w)) if _front(azimuth)]
    if fit.elevation_deg is None or not fronts:
        return fronts[0] if fronts else None
    elevations = _elevations(truth.c2w)
    front = min(fronts, key=lambda number: abs(elevations[number] - fit.elevation_deg))  # type: ignore[operator]
    if abs(elevations[front] - fit.elevation_deg) > SAME_VIEW_DEG:
        other = elevations[front]
        raise _refusal(
            folder,
            f"it was fitted as seen from {fit.elevation_deg:g} deg, the truth's front view from {other:.3g} "
            f"(camera.elevation={other:.3g})",
        )
    if fit.knows_world and fit.distance is not None:
        told, found = fit.distance / fit.scale, distance_of(truth.c2w[front : front + 1])
        if abs(told / found - 1) > SAME_DISTANCE:
            raise _refusal(
                folder,
                f"it was fitted as seen from a distance of {told:.4g}, the truth's front view stands at {found:.4g} "
                f"(camera.distance={found:.4g})",
            )
    return front


def _refusal(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder} cannot be compared: {reason}. Fit the video with crop=frame and the camera that saw it "
        "(camera.file=REFERENCE/transforms.json), or give a reference seen through the fit's own camera"
    )


def distance_of(c2w: Tensor) -> float:
    return float(c2w[:, :3, 3].norm(dim=-1).median())


def cut(rgba: Tensor, square: tuple[int, int, int], size: int) -> np.ndarray:
    """Cut a square from pictures, uint8 [V, F, 4, H, W] -> uint8 [V, F, S, S, 4]."""
    height, width = rgba.shape[-2:]
    pixels = rgba.permute(0, 1, 3, 4, 2).contiguous().numpy()
    if square == (0, 0, height) == (0, 0, width) and size == height:
        return pixels
    cut = torch.stack([resample(view, [square] * len(view), size) for view in pixels])
    return (cut * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous().numpy()


def match_times(truth: Clip, fit: FitInput) -> tuple[list[float], list[bool]]:
    """Return the scene's time at each frame of the truth, and whether the fit saw it.

    Times decide where the truth has all of the fit's. Otherwise a fit that chose frames of a longer video is asked at
    those frames' own times, and time is linear between them.
    """
    times = [float(time) for time in truth.times]
    if fit.times is None:
        return times, [True] * len(times)
    same = all(min(abs(time - other) for other in times) < 1e-3 for time in fit.times)
    numbered = fit.frames is not None and len(fit.frames) == len(fit.times) > 1 and max(fit.frames) < len(times)
    if numbered and not same:
        assert fit.frames is not None
        scene = np.interp(range(len(times)), fit.frames, fit.times)
        inside = [fit.frames[0] <= number <= fit.frames[-1] for number in range(len(times))]
        known = [number in fit.frames for number in range(len(times))]
        if not all(inside):  # np.interp would hold the last time
            step = (fit.times[-1] - fit.times[0]) / (fit.frames[-1] - fit.frames[0])
            extended = [fit.times[0] + (number - fit.frames[0]) * step for number in range(len(times))]
            scene = np.where(inside, scene, np.clip(extended, 0, 1))
        return [float(time) for time in scene], known
    return times, [min(abs(time - other) for other in fit.times) < 1e-3 for time in times]


def azimuths_of(c2w: Tensor) -> list[float]:
    """Of cameras [V, 4, 4], in degrees, at least 0 and below 360."""
    return [round(float(azimuth) % 360, 2) % 360 for azimuth in azimuth_deg(c2w)]


def _elevations(c2w: Tensor) -> list[float]:
    """Of cameras [V, 4, 4] that look at the origin, in degrees."""
    position = c2w[:, :3, 3]
    return [math.degrees(math.asin(float(z))) for z in (position[:, 2] / position.norm(dim=-1)).clamp(-1, 1)]


def _front(azimuth: float) -> bool:
    return min(azimuth, 360 - azimuth) < SAME_VIEW_DEG
