"""Write renders as image sequences (RGBA, depth, alpha) and as a nerfstudio dataset with times."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.cameras import FOVY_DEG, orbit
from fourdiffusion.files import write_atomic
from fourdiffusion.media.write import write_image
from fourdiffusion.scene.frames import render_frame, with_alpha
from fourdiffusion.scene.scene import Scene

DEPTH_UNIT = 1e-3  # scene units a step of a 16-bit depth image: nerfstudio's default depth_unit_scale_factor


def write_sequence(
    folder: Path, scene: Scene, times: Tensor, azimuth_deg: float, elevation_deg: float, size: int, label: str | None
) -> None:
    """Write rgba_0000.png (straight alpha), depth_0000.png (16 bit), alpha_0000.png of every time from one camera."""
    c2w = orbit(azimuth_deg, elevation_deg)
    for index, time in enumerate(tqdm(times, desc=label, disable=label is None, leave=False)):
        frame = render_frame(scene, c2w, FOVY_DEG, float(time), size, size)
        write_image(folder / f"rgba_{index:04d}.png", with_alpha(frame))
        write_depth(folder / f"depth_{index:04d}.png", frame["depth"])
        write_image(folder / f"alpha_{index:04d}.png", frame["alpha"].expand(3, -1, -1))


def write_depth(path: Path, depth: Tensor) -> None:
    """Write [1, H, W] in scene units as a 16-bit PNG of thousandths; 0 stays 0, nothing."""
    steps = (depth[0].numpy() / DEPTH_UNIT).round().clip(0, 65535).astype(np.uint16)
    write_atomic(path, lambda partial: Image.fromarray(steps).save(partial, format="PNG"))


def dataset_cameras(num_views: int, low_deg: float = -30.0, high_deg: float = 60.0) -> Tensor:
    """Return cameras [V, 4, 4] spread evenly over the sphere between two elevations (a Fibonacci spiral)."""
    index = torch.arange(num_views) + 0.5
    low, high = (math.sin(math.radians(angle)) for angle in (low_deg, high_deg))
    elevations = torch.asin(low + (high - low) * index / num_views) * (180 / math.pi)
    azimuths = index * (180 * (3 - math.sqrt(5)))  # the golden angle
    return orbit(azimuths % 360, elevations)


def write_nerfstudio(
    folder: Path, scene: Scene, times: Tensor, num_views: int, size: int, credit: str, label: str | None
) -> None:
    """Write a nerfstudio dataset: RGBA and depth images of every camera at every time, and transforms.json.

    Cameras are OpenGL, z up, as here; ``time`` is in [0, 1]; depth is along the optical axis in thousandths.
    """
    focal = size / 2 / math.tan(math.radians(FOVY_DEG) / 2)
    frames = []
    cameras = dataset_cameras(num_views)
    with tqdm(total=len(cameras) * len(times), desc=label, disable=label is None, leave=False) as bar:
        for view, c2w in enumerate(cameras):
            for moment, time in enumerate(times.tolist()):
                name = f"view_{view:03d}_frame_{moment:04d}.png"
                frame = render_frame(scene, c2w, FOVY_DEG, time, size, size)
                write_image(folder / "images" / name, with_alpha(frame))
                write_depth(folder / "depths" / name, frame["depth"])
                paths = {"file_path": f"images/{name}", "depth_file_path": f"depths/{name}"}
                frames.append(paths | {"time": time, "transform_matrix": c2w.tolist()})
                bar.update()
    content = {
        "camera_model": "OPENCV", "w": size, "h": size, "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2,
        "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0, "depth_unit_scale_factor": DEPTH_UNIT, "credit": credit,
        "frames": frames,
    }  # fmt: skip
    write_atomic(folder / "transforms.json", lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n"))
