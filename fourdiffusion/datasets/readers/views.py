"""Clips with one video or folder of frames per view, numbered at the end of its name.

The cameras are on a circle around the object and look at it. Their positions come from, in this order:

* ``cameras.json`` in the clip's folder: ``azimuths_deg`` (a list), ``elevation_deg`` (a number or a list),
  ``fovy_deg``, ``distance``, or ``c2w`` (4 x 4 matrices) and ``fovy_deg``; and, optional, ``times``, ``caption``,
  ``license``, ``author``, ``source``;
* the arguments;
* the layout: Consistent4D's four evaluation cameras; MV-Video's evenly spaced circle.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.pictures import PictureGrid, Place, VideoFrame, read_places
from fourdiffusion.datasets.transforms import load_json, read_text
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable
from fourdiffusion.media.picture import SUFFIXES, picture_size
from fourdiffusion.media.read import frame_times
from fourdiffusion.media.series import Source

VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
CAMERAS = "cameras.json"
CONSISTENT4D = ((-75.0, 15.0, 105.0, 195.0), 0.0, 49.1, 2.0)  # azimuths, elevation, fovy, distance of eval_0 .. eval_3
LAYOUTS = (
    "transforms.json, view_<k>.mp4, view_<k>/<frame>.png, eval_<k>/<frame>.png (Consistent4D) or "
    "<UID>/00/view_<k>.mp4 (MV-Video)"
)
Layout = Literal["consistent4d", "mv_video", "plain"]


@dataclass(frozen=True)
class SeparateViews:
    """The files of a clip's views, in the order of their numbers."""

    folder: Path
    layout: Layout
    numbers: list[int]  # [V]
    files: list[list[Path]]  # V rows: one video, or F pictures


def find_views(folder: Path) -> SeparateViews:
    """Return the numbered views in a folder; UserError if there are none, or several sets of them."""
    name = printable(folder)
    if not folder.is_dir():
        raise UserError(f"{name}: no such folder; give a clip: a folder with {LAYOUTS}")
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    videos = _numbered([p for p in entries if p.is_file() and p.suffix.lower() in VIDEOS])
    folders = _numbered([p for p in entries if p.is_dir() and _frames(p)])
    if not videos and not folders:
        animations = [p for p in entries if p.is_dir() and re.fullmatch(r"\d+", p.name)]
        if len(animations) == 1:  # MV-Video: <UID>/00
            return find_views(animations[0])
        if animations:
            shown = ", ".join(p.name for p in animations[:4])
            raise UserError(f"{name} holds {len(animations)} animations ({shown}): give one of these folders")
        raise UserError(f"{name} holds no views; a clip is a folder with {LAYOUTS}")
    if "eval_" in folders:
        folders = {"eval_": folders["eval_"]}
    sets = videos | folders
    if len(sets) > 1:
        shown = ", ".join(f"{len(found)} of {printable(key)}<k>" for key, found in sets.items())
        raise UserError(f"{name} holds several sets of views ({shown}): leave one of them in the folder")
    prefix, found = next(iter(sets.items()))
    numbers = sorted(found)
    layout: Layout = "plain"
    if prefix == "eval_" and folders:
        layout = "consistent4d"
    elif videos and re.fullmatch(r"\d\d", folder.name) and prefix == "view_":
        layout = "mv_video"
    return SeparateViews(folder, layout, numbers, [[found[k]] if videos else _frames(found[k]) for k in numbers])


def open_separate_views(
    views: SeparateViews,
    azimuths_deg: Sequence[float] | None,
    elevation_deg: float | None,
    fovy_deg: float | None,
    distance: float | None,
) -> ClipFiles:
    """Return the clip; None for a camera argument is the layout's, else 0, 45 degrees and 1.1."""
    pictures = _grid(views)
    known = _known_cameras(views)
    given = {
        "azimuths_deg": azimuths_deg,
        "elevation_deg": elevation_deg,
        "fovy_deg": fovy_deg,
        "distance": distance,
    }
    named = [key for key, value in given.items() if value is not None]
    file = views.folder / CAMERAS
    if named and file.is_file():
        raise UserError(f"{printable(file)} holds the cameras, and {', '.join(named)} given: leave one of them out")
    known |= {key: value for key, value in given.items() if value is not None}
    fovy = _number(views.folder, "fovy_deg", known.get("fovy_deg", cameras.FOVY_DEG), 0, 180)
    num_frames = pictures.shape[1]
    return ClipFiles(
        uid=views.folder.parent.name if views.layout == "mv_video" else views.folder.resolve().name,
        pictures=pictures,
        c2w=_cameras(views, known),
        fovy_deg=fovy,
        times=_times(views, known.get("times"), num_frames),
        caption=read_text(file, known, "caption"),
        license=read_text(file, known, "license") or "unknown",
        source=read_text(file, known, "source"),
        author=read_text(file, known, "author"),
        depths=None,
        depth_unit=0.0,
    )


