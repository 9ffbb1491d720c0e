"""Verb `evaluate`: measures generated videos or a fitted scene against ground truth."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourdiffusion.cameras import azimuth_deg, find, orbit, orthogonal_azimuths
from fourdiffusion.datasets.clips import Clip, list_clips, read_clip
from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import contact_sheet, write_image
from fourdiffusion.metrics.lpips import Lpips, load_lpips
from fourdiffusion.metrics.video import copied_input, evaluate_views, group_means
from fourdiffusion.scene.scene import Scene, load_scene, render_views
from fourdiffusion.settings import EvaluateConfig

SAME_VIEW_DEG = 2.0


def evaluate(config: EvaluateConfig) -> None:
    """Writes metrics.json and sheets of truth over prediction, on white, for scene and videos; prints the means.

    Views are told apart: input (where the video was taken), generated (where the diffusion model made a video) and
    novel (seen by neither). The baseline shows the input view's frames at every view.
    """
    folder, truth = Path(config.prediction), read_clip(Path(config.truth))
    if not folder.is_dir():
        raise UserError(f"prediction={folder}: no such folder; give a run folder of fit or generate, or a clip folder")
    lpips = load_lpips(config.lpips)
    generated = _generated_clip(folder)
    parts: dict[str, tuple[Tensor, list[int]]] = {}  # what is compared: its pictures [V, F, 3, H, W], its truth's views
    if (folder / "scene").is_dir():
        scene = load_scene(folder, resolve_device(config.device))
        parts["scene"] = _render_like(scene, truth), list(range(len(truth.c2w)))
    if generated is not None:
        try:
            parts["videos"] = _on_white(generated), _paired_views(folder, generated, truth)
        except UserError as error:
            if "scene" not in parts:
                raise
            print(f"the generated videos are left out: {error}")
    if not parts:
        raise UserError(f"prediction={folder}: holds neither a scene (scene/) nor a clip (transforms.json)")

    output = Path(config.output) if config.output else folder
    generated_c2w = orbit(orthogonal_azimuths(4)) if generated is None else generated.c2w
    report: dict[str, Any] = {"prediction": str(folder), "truth": config.truth, "background": "white"}
    for name, (prediction, views) in parts.items():
        images, azimuths = _on_white(truth), _azimuths(truth.c2w[views])
        roles = view_roles(truth.c2w[views], generated_c2w)
        report[name] = {"views": views, "azimuth_deg": azimuths, "role": roles} | compare(
            prediction, images[views], roles, _input_video(images, truth.c2w), lpips
        )
        write_image(output / f"comparison_{name}.png", _comparison(prediction, images[views], azimuths, roles))
    write_atomic(output / "metrics.json", lambda path: path.write_text(json.dumps(report, indent=1) + "\n"))
    print(table({name: report[name] for name in parts}))
    print(f"written: {output / 'metrics.json'}, {', '.join(f'comparison_{name}.png' for name in parts)}")


def compare(
    prediction: Tensor, truth: Tensor, roles: list[str], input_video: Tensor | None, lpips: Lpips | None = None
) -> dict[str, Any]:
    """All measures of one comparison, ready for JSON.

    Args:
        prediction, truth: [V, F, 3, H, W] in [0, 1], on white.
        roles: what each view is, [V].
        input_video: [F, 3, H, W], what the baseline shows at every view; None if no view shows it.
        lpips: None leaves that measure out.
    """
    report: dict[str, Any] = {
        "size": list(truth.shape[-2:]),
        "num_frames": truth.shape[1],
        "baseline": None,
    }
    result = evaluate_views(prediction, truth, lpips)
    if input_video is not None:
        baseline = evaluate_views(copied_input(input_video, len(truth)), truth, lpips)
        report["baseline"] = {
            "what": "the input frame shown at every view",
            "mean_by_role": group_means(baseline, roles),
        } | baseline
    return report | {"mean_by_role": group_means(result, roles)} | result


def view_roles(c2w: Tensor, generated_c2w: Tensor) -> list[str]:
    """What each view [V, 4, 4] is: "input" (azimuth 0, elevation 0), "generated" (one of [N, 4, 4]) or "novel"."""
    roles = []
    for camera in c2w:
        if _angle_deg(camera, orbit(0.0)) < SAME_VIEW_DEG:
            roles.append("input")
        elif any(_angle_deg(camera, other) < SAME_VIEW_DEG for other in generated_c2w):
            roles.append("generated")
        else:
            roles.append("novel")
    return roles


def table(parts: dict[str, dict[str, Any]]) -> str:
    """The means of each part by role as lines of text, the baseline's in brackets."""
    measures = list(next(iter(parts.values()))["mean"])
    lines = ["".ljust(34) + "".join(f"{name:>18}" for name in measures)]
    for part, report in parts.items():
        baseline = report["baseline"]
        for role, means in report["mean_by_role"].items():
            cells = [f"{means[name]:.3f}" for name in measures]
            if baseline is not None:
                others = baseline["mean_by_role"][role]
                cells = [f"{cell} ({others[name]:.3f})" for cell, name in zip(cells, measures, strict=True)]
            count = report["role"].count(role)
            lines.append(f"{part}, {role} views ({count})".ljust(34) + "".join(f"{cell:>18}" for cell in cells))
    if any(report["baseline"] for report in parts.values()):
        lines.append("in brackets: the input frame shown at every view")
    return "\n".join(lines)


