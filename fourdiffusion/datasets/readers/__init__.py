"""Readers of other layouts: ``open_views`` detects the layout of a clip and opens it.

| layout | detected by |
|---|---|
| this project, nerfstudio, instant-ngp, D-NeRF, Blender | ``transforms.json`` (transforms.py) |
| Diffuman4D | ``transforms.json`` with ``camera_label``; ``images/<label>/<frame>.webp``, ``fmasks`` |
| Consistent4D's evaluation set | ``<object>/eval_<k>/<frame>.png`` |
| MV-Video (Animate3D) | ``videos/<UID>/00/view_<k>.mp4`` |
| one video or folder of frames per view | ``view_<k>.mp4``, ``view_<k>/<frame>.png``; ``cameras.json`` or azimuths |
"""

from collections.abc import Sequence
from pathlib import Path

from fourdiffusion.datasets.clips import ClipFiles, clip_of
from fourdiffusion.datasets.readers.diffuman4d import is_diffuman4d, read_diffuman4d
from fourdiffusion.datasets.readers.views import find_views, open_separate_views
from fourdiffusion.datasets.transforms import load_json, parse_transforms, transforms_path
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable, user_path

__all__ = ["open_views"]


def open_views(
    path: Path,
    azimuths_deg: Sequence[float] | None = None,
    elevation_deg: float | None = None,
    fovy_deg: float | None = None,
    distance: float | None = None,
) -> ClipFiles:
    """Open V simultaneous videos of one object in any layout of this module; pictures are read on access.

    The camera arguments are for layouts without cameras; an error if the clip has its own.

    Args:
        path: the clip's folder, or its transforms.json.
        azimuths_deg: one per view, in the order of the views' numbers; SV4D 2.0 writes 0, 60, 120, 180, 240.
        elevation_deg: of all cameras; None: the layout's, else 0.
        fovy_deg: vertical field of view; None: the layout's, else 45.
        distance: of all cameras from the object's center; None: the layout's, else 1.1.

    Raises:
        UserError: an unknown layout, or something that a clip cannot represent; one line names it.
    """
    path = user_path(str(path), "path")
    given = {
        "azimuths_deg": azimuths_deg,
        "elevation_deg": elevation_deg,
        "fovy_deg": fovy_deg,
        "distance": distance,
    }
    if path.suffix == ".json" or _holds_transforms(path):
        if named := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{printable(path)}: {', '.join(named)} given, but its transforms.json holds the cameras")
        file = transforms_path(path)
        meta = load_json(file)
        found = read_diffuman4d(file, meta) if is_diffuman4d(meta) else parse_transforms(file, meta)
        return clip_of(found)
    return open_separate_views(find_views(path), azimuths_deg, elevation_deg, fovy_deg, distance)


def _holds_transforms(path: Path) -> bool:
    return path.is_dir() and any(path.glob("transforms*.json"))