# ---- pictures -------------------------------------------------------------------------------------------------------


def natural_order(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _numbered(paths: list[Path]) -> dict[str, dict[int, Path]]:
    """Return {prefix: {number: path}} of names that end in a number: view_3.mp4 is number 3 of "view_"."""
    found: dict[str, dict[int, Path]] = {}
    for path in paths:
        stem = path.stem if path.is_file() else path.name
        if match := re.fullmatch(r"(.*?)(\d+)", stem):
            views = found.setdefault(match[1], {})
            if int(match[2]) in views:
                raise UserError(f"{printable(path)} and {printable(views[int(match[2])].name)} are the same view twice")
            views[int(match[2])] = path
    return {prefix: views for prefix, views in found.items() if len(views) > 1}


def _frames(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    return sorted(files, key=lambda file: natural_order(file.stem))


def _grid(views: SeparateViews) -> PictureGrid:
    """Return the pictures; UserError if views differ in their number of frames."""
    rows: list[list[Place]] = []
    for number, files in zip(views.numbers, views.files, strict=True):
        row: list[Place] = list(files)
        if files[0].suffix.lower() in VIDEOS:
            count = len(frame_times(Source(printable(files[0]), files[0]), 24.0, None)[0])
            row = [VideoFrame(files[0], k) for k in range(count)]
        rows.append(row)
        if len(row) != len(rows[0]):
            raise UserError(
                f"{printable(views.folder)}: view {number} has {len(row)} frames, view {views.numbers[0]} has "
                f"{len(rows[0])}; the views of a clip have equal frames"
            )
    if not rows[0]:
        raise UserError(f"{printable(views.folder)}: its videos hold no frame")
    first = rows[0][0]
    if isinstance(first, Path):
        return PictureGrid(rows, picture_size(first))
    pixels = read_places([first])[0]
    return PictureGrid(rows, (pixels.shape[1], pixels.shape[0]))


# ---- cameras and times ----------------------------------------------------------------------------------------------


def _known_cameras(views: SeparateViews) -> dict[str, Any]:
    """Return the cameras given by files and layout, under the keys of cameras.json."""
    if (views.folder / CAMERAS).is_file():
        return load_json(views.folder / CAMERAS)
    if views.layout == "consistent4d":
        azimuths, elevation, fovy, distance = CONSISTENT4D
        known: dict[str, Any] = {"elevation_deg": elevation, "fovy_deg": fovy, "distance": distance}
        if views.numbers == list(range(len(azimuths))):
            known["azimuths_deg"] = list(azimuths)
        return known
    if views.layout == "mv_video":
        record = _mv_video_record(views.folder)
        start, count = record.pop("start"), len(views.numbers)
        return record | {"azimuths_deg": [start + k * 360 / count for k in range(count)]}
    return {}


def _mv_video_record(folder: Path) -> dict[str, Any]:
    """Return caption, elevation and first azimuth of an animation of MV-Video.

    They come from the list that its training code reads ({data_path: [...], text_prompt, angle: {elv, azi_start}}), a
    JSON file beside ``videos``; without it they are empty, 0 and 0. Cameras for a model are relative to the input view.
    """
    end = "/".join(folder.parts[-2:]) + "/"
    for parent in folder.resolve().parents[:3]:
        for file in sorted(parent.glob("*.json")):
            entry = _mv_video_list(file, file.stat().st_mtime_ns).get(end)
            if entry is None:
                continue
            angle = entry.get("angle") or {}
            if not all(_is_number(angle.get(key, 0)) for key in ("elv", "azi_start")):
                raise UserError(
                    f"{printable(file)}: angle of {end} is {printable(angle)[:80]}; give numbers of degrees"
                )
            text = entry.get("text_prompt", "")
            return {"caption": text, "elevation_deg": angle.get("elv", 0.0), "start": angle.get("azi_start", 0.0)}
    return {"start": 0.0}


@lru_cache(maxsize=4)
def _mv_video_list(file: Path, changed: int) -> dict[str, dict[str, Any]]:
    """Return {"UID/00/": entry} of such a JSON list, empty for other JSON."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        paths = entry.get("data_path") if isinstance(entry, dict) else None
        if isinstance(paths, list) and paths and isinstance(paths[0], str):
            found["/".join(Path(paths[0]).parts[-3:-1]) + "/"] = entry
    return found


def _cameras(views: SeparateViews, known: dict[str, Any]) -> Tensor:
    """Return cameras [V, 4, 4]; UserError if neither file, arguments nor layout define them."""
    name, count = printable(views.folder), len(views.numbers)
    if "c2w" in known:
        if "azimuths_deg" in known:
            raise UserError(f"{name}/{CAMERAS}: has c2w and azimuths_deg; leave one of them out")
        return _matrices(views, known["c2w"])
    if "azimuths_deg" not in known:
        shown = ", ".join(map(str, views.numbers[:9]))
        raise UserError(
            f"{name}: the positions of its {count} cameras (views {shown}) are unknown: give azimuths_deg, one per "
            f"view, or write them to {CAMERAS} in this folder"
        )
    azimuths = _numbers(views, "azimuths_deg", known["azimuths_deg"])
    elevation = known.get("elevation_deg", 0.0)
    elevations = _numbers(views, "elevation_deg", elevation if isinstance(elevation, list) else [elevation] * count)
    for value in elevations:
        _number(views.folder, "elevation_deg", value, -90, 90)
    distance = _number(views.folder, "distance", known.get("distance", cameras.DISTANCE), 0, 1e6)
    return cameras.orbit(torch.tensor(azimuths), torch.tensor(elevations), distance)


def _matrices(views: SeparateViews, rows: Any) -> Tensor:
    try:
        matrices = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{printable(views.folder)}/{CAMERAS}: c2w is not a list of 4 x 4 matrices") from error
    if matrices.shape != (len(views.numbers), 4, 4):
        raise UserError(
            f"{printable(views.folder)}/{CAMERAS}: c2w is {tuple(matrices.shape)}; give one 4 x 4 matrix for each of "
            f"the {len(views.numbers)} views"
        )
    rotation = matrices[:, :3, :3]
    near = (rotation @ rotation.mT - torch.eye(3)).abs().max() < 1e-3 and bool((torch.linalg.det(rotation) > 0).all())
    if not bool(matrices.isfinite().all()) or not near:
        raise UserError(
            f"{printable(views.folder)}/{CAMERAS}: a matrix of c2w is not a camera; give camera-to-world matrices with "
            "OpenGL axes (x right, y up, z back) without scale"
        )
    return matrices


def _numbers(views: SeparateViews, key: str, values: Any) -> list[float]:
    values = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    if len(values) != len(views.numbers):
        raise UserError(
            f"{printable(views.folder)}: {key} has {len(values)} values for {len(views.numbers)} views (numbers "
            f"{', '.join(map(str, views.numbers[:9]))}); give one a view"
        )
    return [_number(views.folder, key, value, -1e6, 1e6) for value in values]


def _number(folder: Path, key: str, value: Any, low: float, high: float) -> float:
    if not _is_number(value) or not low < value < high:
        raise UserError(
            f"{printable(folder)}: {key} is {printable(value)[:40]}; give a number above {low:g}, below {high:g}"
        )
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _times(views: SeparateViews, given: Any, num_frames: int) -> Tensor:
    """Return times [F] in [0, 1]; evenly spaced if the file has none."""
    if given is None:
        return torch.linspace(0, 1, num_frames) if num_frames > 1 else torch.zeros(1)
    if not isinstance(given, list) or len(given) != num_frames or not all(_is_number(time) for time in given):
        raise UserError(f"{printable(views.folder)}/{CAMERAS}: times is not a list of {num_frames} numbers")
    times = torch.tensor(given, dtype=torch.float32)
    if times.min() < 0 or times.max() > 1 or bool((times.diff() <= 0).any()):
        raise UserError(f"{printable(views.folder)}/{CAMERAS}: times must lie in [0, 1] and rise")
    return times
