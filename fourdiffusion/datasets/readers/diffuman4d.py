"""Clips in Diffuman4D's layout: one entry per camera, named by ``camera_label``; its frames are in its folder.

transforms.json                     one entry per camera: camera_label, transform_matrix, fl_x, fl_y, cx, cy, w, h
images/<camera_label>/<frame>.webp  (or .jpg, .png)
fmasks/<camera_label>/<frame>.png   optional: white is the person
"""

from pathlib import Path
from typing import Any

from fourdiffusion.datasets.readers.views import natural_order
from fourdiffusion.datasets.transforms import Transforms, parse_transforms
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable
from fourdiffusion.media.picture import SUFFIXES


def is_diffuman4d(meta: dict[str, Any]) -> bool:
    """Return whether the content of a transforms.json labels its cameras and has no times."""
    entries = meta.get("frames")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return False
    return any("camera_label" in entry for entry in entries) and not any("time" in entry for entry in entries)


def read_diffuman4d(path: Path, meta: dict[str, Any]) -> Transforms:
    """Return the clip: times are evenly spaced over the sorted names of the frames, which all cameras share."""
    rows: dict[str, dict[str, Any]] = {}
    for k, entry in enumerate(meta["frames"]):
        label = entry.get("camera_label")
        if not isinstance(label, str) or not label or Path(label).name != label or label in rows:
            raise UserError(
                f"{printable(path)}: camera_label of frames[{k}] is {printable(repr(label))[:80]}; give each camera a "
                "name of its own, that of its folder in images/"
            )
        rows[label] = entry
    names: list[str] | None = None
    expanded = []
    for view, (label, entry) in enumerate(rows.items()):
        files = _pictures(path.parent / "images" / label)
        masks = {file.stem: file for file in _pictures(path.parent / "fmasks" / label, optional=True)}
        stems = [file.stem for file in files]
        names = names or stems
        if stems != names:
            differing = sorted(set(stems) ^ set(names), key=str)[:3]
            raise UserError(
                f"{printable(path.parent / 'images' / label)}: its {len(stems)} frames are not those of the first "
                f"camera ({len(names)}; different: {', '.join(map(printable, differing))}); views need equal frames"
            )
        for frame, file in enumerate(files):
            place = {"file_path": f"images/{label}/{file.name}", "view": view, "frame": frame}
            place["time"] = frame / max(len(files) - 1, 1)
            if masks:
                if file.stem not in masks:
                    raise UserError(f"{printable(path.parent)}: fmasks/{label} lacks a mask of frame {file.stem}")
                place["mask_path"] = f"fmasks/{label}/{masks[file.stem].name}"
            expanded.append(entry | place)
    return parse_transforms(path, meta | {"frames": expanded})


def _pictures(folder: Path, optional: bool = False) -> list[Path]:
    if optional and not folder.is_dir():
        return []
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    if not files and not optional:
        raise UserError(f"{printable(folder)}: holds no picture; a camera's frames are in images/<camera_label>")
    return sorted(files, key=lambda file: natural_order(file.stem))
