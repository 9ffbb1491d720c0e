"""Files of a rendered clip: `transforms.json`, and the layers in the formats of `clips.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fourdiffusion.datasets.rendering import plan
from fourdiffusion.datasets.rendering.settings import DEPTH_UNIT, RenderAssetsConfig


def transforms(config: RenderAssetsConfig, rig: plan.Rig, times: np.ndarray) -> dict[str, Any]:
    """Return the entries of `transforms.json`: cameras, times and file names.

    In addition to the keys of every clip, each frame has a ``role`` (even: one of the equal azimuths |
    random) and an ``asset_time``, seconds on the animation's clock.
    """
    half = np.tan(np.radians(rig.fovy_deg) / 2)
    focal = config.height / 2 / half
    meta: dict[str, Any] = {
        "camera_angle_x": float(2 * np.arctan(half * config.width / config.height)),
        "w": config.width, "h": config.height, "fl_x": float(focal), "fl_y": float(focal),
        "cx": config.width / 2, "cy": config.height / 2,
    }  # fmt: skip
    if config.depth:
        meta["depth_unit"] = DEPTH_UNIT
    clock = (times - times[0]) / (times[-1] - times[0])
    frames = []
    for v, role in enumerate(rig.roles):
        for f in range(config.num_frames):
            name = f"v{v:02d}_f{f:02d}"
            entry = {"file_path": f"rgba/{name}.png", "time": float(clock[f]), "view": v, "frame": f, "role": role}
            entry["asset_time"] = float(times[f])
            if config.depth:
                entry["depth_file_path"] = f"depth/{name}.png"
            if config.normals:
                entry["normal_file_path"] = f"normal/{name}.png"
            if config.motion_vectors:
                entry["motion_file_path"] = f"motion/{name}.npy"
            frames.append(entry | {"transform_matrix": rig.c2w[v].tolist()})
    return meta | {"frames": frames}


def write_transforms(folder: Path, cameras: dict[str, Any], record: dict[str, Any]) -> None:
    """Write `transforms.json`: intrinsics, then the clip's ``record``, then the frames."""
    frames = cameras["frames"]
    meta = {key: value for key, value in cameras.items() if key != "frames"} | record | {"frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def encode_layers(folder: Path) -> None:
    """Encode the arrays of an engine as 16-bit depth, 8-bit normals (n * 127.5 + 127.5) and half-precision motion."""
    for path in (folder / "depth").glob("*.npy"):
        distance = np.load(path)
        steps = np.where(np.isfinite(distance), np.clip(np.round(distance / DEPTH_UNIT), 1, 65535), 0)
        Image.fromarray(steps.astype(np.uint16)).save(path.with_suffix(".png"), compress_level=1)
        path.unlink()
    for path in (folder / "normal").glob("*.npy"):
        pixels = np.round(np.load(path) * 127.5 + 127.5).astype(np.uint8)
        Image.fromarray(pixels).save(path.with_suffix(".png"), compress_level=1)
        path.unlink()
    for path in (folder / "motion").glob("*.npy"):
        np.save(path, np.load(path).astype(np.float16))


def is_transparent(folder: Path, config: RenderAssetsConfig) -> bool:
    """Return whether the middle frame of the first view is empty."""
    with Image.open(folder / "rgba" / f"v00_f{config.num_frames // 2:02d}.png") as image:
        return image.getchannel("A").getextrema()[1] == 0
