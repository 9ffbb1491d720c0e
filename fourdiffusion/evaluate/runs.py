"""Compare a run of this project with a clip: the same cameras, the same times, the same framing, or a refusal.

A run records what its video showed, see fit_input.py. A scene's world is the truth's, scaled as the run says; where it
does not, so that the object has the size that the fit's camera saw.

Letters: V views, F frames, S the side of a square picture in pixels.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.cameras import azimuth_deg, find, orbit, orthogonal_azimuths, rays, turn
from fourdiffusion.datasets.clips import Clip, list_clips, read_clip
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.collection import read_motion
from fourdiffusion.evaluate.fit_input import FitInput, read_input
from fourdiffusion.media.crop import resample
from fourdiffusion.scene.renderer import render_image
from fourdiffusion.scene.scene import Scene, load_scene

SAME_VIEW_DEG = 2.0
FOVY_TOLERANCE_DEG = 1.5  # the perspective of a field of view that is off by more is not made up for by scaling
PER_FRAME = ("rgb", "alpha", "truth", "depth", "truth_depth", "motion")  # [V, F, ...] of a Part
SAME_DISTANCE = 0.02  # relative, between the camera that a fit was told and the truth's front view
OFF_CENTER = 0.025  # of the crop's side: a crop further from the middle of the frame turns the camera


@dataclass
class Part:
    """One of the things that a run holds, beside the truth that belongs to it."""

    name: str  # scene | videos
    rgb: Tensor  # [V, F, 3, S, S] in [0, 1], on white
    alpha: Tensor | None  # [V, F, S, S]
    truth: np.ndarray  # uint8 [V, F, S, S, 4]
    views: list[int]  # of the truth
    frames: list[int]  # of the truth
    fitted: list[bool]  # [F] whether the run's video showed this frame
    roles: list[str]  # [V] input | generated | novel
    azimuths_deg: list[float]
    notes: list[str] = field(default_factory=list)
    depth: Tensor | None = None  # [V, F, S, S] of the prediction, distance along the ray in the truth's units
    truth_depth: Tensor | None = None  # the same of the truth, inf: no surface
    motion: Tensor | None = None  # [V, F, 2, S, S] of the truth, pixels to the next frame
    c2w: Tensor | None = None  # [V, 4, 4] of the truth
    fovy_deg: float = 0.0
    caption: str = ""

    def of_frames(self, count: int) -> "Part":
        """Return the first frames of every view."""
        kept = {name: value[:, :count] for name in PER_FRAME if (value := getattr(self, name)) is not None}
        return dataclasses.replace(self, **kept, frames=self.frames[:count], fitted=self.fitted[:count])

    def of_views(self, chosen: list[int]) -> "Part":
        """Return some of the views, by their positions."""
        names = (*PER_FRAME, "c2w")
        kept: dict[str, Any] = {name: value[chosen] for name in names if (value := getattr(self, name)) is not None}
        kept |= {name: [getattr(self, name)[n] for n in chosen] for name in ("views", "roles", "azimuths_deg")}
        return dataclasses.replace(self, **kept)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a scene or a clip of this project."""
    clip = (folder / "transforms.json").is_file() or any(folder.glob("*/transforms.json"))
    return clip or (folder / "scene").is_dir()


