"""What a run's video showed: input.json, and what older runs left of it.

{"crop": [left, top, side], "frames": [...], "times_s": [...], "times": [...], "fovy_deg", "distance", "elevation_deg",
"source_size": [w, h]}. ``fovy_deg`` is that of the square crop, ``times`` are the scene's, in [0, 1], ``distance`` is
in the scene's units. A fit that was told its camera's distance also has {"world_to_scene": {"center": [x, y, z],
"scale", "turn_deg"}}; one to multi-view video has that and {"views": [...]} in place of crop and camera.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fourdiffusion.errors import UserError
from fourdiffusion.scene.run_input import read_run_input


@dataclass
class FitInput:
    """What a run's video showed; None where the run did not record it."""

    crop: tuple[float, float, float] | None = None  # left, top, side in pixels of the source
    source_size: tuple[float, float] | None = None  # width, height
    frames: list[int] | None = None  # numbers of the chosen frames in the source
    times: list[float] | None = None  # of the scene at those frames
    fovy_deg: float | None = None
    distance: float | None = None
    elevation_deg: float | None = None
    fitted_views: list[int] | None = None  # of a fit to multi-view video: numbers of the clip's views
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)  # the scene's world is (x - center) * scale of the clip's
    scale: float = 1.0
    turn_deg: float = 0.0  # the clip's world is turned about z by so much before that
    knows_world: bool = False  # whether the run says how the clip's world lies in the scene's
    unrecorded_crop: bool = False  # the run framed the object itself, and did not say how


def read_input(folder: Path) -> FitInput:
    """Return what a run's video showed, as far as the run says. UserError where input.json is damaged."""
    path = folder / "input.json"
    fit = FitInput()
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            world = content.get("world_to_scene") or {"center": [0, 0, 0], "scale": 1}
            fit = FitInput(
                crop=_numbers(content.get("crop"), 3),
                source_size=_numbers(content.get("source_size"), 2),
                frames=[int(number) for number in content["frames"]] if content.get("frames") else None,
                times=[float(number) for number in content["times"]] if content.get("times") else None,
                fovy_deg=_number(content.get("fovy_deg")),
                distance=_number(content.get("distance")),
                elevation_deg=_number(content.get("elevation_deg")),
                fitted_views=[int(number) for number in content["views"]] if content.get("views") else None,
                center=_numbers(world["center"], 3),
                scale=_numbers([world["scale"]], 1)[0],
                turn_deg=_numbers([world.get("turn_deg", 0.0)], 1)[0],
                knows_world=bool(content.get("world_to_scene")),
                unrecorded_crop=content.get("crop") is None and bool(content.get("crops")),  # it moved with the object
            )
        except (OSError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is damaged ({reason}): delete it, or run the fit again") from error
    if fit.times is None and (found := read_run_input(folder)) is not None:
        fit.times = found[1].tolist()
    if fit.crop is None and _setting(folder, "crop") in ("object", "follow"):
        fit.unrecorded_crop = True
    return fit


def _numbers(values: Any, count: int) -> Any:
    if values is None:
        return None
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{values} are not {count} numbers")
    return numbers


def _number(value: Any) -> float | None:
    return None if value is None else _numbers([value], 1)[0]


def _setting(folder: Path, name: str) -> Any:
    """A setting of the run in config.yaml, at its top or one group below; None where there is none."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["settings"]
        groups = [settings, *(value for value in settings.values() if isinstance(value, dict))]
        return next((group[name] for group in groups if name in group), None)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return None
