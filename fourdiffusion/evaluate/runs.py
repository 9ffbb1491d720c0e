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

from fourdiffusion.cameras import find, orbit, orthogonal_azimuths, rays, turn
from fourdiffusion.datasets.clips import Clip, list_clips, read_clip
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.baselines import base_model_videos, static_scenes
from fourdiffusion.evaluate.collection import read_motion
from fourdiffusion.evaluate.fit_input import FitInput, read_input
from fourdiffusion.evaluate.framing import SAME_VIEW_DEG, azimuths_of, cut, distance_of, frame_truth, match_times
from fourdiffusion.scene.renderer import render_image
from fourdiffusion.scene.scene import Scene, load_scene

PER_FRAME = ("rgb", "alpha", "truth", "depth", "truth_depth", "motion")  # [V, F, ...] of a Part


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
    seen_c2w: Tensor | None = None  # [V, 4, 4] the same in the scene's world
    times: list[float] | None = None  # [F] of the scene
    fovy_deg: float = 0.0
    caption: str = ""
    baselines: dict[str, Tensor] = field(default_factory=dict)  # {name: [V, F, 3, S, S] in [0, 1]}, like rgb

    def of_frames(self, count: int) -> "Part":
        """Return the first frames of every view."""
        kept = {name: value[:, :count] for name in PER_FRAME if (value := getattr(self, name)) is not None}
        others = {name: value[:, :count] for name, value in self.baselines.items()}
        return dataclasses.replace(
            self, **kept, baselines=others, frames=self.frames[:count], fitted=self.fitted[:count]
        )

    def of_views(self, chosen: list[int]) -> "Part":
        """Return some of the views, by their positions."""
        names = (*PER_FRAME, "c2w", "seen_c2w")
        kept: dict[str, Any] = {name: value[chosen] for name in names if (value := getattr(self, name)) is not None}
        kept |= {name: [getattr(self, name)[n] for n in chosen] for name in ("views", "roles", "azimuths_deg")}
        return dataclasses.replace(self, **kept, baselines={name: x[chosen] for name, x in self.baselines.items()})


def is_run(folder: Path) -> bool:
    """Whether a folder holds a scene or a clip of this project."""
    clip = (folder / "transforms.json").is_file() or any(folder.glob("*/transforms.json"))
    return clip or (folder / "scene").is_dir()


def compare_run(
    folder: Path, truth_folder: Path, device: torch.device, baselines: list[str] | None = None, steps: int = 1
) -> tuple[list[Part], list[str]]:
    """Return a run's scene and generated videos beside their truth, and lines about what is left out.

    Args:
        baselines: names of settings.BASELINES that are made too. steps: of a static scene.

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
    for part in parts:
        _add_baselines(part, folder, generated, baselines or [], steps, device, notes)
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
        truth=cut(truth.rgba, framing.square, size),
        views=list(range(num_views)),
        frames=list(range(num_frames)),
        fitted=fitted,
        roles=view_roles(truth.c2w, _generated_cameras(generated), _input_camera(fit)),
        azimuths_deg=azimuths_of(truth.c2w),
        notes=notes,
        depth=(depth / scale).where(alpha > 0.5, torch.tensor(math.inf)) if uncut else None,
        truth_depth=truth.depth if uncut else None,
        motion=motion if uncut else None,
        c2w=truth.c2w,
        seen_c2w=c2w,
        times=times,
        fovy_deg=framing.fovy_deg,
        caption=truth.caption,
    )


def _add_baselines(
    part: Part,
    folder: Path,
    generated: Clip | None,
    names: list[str],
    steps: int,
    device: torch.device,
    notes: list[str],
) -> None:
    """Make the baselines that a part can have: videos those of the base model, a scene static scenes."""
    name = {"videos": "base_model", "scene": "static_scene"}[part.name]
    if name not in names:
        return
    try:
        if generated is None:
            raise UserError(f"{folder} holds no generated videos")
        if name == "base_model":
            if "input" not in part.roles:
                raise UserError("the truth has no view where the input stood")
            front = torch.from_numpy(part.truth[part.roles.index("input")]).permute(0, 3, 1, 2).float() / 255
            images = front[:, :3] * front[:, 3:] + 1 - front[:, 3:]
            part.baselines[name] = base_model_videos(folder, images, generated, device)
        else:
            part.baselines[name] = _static_pictures(part, static_scenes(folder, generated, steps, device), generated)
    except UserError as error:
        notes.append(f"{part.name}: {name}: missing ({error})")


def _static_pictures(part: Part, scenes: list[Scene], generated: Clip) -> Tensor:
    """Return what the truth's cameras see of one static scene a frame, [V, F, 3, S, S]; between them the nearest."""
    assert part.seen_c2w is not None and part.times is not None
    nearest = [int((generated.times - time).abs().argmin()) for time in part.times]
    own = {
        n: _render(scenes[n], part.seen_c2w, part.fovy_deg, [0.0], part.rgb.shape[-1])[0] for n in sorted({*nearest})
    }
    return torch.cat([own[number] for number in nearest], dim=1)


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
    placed, farther = truth, distance_of(truth.c2w) / distance_of(generated.c2w)
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
        truth=cut(truth.rgba[views][:, frames], square, generated.rgba.shape[-1]),
        views=views,
        frames=frames,
        fitted=[True] * len(frames),
        roles=view_roles(truth.c2w[views], generated.c2w, _input_camera(fit)),
        azimuths_deg=azimuths_of(truth.c2w[views]),
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
    scaled[:, :3, 3] *= distance_of(generated) / distance_of(c2w)
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


def _angle_deg(a: Tensor, b: Tensor) -> float:
    """Angle between the directions [4, 4] in which two cameras stand, seen from the origin."""
    return math.degrees(float(torch.cosine_similarity(a[:3, 3], b[:3, 3], dim=0).clamp(-1, 1).acos()))