def compare_run(folder: Path, truth_folder: Path, device: torch.device) -> tuple[list[Part], list[str]]:
    """Return a run's scene and generated videos beside their truth, and lines about what is left out.

    UserError where nothing can be compared.
    """
    truth, fit = read_clip(truth_folder), read_input(folder)
    notes: list[str] = []
    if fit.turn_deg:
        truth = dataclasses.replace(truth, c2w=turn(truth.c2w, fit.turn_deg))
        notes.append(f"azimuths count from the input's camera, {-fit.turn_deg:g} degrees in the truth's world")
    if fit.unrecorded_crop:
        notes.append(
            f"{folder} was made with crop=object and does not record its square: prediction and truth may be framed "
            "differently; make it again, or with crop=frame"
        )
    generated, motion = _generated_clip(folder), read_motion(truth_folder)
    parts: list[Part] = []
    refused: list[tuple[str, UserError]] = []
    makers: list[tuple[str, Callable[[], Part]]] = []
    if (folder / "scene").is_dir():
        scene = load_scene(folder, device)
        makers.append(("scene", lambda: _scene_part(folder, scene, generated, truth, fit, motion)))
    if generated is not None:
        makers.append(("generated videos", lambda: _videos_part(folder, generated, truth, fit, motion)))
    if not makers:
        raise UserError(f"prediction={folder}: holds neither a scene (scene/) nor a clip (transforms.json)")
    for name, make in makers:
        try:
            parts.append(make())
        except UserError as error:
            refused.append((name, error))
    if not parts:
        raise refused[0][1]
    notes += [f"the {name} {'is' if name == 'scene' else 'are'} left out: {error}" for name, error in refused]
    return parts, notes


def view_roles(c2w: Tensor, generated_c2w: Tensor, input_c2w: Tensor | None = None) -> list[str]:
    """Return what each view [V, 4, 4] is: "input" (as the given camera, or azimuth 0, elevation 0), "generated" (one of
    [N, 4, 4]) or "novel"."""
    front = orbit(0.0) if input_c2w is None else input_c2w
    roles = []
    for camera in c2w:
        if _angle_deg(camera, front) < SAME_VIEW_DEG:
            roles.append("input")
        elif any(_angle_deg(camera, other) < SAME_VIEW_DEG for other in generated_c2w):
            roles.append("generated")
        else:
            roles.append("novel")
    return roles


# ---- framing --------------------------------------------------------------------------------------------------------


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
            distance = _distance(truth.c2w) if front is None else _distance(truth.c2w[front : front + 1])
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
    fronts = [number for number, azimuth in enumerate(_azimuths(truth.c2w)) if _front(azimuth)]
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
        told, found = fit.distance / fit.scale, _distance(truth.c2w[front : front + 1])
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


def _distance(c2w: Tensor) -> float:
    return float(c2w[:, :3, 3].norm(dim=-1).median())


