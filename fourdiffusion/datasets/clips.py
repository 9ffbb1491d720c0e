"""The interchange format of the project: one folder a clip, V simultaneous static views of F frames.

* `<uid>/transforms.json`: the nerfstudio / D-NeRF convention. `camera_angle_x` in radians, `w`, `h`, `caption`,
  `licence`, `source`, and `frames`: `file_path`, `transform_matrix` (camera-to-world, OpenGL), `time` in [0, 1], and
  the integers `view` and `frame`.
* `<uid>/rgba/v00_f00.png`: 8-bit RGBA, straight alpha; here view 0, frame 0.
* `<uid>/depth/v00_f00.png`: optional (`depth_file_path`). 16-bit gray, distance along the pixel's unit ray in steps of
  `depth_unit` scene units; 0 where there is no surface.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fourdiffusion.errors import UserError

DEPTH_UNIT = 0.0001  # scene units a step of the 16-bit depth files: reaches 6.5 scene units


@dataclass
class Clip:
    """V simultaneous static views of F frames."""

    uid: str
    rgba: Tensor  # uint8 [V, F, 4, H, W], straight alpha
    c2w: Tensor  # float32 [V, 4, 4], camera-to-world, OpenGL axes
    fovy_deg: float
    times: Tensor  # float32 [F] in [0, 1], rising
    caption: str
    licence: str
    source: str
    depth: Tensor | None = None  # float32 [V, F, H, W], distance along the unit ray in scene units, inf: no surface


def opaque_clip(uid: str, rgb: Tensor, c2w: Tensor, fovy_deg: float, caption: str, source: str) -> Clip:
    """A clip of RGB videos [V, F, 3, H, W] in [0, 1] that have no alpha, its frames evenly spaced in time."""
    rgba = torch.cat([rgb, torch.ones_like(rgb[:, :, :1])], dim=2)
    times = torch.linspace(0, 1, rgb.shape[1])
    pixels = (rgba * 255).round().to(torch.uint8)
    return Clip(uid, pixels, c2w, fovy_deg, times, caption, "that of the source", source)


def list_clips(root: Path) -> list[Path]:
    """The finished clips directly under a folder, sorted by name."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; make clips with `fourdiffusion data synth output={root}`")
    clips = [p.parent for p in sorted(root.glob("*/transforms.json")) if p.parent.suffix != ".partial"]
    if not clips:
        raise UserError(
            f"{root}: holds no clip, a folder with transforms.json; make it with `fourdiffusion data synth`"
        )
    return clips


def write_clip(folder: Path, clip: Clip) -> None:
    """Writes a clip as `folder`, which must not exist. It appears whole or not at all."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; delete it or choose another output")
    views, frames, channels, height, width = clip.rgba.shape
    if channels != 4 or clip.rgba.dtype != torch.uint8:
        raise ValueError(f"rgba is {tuple(clip.rgba.shape)} {clip.rgba.dtype}: give uint8 [V, F, 4, H, W]")
    if clip.c2w.shape != (views, 4, 4) or clip.times.shape != (frames,):
        raise ValueError(f"c2w {tuple(clip.c2w.shape)} or times {tuple(clip.times.shape)} do not fit {views}, {frames}")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():  # left by an interrupted run
        shutil.rmtree(partial)
    (partial / "rgba").mkdir(parents=True)
    fovx = 2 * math.atan(math.tan(math.radians(clip.fovy_deg) / 2) * width / height)
    meta: dict[str, Any] = {"camera_angle_x": fovx, "w": width, "h": height}
    meta |= {"caption": clip.caption, "licence": clip.licence, "source": clip.source}
    if clip.depth is not None:
        meta["depth_unit"] = DEPTH_UNIT
        (partial / "depth").mkdir()
    entries = []
    for v in range(views):
        matrix = clip.c2w[v].tolist()
        for f in range(frames):
            name = f"v{v:02d}_f{f:02d}.png"
            image = np.ascontiguousarray(clip.rgba[v, f].permute(1, 2, 0).numpy())
            Image.fromarray(image).save(partial / "rgba" / name, compress_level=1)
            entry = {"file_path": f"rgba/{name}", "time": float(clip.times[f]), "view": v, "frame": f}
            if clip.depth is not None:
                steps = (clip.depth[v, f] / DEPTH_UNIT).round().clamp(max=65535)
                steps = torch.where(clip.depth[v, f].isfinite(), steps, torch.zeros(()))
                Image.fromarray(steps.numpy().astype(np.uint16)).save(partial / "depth" / name, compress_level=1)
                entry["depth_file_path"] = f"depth/{name}"
            entries.append(entry | {"transform_matrix": matrix})
    meta["frames"] = entries
    (partial / "transforms.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder)


def read_caption(folder: Path) -> str:
    """A clip's caption, without its images; UserError as of ``read_clip``."""
    path = folder / "transforms.json"
    return str(_key(path, _read_json(path), "caption"))