def _azimuths(c2w: Tensor) -> list[float]:
    """Of cameras [V, 4, 4], in degrees from 0 to 360."""
    return [round(float(azimuth) % 360, 2) for azimuth in azimuth_deg(c2w)]


def _generated_clip(folder: Path) -> Clip | None:
    """The clip that a folder is, or the only one that lies in it (a run of generate, or of fit, which begins so)."""
    if (folder / "transforms.json").is_file():
        return read_clip(folder)
    if not any(folder.glob("*/transforms.json")):
        return None
    clips = list_clips(folder)
    if len(clips) > 1:
        raise UserError(f"prediction={folder} holds {len(clips)} clips: give one of them, for example {clips[0]}")
    return read_clip(clips[0])


def _render_like(scene: Scene, truth: Clip) -> Tensor:
    """The scene as the truth's cameras see it at the truth's times, [V, F, 3, H, W]."""
    height, width = truth.rgba.shape[-2:]
    if height != width:
        raise UserError(f"the truth's pictures are {width} x {height}: a scene is compared on square ones")
    num_views, num_frames = truth.rgba.shape[:2]
    c2w, times = truth.c2w.repeat_interleave(num_frames, dim=0), truth.times.repeat(num_views)
    rgb, _ = render_views(scene, c2w, truth.fovy_deg, times, height, label="render")
    return rgb.unflatten(0, (num_views, num_frames))


def _paired_views(folder: Path, prediction: Clip, truth: Clip) -> list[int]:
    """Which view of the truth each view of the prediction is, [V]; UserError where the clips cannot be compared."""
    for name, ours, theirs in (
        ("frames a view", prediction.rgba.shape[1], truth.rgba.shape[1]),
        ("pixels high", prediction.rgba.shape[-2], truth.rgba.shape[-2]),
        ("pixels wide", prediction.rgba.shape[-1], truth.rgba.shape[-1]),
    ):
        if ours != theirs:
            raise UserError(f"{folder} is {ours} {name}, the truth {theirs}: make both with the same size and frames")
    if not torch.allclose(prediction.times, truth.times, atol=1e-3):
        raise UserError(f"{folder} shows times {prediction.times.tolist()}, the truth {truth.times.tolist()}")
    if abs(prediction.fovy_deg - truth.fovy_deg) > 0.1:
        raise UserError(f"{folder} has a field of view of {prediction.fovy_deg:g} deg, the truth {truth.fovy_deg:g}")
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


def _input_video(truth: Tensor, c2w: Tensor) -> Tensor | None:
    """The frames [F, 3, H, W] of the truth's view that stands where the input camera stands."""
    for view, camera in enumerate(c2w):
        if _angle_deg(camera, orbit(0.0)) < SAME_VIEW_DEG:
            return truth[view]
    print("the truth has no view at azimuth 0, elevation 0: the copied-input baseline is left out")
    return None


def _angle_deg(a: Tensor, b: Tensor) -> float:
    """Angle between the directions [4, 4] in which two cameras stand, seen from the origin."""
    return math.degrees(float(torch.cosine_similarity(a[:3, 3], b[:3, 3], dim=0).clamp(-1, 1).acos()))


def _on_white(clip: Clip) -> Tensor:
    return composite(clip.rgba.float() / 255)


def _comparison(prediction: Tensor, truth: Tensor, azimuths: list[float], roles: list[str]) -> Tensor:
    """Two rows of frames a view: the truth above, the prediction below."""
    columns = torch.linspace(0, truth.shape[1] - 1, min(truth.shape[1], 8)).round().long().unique()
    rows = torch.stack([truth[:, columns], prediction[:, columns]], dim=1).flatten(0, 1)
    labels = []
    for azimuth, role in zip(azimuths, roles, strict=True):
        labels += [f"{azimuth:g}\N{DEGREE SIGN} truth ({role})", "prediction"]
    return contact_sheet(rows, labels, [f"frame {int(i)}" for i in columns])