def _cut(rgba: Tensor, square: tuple[int, int, int], size: int) -> np.ndarray:
    """Cut a square from pictures, uint8 [V, F, 4, H, W] -> uint8 [V, F, S, S, 4]."""
    height, width = rgba.shape[-2:]
    pixels = rgba.permute(0, 1, 3, 4, 2).contiguous().numpy()
    if square == (0, 0, height) == (0, 0, width) and size == height:
        return pixels
    cut = torch.stack([resample(view, [square] * len(view), size) for view in pixels])
    return (cut * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous().numpy()


# ---- times ----------------------------------------------------------------------------------------------------------


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


# ---- parts ----------------------------------------------------------------------------------------------------------


def _scene_part(
    folder: Path, scene: Scene, generated: Clip | None, truth: Clip, fit: FitInput, motion: Tensor | None
) -> Part:
    """The scene as the truth's cameras see it at the truth's times."""
    framing = frame_truth(folder, truth, fit)
    times, fitted = match_times(truth, fit)
    if not any(fitted):
        raise UserError(
            f"{folder} was fitted at none of the truth's times ({[round(time, 3) for time in truth.times.tolist()]}): "
            "give the truth of its frames, or fit again with all of them"
        )
    notes = list(framing.notes)
    if not all(fitted):
        notes.append(
            f"{fitted.count(False)} of {len(fitted)} times lie between the fitted ones: the scene has seen nothing "
            "there, and they are averaged apart"
        )
    if fit.fitted_views is not None:
        notes.append(f"views {fit.fitted_views} of the clip that was fitted were seen by the fit")
    num_views, num_frames = truth.rgba.shape[:2]
    size = framing.square[2]
    c2w = truth.c2w.clone()
    scale = framing.scale * fit.scale
    c2w[:, :3, 3] = (c2w[:, :3, 3] - torch.tensor(fit.center)) * scale
    rgb, alpha, depth = _render(scene, c2w, framing.fovy_deg, times, size)
    uncut = framing.square == (0, 0, truth.rgba.shape[-2])
    return Part(
        name="scene",
        rgb=rgb,
        alpha=alpha,
        truth=_cut(truth.rgba, framing.square, size),
        views=list(range(num_views)),
        frames=list(range(num_frames)),
        fitted=fitted,
        roles=view_roles(truth.c2w, _generated_cameras(generated), _input_camera(fit)),
        azimuths_deg=_azimuths(truth.c2w),
        notes=notes,
        depth=(depth / scale).where(alpha > 0.5, torch.tensor(math.inf)) if uncut else None,
        truth_depth=truth.depth if uncut else None,
        motion=motion if uncut else None,
        c2w=truth.c2w,
        fovy_deg=framing.fovy_deg,
        caption=truth.caption,
    )


@torch.no_grad()
def _render(scene: Scene, c2w: Tensor, fovy_deg: float, times: list[float], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cameras [V, 4, 4] at every time -> rgb [V, F, 3, S, S] on white, alpha and ray distances [V, F, S, S]."""
    device, pictures = scene.occupancy.density.device, []
    white = torch.ones(3, device=device)
    jobs = [(camera, time) for camera in c2w for time in times]
    for camera, time in tqdm(jobs, desc="render", leave=False):
        origins, directions = (value.to(device) for value in rays(camera, fovy_deg, size, size))
        moment = torch.tensor(time, device=device)
        parts = render_image(
            scene.field, scene.occupancy, origins, directions, moment, white, scene.renderer, scene.field.density
        )
        pictures.append(torch.cat(parts).cpu())
    rgb, alpha, depth = torch.stack(pictures).unflatten(0, (len(c2w), len(times))).split([3, 1, 1], dim=2)
    return rgb.clamp(0, 1), alpha[:, :, 0].clamp(0, 1), depth[:, :, 0]


def _videos_part(folder: Path, generated: Clip, truth: Clip, fit: FitInput, motion: Tensor | None) -> Part:
    """The generated videos beside the truth's views that stand where they do."""
    frames = list(range(truth.rgba.shape[1]))
    num_frames = generated.rgba.shape[1]
    if fit.frames is not None and len(fit.frames) == num_frames < len(frames) and max(fit.frames) < len(frames):
        frames = fit.frames
    notes: list[str] = []
    square = (0, 0, truth.rgba.shape[-2])
    if fit.crop is not None:
        framing = frame_truth(folder, truth, FitInput(crop=fit.crop, source_size=fit.source_size))
        square, notes = framing.square, framing.notes
    uncut = square == (0, 0, truth.rgba.shape[-2])
    sizes = [("frames a view", num_frames, len(frames))]
    if uncut:
        sizes += [("pixels high", generated.rgba.shape[-2], truth.rgba.shape[-2])]
        sizes += [("pixels wide", generated.rgba.shape[-1], truth.rgba.shape[-1])]
    for name, predicted, expected in sizes:
        if predicted != expected:
            raise UserError(
                f"{folder} is {predicted} {name}, the truth {expected}: make both with the same size and frames"
            )
    if len(frames) == truth.rgba.shape[1] and not torch.allclose(generated.times, truth.times, atol=1e-3):
        raise UserError(f"{folder} shows times {generated.times.tolist()}, the truth {truth.times.tolist()}")
    if uncut and abs(generated.fovy_deg - truth.fovy_deg) > 0.1:
        raise UserError(f"{folder} has a field of view of {generated.fovy_deg:g} deg, the truth {truth.fovy_deg:g}")
    placed, farther = truth, _distance(truth.c2w) / _distance(generated.c2w)
    if fit.distance is not None and abs(farther - 1) > 1e-3:
        notes.append(f"the truth's cameras stand {farther:.4g} times as far: taken as a world so much larger")
        placed = dataclasses.replace(truth, c2w=_as_far_as(generated.c2w, truth.c2w))
    views = _paired_views(folder, generated, placed)
    pixels = generated.rgba.float() / 255
    alpha = pixels[:, :, 3]
    white = pixels[:, :, :3] * alpha[:, :, None] + 1 - alpha[:, :, None]
    return Part(
        name="videos",
        rgb=white,
        alpha=None if bool((generated.rgba[:, :, 3] == 255).all()) else alpha,
        truth=_cut(truth.rgba[views][:, frames], square, generated.rgba.shape[-1]),
        views=views,
        frames=frames,
        fitted=[True] * len(frames),
        roles=view_roles(truth.c2w[views], generated.c2w, _input_camera(fit)),
        azimuths_deg=_azimuths(truth.c2w[views]),
        notes=notes,
        truth_depth=truth.depth[views][:, frames] if uncut and truth.depth is not None else None,
        motion=motion[views][:, frames]
        if uncut and motion is not None and len(frames) == truth.rgba.shape[1]
        else None,
        c2w=truth.c2w[views],
        fovy_deg=truth.fovy_deg,
        caption=truth.caption,
    )


def _as_far_as(generated: Tensor, c2w: Tensor) -> Tensor:
    """Return cameras [V, 4, 4] at the generated ones' distance: a larger world seen from further away looks alike."""
    scaled = c2w.clone()
    scaled[:, :3, 3] *= _distance(generated) / _distance(c2w)
    return scaled


def _paired_views(folder: Path, prediction: Clip, truth: Clip) -> list[int]:
    """Which view of the truth each view of the prediction is, [V]."""
    pairs = []
    for view, camera in enumerate(prediction.c2w):
        found = find(truth.c2w, camera)
        if found is None:
            raise UserError(
                f"{folder}: the truth has no camera where view {view} of the prediction stands "
                f"({[round(float(x), 3) for x in camera[:3, 3]]}): give a truth with the same cameras"
            )
        pairs.append(found)
    return pairs


def _generated_clip(folder: Path) -> Clip | None:
    """The clip that a folder is, or the only one that lies in it (a run of generate, or of fit, which begins so)."""
    if (folder / "transforms.json").is_file():
        return read_clip(folder)
    if not any(folder.glob("*/transforms.json")):
        return None
    clips = list_clips(folder)
    if len(clips) > 1:
        raise UserError(
            f"prediction={folder} holds {len(clips)} clips: give one of them, for example {clips[0]}, "
            "or a reference folder with clips of the same names"
        )
    return read_clip(clips[0])


def _generated_cameras(generated: Clip | None) -> Tensor:
    return orbit(orthogonal_azimuths(4)) if generated is None else generated.c2w


def _input_camera(fit: FitInput) -> Tensor:
    return orbit(0.0, fit.elevation_deg or 0.0)


def _azimuths(c2w: Tensor) -> list[float]:
    """Of cameras [V, 4, 4], in degrees, at least 0 and below 360."""
    return [round(float(azimuth) % 360, 2) % 360 for azimuth in azimuth_deg(c2w)]


def _elevations(c2w: Tensor) -> list[float]:
    """Of cameras [V, 4, 4] that look at the origin, in degrees."""
    position = c2w[:, :3, 3]
    return [math.degrees(math.asin(float(z))) for z in (position[:, 2] / position.norm(dim=-1)).clamp(-1, 1)]


def _front(azimuth: float) -> bool:
    return min(azimuth, 360 - azimuth) < SAME_VIEW_DEG


def _angle_deg(a: Tensor, b: Tensor) -> float:
    """Angle between the directions [4, 4] in which two cameras stand, seen from the origin."""
    return math.degrees(float(torch.cosine_similarity(a[:3, 3], b[:3, 3], dim=0).clamp(-1, 1).acos()))
