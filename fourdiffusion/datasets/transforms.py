"""Read transforms.json as written by this project, nerfstudio, instant-ngp, D-NeRF and Blender.

A clip has V static cameras that share one centered pinhole, each with a picture at F common times. Every key of these
formats that changes a camera is either supported or an error that names it; redundant keys must agree. One error lists
all missing keys. Files outside the file's folder are opened only if that is allowed.
"""

import json
import math
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.datasets.pictures import MaskedPicture, Place
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable, require_file, user_path
from fourdiffusion.media.picture import MAX_PIXELS, SUFFIXES, picture_size

MAX_BYTES = 2**26  # of transforms.json
TOLERANCE = 1e-3  # relative, between redundant keys; of the picture's side, for the principal point
ROTATION_TOLERANCE = 1e-3  # of R R^T against the identity
MAX_DISTANCE = 1e6  # of a camera from the origin, in scene units
# These are pinholes if the distortion is 0, which every file must have.
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "OPENCV", "FULL_OPENCV", "SIMPLE_RADIAL", "RADIAL")
FOCAL_KEYS = ("camera_angle_x", "fl_x", "camera_angle_y", "fl_y")
# These must be 0, false, or lists of zeros.
DISTORTION_KEYS = (
    *(f"k{i}" for i in range(1, 7)),
    *("p1", "p2", "s1", "s2", "s3", "s4", "skew", "distortion_params", "rolling_shutter"),
    *("is_fisheye", "equirectangular", "latlong", "orthographic"),
    *(f"ftheta_p{i}" for i in range(5)),
    *("transform_matrix_start", "transform_matrix_end"),
)
INTRINSICS = (*FOCAL_KEYS, "cx", "cy", "w", "h", "camera_model", *DISTORTION_KEYS)


@dataclass(frozen=True)
class Transforms:
    """The checked content of a transforms.json."""

    path: Path
    pictures: list[list[Place]]  # V rows of F
    depths: list[list[Path]] | None  # likewise, if every entry names one
    depth_unit: float  # scene units per step of the depth files
    c2w: Tensor  # float32 [V, 4, 4], camera-to-world, OpenGL axes
    times: Tensor  # float32 [F] in [0, 1], rising
    fovy_deg: float
    size: tuple[int, int]  # width, height
    caption: str
    license: str
    source: str
    author: str


