"""The interchange format of the project: one folder per clip, V simultaneous static views of F frames.

* `<uid>/transforms.json`: the nerfstudio / D-NeRF convention. `camera_angle_x` in radians, `w`, `h`, `caption`,
  `license`, `source`, `author`, and `frames`: `file_path`, `transform_matrix` (camera-to-world, OpenGL), `time` in
  [0, 1], and the integers `view` and `frame`. Optional keys: see transforms.py, which reads it.
* `<uid>/rgba/v00_f00.png`: 8-bit RGBA, straight alpha; here view 0, frame 0.
* `<uid>/depth/v00_f00.png`: optional (`depth_file_path`). 16-bit gray, distance along the pixel's unit ray in steps of
  `depth_unit` scene units; 0 where there is no surface.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fourdiffusion.datasets.pictures import PictureGrid, check_size
from fourdiffusion.datasets.transforms import Transforms, load_json, read_text, read_transforms, transforms_path
from fourdiffusion.errors import UserError
from fourdiffusion.files import fill_folder
from fourdiffusion.media.paths import printable, user_path
from fourdiffusion.media.picture import read_gray16

DEPTH_UNIT = 0.0001  # scene units per step of the 16-bit depth files: the range is 6.5 scene units


@dataclass
class Clip:
    """V simultaneous static views of F frames."""

    uid: str
    rgba: Tensor  # uint8 [V, F, 4, H, W], straight alpha
    c2w: Tensor  # float32 [V, 4, 4], camera-to-world, OpenGL axes
    fovy_deg: float
    times: Tensor  # float32 [F] in [0, 1], rising
    caption: str
    license: str
    source: str
    depth: Tensor | None = None  # float32 [V, F, H, W], distance along the unit ray in scene units, inf: no surface
    author: str = ""  # for attribution


@dataclass(frozen=True)
class ClipFiles:
    """A clip whose pictures are read on access."""

    uid: str
    pictures: PictureGrid
    c2w: Tensor  # these fields are those of Clip
    fovy_deg: float
    times: Tensor
    caption: str
    license: str
    source: str
    author: str
    depths: list[list[Path]] | None  # V rows of F files
    depth_unit: float

    def load(self) -> Clip:
        """Return the clip with all its pictures and depth in memory."""
        depth = None
        if self.depths is not None:
            rows = [torch.stack([self._read_depth(path) for path in row]) for row in self.depths]
            depth = torch.stack(rows)
        texts = self.caption, self.license, self.source
        rgba = self.pictures[:, :]
        return Clip(self.uid, rgba, self.c2w, self.fovy_deg, self.times, *texts, depth=depth, author=self.author)

    def _read_depth(self, path: Path) -> Tensor:
        """Return float32 [H, W], inf where there is no surface."""
        steps = read_gray16(path)
        check_size(path, steps, self.pictures.size)
        depth = torch.from_numpy(steps.astype(np.float32)) * self.depth_unit
        return torch.where(depth > 0, depth, torch.tensor(math.inf))


def opaque_clip(
    uid: str, rgb: Tensor, c2w: Tensor, fovy_deg: float, caption: str, source: str, times: Tensor | None = None
) -> Clip:
    """Return a clip of RGB videos [V, F, 3, H, W] in [0, 1] without alpha; times [F] are evenly spaced if not given."""
    rgba = torch.cat([rgb, torch.ones_like(rgb[:, :, :1])], dim=2)
    times = torch.linspace(0, 1, rgb.shape[1]) if times is None else times
    pixels = (rgba * 255).round().to(torch.uint8)
    return Clip(uid, pixels, c2w, fovy_deg, times, caption, "that of the source", source)


def list_clips(root: Path) -> list[Path]:
    """Return the finished clips directly under a folder, sorted by name; for a clip folder, that clip."""
    root = user_path(str(root), "path")
    name = printable(root)
    if not os.path.isdir(root):
        raise UserError(f"{name}: no such folder; make clips with `fourdiffusion data synth output={name}`")
    if os.path.isfile(root / "transforms.json"):
        return [root]
    clips = [p.parent for p in sorted(root.glob("*/transforms.json")) if p.parent.suffix != ".partial"]
    if not clips:
        raise UserError(
            f"{name}: holds no clip, a folder with transforms.json; make it with `fourdiffusion data synth`"
        )
    return clips


def write_clip(folder: Path, clip: Clip) -> None:
    """Write a clip atomically as `folder`, which must not exist."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; delete it or choose another output")
    views, frames, channels, height, width = clip.rgba.shape
    if channels != 4 or clip.rgba.dtype != torch.uint8:
        raise ValueError(f"rgba is {tuple(clip.rgba.shape)} {clip.rgba.dtype}: give uint8 [V, F, 4, H, W]")
    if clip.c2w.shape != (views, 4, 4) or clip.times.shape != (frames,):
        raise ValueError(f"c2w {tuple(clip.c2w.shape)} or times {tuple(clip.times.shape)} do not fit {views}, {frames}")
    fovx = 2 * math.atan(math.tan(math.radians(clip.fovy_deg) / 2) * width / height)
    meta: dict[str, Any] = {"camera_angle_x": fovx, "w": width, "h": height}
    meta |= {"caption": clip.caption, "license": clip.license, "source": clip.source}
    if clip.author:
        meta["author"] = clip.author
    if clip.depth is not None:
        meta["depth_unit"] = DEPTH_UNIT
    fill_folder(folder, lambda partial: _write_files(partial, clip, meta))