def read_clip(folder: Path) -> Clip:
    """Reads a clip; UserError names the file and the remedy where it is not one."""
    path = folder / "transforms.json"
    meta = _read_json(path)
    grid = _grid(path, _key(path, meta, "frames"))
    width, height = int(_number(path, meta, "w")), int(_number(path, meta, "h"))
    fovx = _number(path, meta, "camera_angle_x")
    if width < 1 or height < 1:
        raise UserError(f"{path}: w and h are {width} and {height}; they are the size of the images in pixels")
    if not 0 < fovx < math.pi:
        raise UserError(f"{path}: camera_angle_x is {fovx}; it is an angle in radians between 0 and pi")
    fovy = 2 * math.atan(math.tan(fovx / 2) * height / width)
    rgba = torch.stack([torch.stack([_read_rgba(folder, e, height, width) for e in row]) for row in grid])
    with_depth = all("depth_file_path" in entry for row in grid for entry in row)
    depth = None
    if with_depth:
        unit = _number(path, meta, "depth_unit")
        depth = torch.stack([torch.stack([_read_depth(folder, e, unit, height, width) for e in row]) for row in grid])
    return Clip(
        uid=folder.name,
        rgba=rgba,
        c2w=_cameras(path, grid),
        fovy_deg=math.degrees(fovy),
        times=_times(path, grid),
        caption=str(_key(path, meta, "caption")),
        licence=str(_key(path, meta, "licence")),
        source=str(_key(path, meta, "source")),
        depth=depth,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; give a clip folder, one that holds transforms.json")
    if not path.is_file():
        raise UserError(f"{path}: missing; a clip folder holds transforms.json (was the copy complete?)")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); write the clip again") from error
    if not isinstance(meta, dict):
        raise UserError(f"{path}: holds a {type(meta).__name__}, not an object; write the clip again")
    return meta


def _key(path: Path, mapping: dict[str, Any], key: str, where: str = "") -> Any:
    if key not in mapping:
        raise UserError(f"{path}: key '{key}' is missing{where}; add it or write the clip again")
    return mapping[key]


def _number(path: Path, mapping: dict[str, Any], key: str, where: str = "") -> float:
    value = _key(path, mapping, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{path}: '{key}' is {value!r}{where}; give a number")
    return value


def _grid(path: Path, entries: Any) -> list[list[dict[str, Any]]]:
    """The frame entries as a full grid of V rows of F entries."""
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise UserError(f"{path}: 'frames' is not a list of at least one object; write the clip again")
    placed: dict[tuple[int, int], dict[str, Any]] = {}
    for k, entry in enumerate(entries):
        where = f" in frames[{k}]"
        _key(path, entry, "file_path", where)
        _key(path, entry, "transform_matrix", where)
        _number(path, entry, "time", where)
        spot = (int(_number(path, entry, "view", where)), int(_number(path, entry, "frame", where)))
        if spot in placed:
            raise UserError(f"{path}: view {spot[0]} frame {spot[1]} appears twice; number every frame once")
        placed[spot] = entry
    views, frames = 1 + max(v for v, _ in placed), 1 + max(f for _, f in placed)
    if min(min(spot) for spot in placed) < 0:
        raise UserError(f"{path}: a view or frame is negative; they are numbered from 0")
    for v in range(views):
        for f in range(frames):
            if (v, f) not in placed:
                grid = f"{views} x {frames} grid"
                raise UserError(f"{path}: view {v} frame {f} is missing from the {grid}; views need equal frames")
    return [[placed[v, f] for f in range(frames)] for v in range(views)]


def _cameras(path: Path, grid: list[list[dict[str, Any]]]) -> Tensor:
    """[V, 4, 4]; the camera of a view stands still."""
    rows = []
    for v, row in enumerate(grid):
        for f, entry in enumerate(row):
            try:
                matrix = torch.tensor(entry["transform_matrix"], dtype=torch.float32)
            except (TypeError, ValueError) as error:
                raise UserError(f"{path}: transform_matrix of view {v} frame {f} is not a matrix of numbers") from error
            if matrix.shape != (4, 4):
                raise UserError(f"{path}: transform_matrix of view {v} frame {f} is not 4 x 4")
            if not bool(matrix.isfinite().all()):
                raise UserError(f"{path}: transform_matrix of view {v} frame {f} is not finite")
            if f == 0:
                rows.append(matrix)
            elif not torch.allclose(matrix, rows[v], atol=1e-5):
                raise UserError(f"{path}: the camera of view {v} moves at frame {f}; a clip has one camera a view")
    return torch.stack(rows)


def _times(path: Path, grid: list[list[dict[str, Any]]]) -> Tensor:
    """[F] in [0, 1]; the views are simultaneous."""
    times = torch.tensor([float(entry["time"]) for entry in grid[0]])
    if not bool(((times >= 0) & (times <= 1)).all()) or bool((times.diff() <= 0).any()):
        raise UserError(f"{path}: the times of a view must lie in [0, 1] and rise, got {times.tolist()}")
    for v, row in enumerate(grid):
        for f, entry in enumerate(row):
            if abs(float(entry["time"]) - float(times[f])) > 1e-6:
                raise UserError(f"{path}: time of view {v} frame {f} is not that of view 0; views are simultaneous")
    return times


def _open(path: Path, height: int, width: int, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert(mode) if mode == "RGBA" else image)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing, but transforms.json names it; restore it or write the clip again") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable image ({error}); replace it or write the clip again") from error
    if pixels.shape[:2] != (height, width):
        raise UserError(f"{path}: is {pixels.shape[1]} x {pixels.shape[0]}, transforms.json says {width} x {height}")
    return pixels


def _read_rgba(folder: Path, entry: dict[str, Any], height: int, width: int) -> Tensor:
    """uint8 [4, H, W]; a picture without alpha is opaque."""
    pixels = _open(folder / str(entry["file_path"]), height, width, "RGBA")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _read_depth(folder: Path, entry: dict[str, Any], unit: float, height: int, width: int) -> Tensor:
    """float32 [H, W], inf where there is no surface."""
    path = folder / str(entry["depth_file_path"])
    steps = _open(path, height, width, "I;16")
    if steps.ndim != 2:
        raise UserError(f"{path}: has {steps.shape[-1]} channels; a depth file is 16-bit gray")
    depth = torch.from_numpy(steps.astype(np.float32)) * unit
    return torch.where(depth > 0, depth, torch.tensor(math.inf))