class _Inside:
    """What lies in a folder, links followed; the folders of its pictures are resolved once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.parents: dict[Path, Path] = {}

    def __contains__(self, path: Path) -> bool:
        try:
            if path.is_symlink() or path.name == "..":
                return path.resolve().is_relative_to(self.folder)
            parent = self.parents.get(path.parent) or path.parent.resolve()
        except (OSError, RuntimeError):  # symlink loops
            return False
        self.parents[path.parent] = parent
        return parent.is_relative_to(self.folder)


def read_transforms(path: Path, allow_outside: bool = False) -> Transforms:
    """Read a transforms.json; ``allow_outside`` permits paths outside its folder. UserError names key and remedy."""
    return parse_transforms(path, load_json(path), allow_outside)


def parse_transforms(path: Path, meta: dict[str, Any], allow_outside: bool = False) -> Transforms:
    """Check the content of a transforms.json with paths relative to the folder of ``path``."""
    entries = meta.get("frames")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{printable(path)}: 'frames' is not a list of at least one object; write the clip again")
    _ask_for_missing(path, meta, entries)
    grid = _grid(path, entries)
    inside = None if allow_outside else _Inside(path.parent)
    files = [[_picture(path, entry, "file_path", inside) for entry in row] for row in grid]
    size = _size(path, meta, grid[0][0], files[0][0])
    pictures: list[list[Place]] = [list(row) for row in files]
    if any("mask_path" in entry for entry in entries):  # nerfstudio's alpha
        masks = [[_mask(path, entry, inside) for entry in row] for row in grid]
        pictures = [
            [MaskedPicture(*pair) for pair in zip(*rows, strict=True)] for rows in zip(files, masks, strict=True)
        ]
    depths, unit = None, 0.0
    if all("depth_file_path" in entry for entry in entries):
        depths = [[_picture(path, entry, "depth_file_path", inside) for entry in row] for row in grid]
        unit = _number(path, meta, "depth_unit")
        if not 0 < unit <= 1:
            raise UserError(f"{printable(path)}: 'depth_unit' is {unit:g}; give scene units a step, in (0, 1]")
    return Transforms(
        path=path,
        pictures=pictures,
        depths=depths,
        depth_unit=unit,
        c2w=_cameras(path, grid),
        times=_times(path, grid),
        fovy_deg=_fovy_deg(path, meta, grid, size),
        size=size,
        caption=read_text(path, meta, "caption"),
        license=read_text(path, meta, "license") or read_text(path, meta, "licence") or "unknown",
        source=read_text(path, meta, "source"),
        author=read_text(path, meta, "author"),
    )


def load_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of bounded size and depth; UserError for other files."""
    name = printable(path)
    require_file(path, "a clip folder holds transforms.json (was the copy complete?)")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{name}: has {path.stat().st_size} bytes, at most {MAX_BYTES} are read; split the clip")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise UserError(f"{name}: is nested too deeply; write the clip again") from error
    except ValueError as error:  # of JSON, of UTF-8, and of integers with thousands of digits
        raise UserError(f"{name}: not valid JSON ({printable(error)[:200]}); write the clip again") from error
    if not isinstance(meta, dict):
        raise UserError(f"{name}: holds a {type(meta).__name__}, not an object; write the clip again")
    return meta


def read_text(path: Path, meta: dict[str, Any], key: str) -> str:
    """Return the text under a key, empty if missing; control characters become spaces."""
    value = meta.get(key, "")
    if not isinstance(value, str):
        raise UserError(f"{printable(path)}: '{key}' is {_show(value)}; give a text")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError(f"{printable(path)}: '{key}' is {_show(value)}, which holds half of a character; give a text")
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in value)


# ---- required keys --------------------------------------------------------------------------------------------------