def _write_files(folder: Path, clip: Clip, meta: dict[str, Any]) -> None:
    """Write the pictures of a clip and its transforms.json: ``meta`` and the frames."""
    views, frames = clip.rgba.shape[:2]
    (folder / "rgba").mkdir()
    if clip.depth is not None:
        (folder / "depth").mkdir()
    entries = []
    for v in range(views):
        matrix = clip.c2w[v].tolist()
        for f in range(frames):
            name = f"v{v:02d}_f{f:02d}.png"
            image = np.ascontiguousarray(clip.rgba[v, f].permute(1, 2, 0).numpy())
            Image.fromarray(image).save(folder / "rgba" / name, compress_level=1)
            entry: dict[str, Any] = {"file_path": f"rgba/{name}", "time": float(clip.times[f]), "view": v, "frame": f}
            if clip.depth is not None:
                steps = (clip.depth[v, f] / DEPTH_UNIT).round().clamp(max=65535)
                steps = torch.where(clip.depth[v, f].isfinite(), steps, torch.zeros(()))
                Image.fromarray(steps.numpy().astype(np.uint16)).save(folder / "depth" / name, compress_level=1)
                entry["depth_file_path"] = f"depth/{name}"
            entries.append(entry | {"transform_matrix": matrix})
    text = json.dumps(meta | {"frames": entries}, indent=1) + "\n"
    (folder / "transforms.json").write_text(text, encoding="utf-8")


def read_caption(folder: Path) -> str:
    """Return a clip's caption, empty if it has none, without reading images; UserError as in ``open_clip``."""
    path = transforms_path(folder)
    return read_text(path, load_json(path), "caption")


def open_clip(folder: Path, allow_outside: bool = False) -> ClipFiles:
    """Open a clip: read and check its cameras, times and texts, and locate its pictures.

    ``folder`` holds transforms.json, or is a JSON file of that form. ``allow_outside`` lets the file's paths leave its
    folder. UserError names the file and the remedy if it is not a clip.
    """
    return clip_of(read_transforms(transforms_path(folder), allow_outside))


def clip_of(found: Transforms) -> ClipFiles:
    """Return the clip that a transforms.json describes."""
    return ClipFiles(
        uid=found.path.parent.resolve().name,
        pictures=PictureGrid(found.pictures, found.size),
        c2w=found.c2w,
        fovy_deg=found.fovy_deg,
        times=found.times,
        caption=found.caption,
        license=found.license,
        source=found.source,
        author=found.author,
        depths=found.depths,
        depth_unit=found.depth_unit,
    )


def read_clip(folder: Path, allow_outside: bool = False) -> Clip:
    """Read a clip with all its pictures; arguments and errors as in ``open_clip``."""
    return open_clip(folder, allow_outside).load()