def _ask_for_missing(path: Path, meta: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """Raise one UserError that lists all missing keys."""
    needed = ["file_path", "transform_matrix", "time"]
    if any(key in entry for entry in entries for key in ("view", "frame")):
        needed += ["view", "frame"]
    found = []
    if not any(key in place for place in (meta, *entries) for key in FOCAL_KEYS):
        found.append("'camera_angle_x' (or 'fl_x')")
    if "depth_unit" not in meta and all("depth_file_path" in entry for entry in entries):
        found.append("'depth_unit' (scene units a step of the depth files)")
    for key in needed:
        lacking = [k for k, entry in enumerate(entries) if key not in entry]
        if len(lacking) == 1:
            found.append(f"'{key}' in frames[{lacking[0]}]")
        elif lacking:
            found.append(f"'{key}' in {len(lacking)} of {len(entries)} frames")
    if found:
        raise UserError(f"{printable(path)}: missing: {', '.join(found)}; add what is missing or write the clip again")


def _grid(path: Path, entries: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the frame entries as a full grid of V rows of F entries."""
    for k, entry in enumerate(entries):
        _number(path, entry, "time", f" in frames[{k}]")
        entry["transform_matrix"] = _matrix(path, entry["transform_matrix"], f"frames[{k}]")
    if "view" not in entries[0]:
        return _grid_of_cameras_and_times(path, entries)
    placed: dict[tuple[int, int], dict[str, Any]] = {}
    for k, entry in enumerate(entries):
        spot = (_index(path, entry, "view", k), _index(path, entry, "frame", k))
        if spot in placed:
            raise UserError(f"{printable(path)}: view {spot[0]} frame {spot[1]} appears twice; number every frame once")
        placed[spot] = entry
    views, frames = 1 + max(v for v, _ in placed), 1 + max(f for _, f in placed)
    for number in range(min(views * frames, len(entries) + 1)):
        v, f = divmod(number, frames)
        if (v, f) not in placed:
            raise UserError(
                f"{printable(path)}: view {v} frame {f} is missing from the {views} x {frames} grid; "
                "views need equal frames"
            )
    return [[placed[v, f] for f in range(frames)] for v in range(views)]


def _grid_of_cameras_and_times(path: Path, entries: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the grid of a file without view and frame numbers: a view is a camera, a frame is a time."""
    placed: dict[tuple[Any, float], dict[str, Any]] = {}
    views: dict[Any, int] = {}
    for entry in entries:
        camera = tuple(round(value, 6) for row in entry["transform_matrix"] for value in row)
        views.setdefault(camera, len(views))
        placed[camera, round(float(entry["time"]), 6)] = entry
    times = sorted({time for _, time in placed})
    if len(placed) != len(entries) or len(placed) != len(views) * len(times):
        raise UserError(
            f"{printable(path)}: its {len(entries)} pictures are of {len(views)} cameras at {len(times)} times; a clip "
            "needs exactly one picture of each static camera at each time (keys 'view' and 'frame' number them)"
        )
    return [[placed[camera, time] for time in times] for camera in views]


def _index(path: Path, entry: dict[str, Any], key: str, k: int) -> int:
    value = _number(path, entry, key, f" in frames[{k}]")
    if value != int(value):
        raise UserError(f"{printable(path)}: '{key}' is {_show(value)} in frames[{k}]; give a whole number")
    if value < 0:
        raise UserError(f"{printable(path)}: '{key}' is negative in frames[{k}]; views and frames are numbered from 0")
    return int(value)


def _number(path: Path, mapping: dict[str, Any], key: str, where: str = "") -> float:
    value = mapping[key]
    if not _is_number(value):
        raise UserError(f"{printable(path)}: '{key}' is {_show(value)}{where}; give a finite number")
    return float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e30  # also false for NaN; integers beyond the range of floats come here, too


def _show(value: Any) -> str:
    """Format a value for a message: short, on one line, without control characters."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of very many digits"
    return printable(repr(value))[:80]


# ---- cameras and times ----------------------------------------------------------------------------------------------


def _matrix(path: Path, rows: Any, where: str) -> list[list[float]]:
    """Return a camera-to-world matrix: 4 x 4 numbers, a proper rotation, last row 0 0 0 1."""
    name = f"{printable(path)}: transform_matrix of {where}"
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows) or not rows:
        raise UserError(f"{name} is not a matrix of numbers")
    if len(rows) != 4 or any(len(row) != 4 for row in rows):
        raise UserError(f"{name} is not 4 x 4")
    if not all(_is_number(value) for row in rows for value in row):
        raise UserError(f"{name} is not finite: it holds something other than numbers; write the clip again")
    matrix = np.array(rows, np.float64)
    rotation = matrix[:3, :3]
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise UserError(f"{name} has the last row {_show(rows[3])}; that of a camera is 0 0 0 1")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE:
        raise UserError(f"{name} scales or shears: it has no valid rotation; divide each column by its length")
    if np.linalg.det(rotation) < 0:
        raise UserError(f"{name} mirrors (its determinant is -1); give right-handed OpenGL axes: x right, y up, z back")
    if np.abs(matrix[:3, 3]).max() > MAX_DISTANCE:
        raise UserError(f"{name} stands further than {MAX_DISTANCE:g} scene units from the origin; scale the scene")
    return rows


def _cameras(path: Path, grid: list[list[dict[str, Any]]]) -> Tensor:
    """Return the cameras [V, 4, 4]; the camera of a view must be static."""
    matrices = torch.tensor([[entry["transform_matrix"] for entry in row] for row in grid], dtype=torch.float32)
    moved = ((matrices - matrices[:, :1]).abs() > 1e-5).flatten(2).any(dim=2).nonzero()
    if len(moved):
        v, f = moved[0].tolist()
        raise UserError(
            f"{printable(path)}: the camera of view {v} moves at frame {f}; a clip has one static camera per view"
        )
    return matrices[:, 0].contiguous()


def _times(path: Path, grid: list[list[dict[str, Any]]]) -> Tensor:
    """Return the times [F] in [0, 1]; views must be simultaneous."""
    times = torch.tensor([float(entry["time"]) for entry in grid[0]])
    if not bool(((times >= 0) & (times <= 1)).all()) or bool((times.diff() <= 0).any()):
        shown = ", ".join(f"{time:g}" for time in times.tolist()[:8])
        raise UserError(f"{printable(path)}: the times of a view must lie in [0, 1] and rise, got {shown}")
    for v, row in enumerate(grid):
        for f, entry in enumerate(row):
            if abs(float(entry["time"]) - float(times[f])) > 1e-6:
                raise UserError(
                    f"{printable(path)}: time of view {v} frame {f} is not that of view 0; views are simultaneous"
                )
    return times


def _size(path: Path, meta: dict[str, Any], entry: dict[str, Any], picture: Path) -> tuple[int, int]:
    """Return width and height: w and h, else those of the first picture."""
    given = {key: place[key] for place in (meta, entry) for key in ("w", "h") if key in place}
    for key, value in given.items():
        if not _is_number(value) or value != int(value) or value < 1:
            raise UserError(f"{printable(path)}: '{key}' is {_show(value)}; w and h are the pictures' size in pixels")
    width, height = (0, 0) if len(given) == 2 else picture_size(picture)
    width, height = int(given.get("w", width)), int(given.get("h", height))
    if width * height > MAX_PIXELS:
        raise UserError(f"{printable(path)}: w x h is {width} x {height}; at most {MAX_PIXELS} pixels are read")
    return width, height


def _fovy_deg(path: Path, meta: dict[str, Any], grid: list[list[dict[str, Any]]], size: tuple[int, int]) -> float:
    """Return the vertical field of view shared by all cameras; keys of a frame override those of the file."""
    shared = {key: meta[key] for key in INTRINSICS if key in meta}
    known: dict[str, float] = {}
    for v, row in enumerate(grid):
        for f, entry in enumerate(row):
            intrinsics = shared | {key: entry[key] for key in INTRINSICS if key in entry}
            text = repr(intrinsics)
            if text not in known:
                where = "" if intrinsics == shared else f" of view {v} frame {f}"
                known[text] = _focal(f"{printable(path)}", intrinsics, size, where)
    focals = list(known.values())
    if max(focals) - min(focals) > TOLERANCE * max(focals):
        own = sorted({key for row in grid for entry in row for key in FOCAL_KEYS if key in entry})
        raise UserError(
            f"{printable(path)}: {', '.join(own)} of the frames give fields of view that differ; the cameras of a clip "
            "share one: scale or crop the pictures to one focal length"
        )
    return math.degrees(2 * math.atan(size[1] / 2 / focals[0]))


def _focal(name: str, intrinsics: dict[str, Any], size: tuple[int, int], where: str) -> float:
    """Return the focal length in pixels of one camera. UserError names the key if it is not a centered pinhole."""
    width, height = size
    model = intrinsics.get("camera_model", "PINHOLE")
    if not isinstance(model, str) or model.upper() not in PINHOLES:
        raise UserError(f"{name}: camera_model is {_show(model)}{where}; undistort the pictures to a PINHOLE camera")
    for key in DISTORTION_KEYS:
        values = intrinsics.get(key, 0)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and (not isinstance(value, int | float) or value != 0):
                raise UserError(f"{name}: {key} is {_show(values)}{where}; undistort the pictures to a pinhole camera")
    for key, value in intrinsics.items():
        if key not in ("camera_model", *DISTORTION_KEYS) and not _is_number(value):
            raise UserError(f"{name}: '{key}' is {_show(value)}{where}; give a finite number")
    for key, side in (("w", width), ("h", height)):
        if intrinsics.get(key, side) != side:
            raise UserError(
                f"{name}: {key} is {intrinsics[key]}{where}, the first is {side}; all pictures have one size"
            )
    for key, side in (("cx", width), ("cy", height)):
        if key in intrinsics and abs(intrinsics[key] - side / 2) > TOLERANCE * side:
            raise UserError(
                f"{name}: {key} is {_show(intrinsics[key])}{where}, the middle is {side / 2:g}; crop or pad the "
                "pictures so that the principal point lies in the middle"
            )
    found: dict[str, float] = {}
    for key in FOCAL_KEYS:
        if key not in intrinsics:
            continue
        value, side = intrinsics[key], width if key.endswith("x") else height
        if key.startswith("camera_angle"):
            if not 0 < value < math.pi:
                raise UserError(f"{name}: {key} is {_show(value)}{where}; it is an angle in radians between 0 and pi")
            value = side / 2 / math.tan(value / 2)
        elif value <= 0:
            raise UserError(f"{name}: {key} is {_show(value)}{where}; it is a focal length in pixels, more than 0")
        for other, before in found.items():
            if abs(value - before) > TOLERANCE * before:
                raise UserError(
                    f"{name}: {key} is {_show(intrinsics[key])}{where}, a focal length of {value:g} pixels, and "
                    f"{other} gives {before:g}; pixels are square: correct one, or scale the pictures"
                )
        found[key] = float(value)
    if not found:
        raise UserError(f"{name}: missing: 'camera_angle_x' (or 'fl_x'){where}; add it")
    return next(iter(found.values()))


# ---- files ----------------------------------------------------------------------------------------------------------


def _picture(path: Path, entry: dict[str, Any], key: str, inside: _Inside | None) -> Path:
    """Return the picture that an entry names, adding the extension if these formats omit it."""
    text, folder = entry[key], path.parent
    if not isinstance(text, str) or not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{printable(path)}: {key} is {_show(text)}; give the path of a picture in the clip's folder")
    found = next((p for p in (folder / (text + suffix) for suffix in ("", *SUFFIXES)) if _is_file(p)), folder / text)
    if inside is not None and found not in inside:
        raise UserError(
            f"{printable(path)}: {key} {_show(text)} lies outside the clip's folder (an absolute path, '..' or a "
            "link); copy the pictures into it"
        )
    require_file(found, f"{path.name} names it; restore it or write the clip again")
    return found


def _mask(path: Path, entry: dict[str, Any], inside: _Inside | None) -> Path:
    if "mask_path" not in entry:
        raise UserError(f"{printable(path)}: some of its frames have a 'mask_path' and some none; give each its own")
    return _picture(path, entry, "mask_path", inside)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def transforms_path(folder: Path) -> Path:
    """Return the transforms.json of a clip folder, or the given JSON file; ``~`` is expanded."""
    folder = user_path(str(folder), "clip")
    if folder.suffix == ".json":
        return folder
    name = printable(folder)
    if not os.path.isdir(folder):  # does not raise if the parent is not readable, unlike Path
        raise UserError(f"{name}: no such folder; give a clip folder, one that holds transforms.json")
    path = folder / "transforms.json"
    if not os.path.exists(path):
        if splits := sorted(folder.glob("transforms_*.json")):
            names = ", ".join(printable(split.name) for split in splits[:4])
            raise UserError(f"{printable(path)}: missing; this folder holds {names}: give one of these files")
        if clips := sorted(folder.glob("*/transforms.json")):
            names = ", ".join(printable(clip.parent.name) for clip in clips[:4])
            raise UserError(f"{name} is a folder of {len(clips)} clips ({names}): give one of them")
    return path
