"""Plan a rendering: assets, part of the animation, cameras and scale. Pure functions.

Engines return points in their own world; this module uses scene coordinates (z up, front at azimuth 0) unless stated
otherwise.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourdiffusion.datasets.rendering.settings import RenderAssetsConfig, shard_of
from fourdiffusion.errors import UserError

GLTF_SUFFIXES = (".glb", ".gltf")
BLENDER_SUFFIXES = (*GLTF_SUFFIXES, ".fbx", ".usd", ".usda", ".usdc", ".usdz", ".abc", ".blend")
SCENE_FROM_GLTF = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # asset +Z (front) -> scene +x, asset +Y (up) -> +z
SCENE_FROM_BLENDER = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # Blender -Y (front) -> scene +x
UNKNOWN = "not stated"
GAP_DEG = 1.0  # training treats cameras less than half a degree apart as one


@dataclass
class AssetEntry:
    """One asset and its metadata."""

    path: Path
    object: str  # name for files, unique in a batch
    caption: str
    license: str
    author: str
    source: str


@dataclass
class Rig:
    """The cameras of one clip."""

    c2w: np.ndarray  # float64 [V, 4, 4], camera-to-world, OpenGL axes
    roles: list[str]  # "even" | "random"
    fovy_deg: float


def list_assets(config: RenderAssetsConfig) -> list[AssetEntry]:
    """Return the assets of a folder or a list file in order of path, each with its row of the manifest."""
    source = Path(config.assets)
    if source.is_dir():
        root = source
        suffixes = GLTF_SUFFIXES if config.engine == "opengl" else BLENDER_SUFFIXES
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
        if not paths:
            raise UserError(f"assets={source}: no file that ends in {' '.join(suffixes)}")
    elif source.is_file():
        root = source.parent
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"assets={source} is not a text file; give a folder or a list of paths") from error
        paths = [root / line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not paths:
            raise UserError(f"assets={source}: the list is empty; give one path a line")
    else:
        raise UserError(f"assets={source}: no such folder or list file")
    manifest = read_manifest(Path(config.manifest) if config.manifest else None, root)
    taken: set[str] = set()
    entries = [_entry(path, root, manifest.get(path.resolve(), {}), taken) for path in paths]
    first, count = shard_of(config.shard)
    return (entries[: config.limit] if config.limit else entries)[first::count]


def _entry(path: Path, root: Path, row: dict[str, str], taken: set[str]) -> AssetEntry:
    relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return AssetEntry(
        path=path,
        object=unique_name(Path(relative).with_suffix("").as_posix(), taken),
        caption=row.get("caption") or re.sub(r"[_\s]+", " ", path.stem).strip(),
        license=row.get("license") or row.get("licence") or UNKNOWN,
        author=row.get("author") or UNKNOWN,
        source=row.get("source") or relative,
    )


def read_manifest(path: Path | None, root: Path) -> dict[Path, dict[str, str]]:
    """Return the rows of a tab-separated table (`.csv`: comma) by the file in the column `path`.

    Paths are relative to the table's folder. {} if no table is given and ``root`` has no MANIFEST.tsv.
    """
    if path is None:
        path = root / "MANIFEST.tsv"
        if not path.is_file():
            return {}
    if not path.is_file():
        raise UserError(f"manifest={path}: no such file")
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t")
        if "path" not in (rows.fieldnames or []):
            raise UserError(f"manifest={path}: its first line has no column `path`")
        return {(path.parent / row["path"]).resolve(): {k: v for k, v in row.items() if k and v} for row in rows}


def unique_name(text: str, taken: set[str]) -> str:
    """Return a file name made of ``text`` that is not in ``taken``, and add it."""
    base = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "unnamed"
    name, number = base, 1
    while name.lower() in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name.lower())
    return name


def choose_animations(animations: list[dict[str, Any]], rule: str) -> list[int]:
    """Return the indices of the animations ({name, start, end}) selected by ``rule``, in file order."""
    if rule == "all":
        return list(range(len(animations)))
    if rule == "first":
        return [0] if animations else []
    if rule == "longest":
        lengths = [a["end"] - a["start"] for a in animations]
        return [int(np.argmax(lengths))] if animations else []
    return [k for k, a in enumerate(animations) if fnmatch.fnmatchcase(a["name"].lower(), rule.lower())]


def dense_times(start: float, end: float, config: RenderAssetsConfig) -> np.ndarray | None:
    """Return the clock ticks [K] at which an animation must be measured to choose its part; None: not needed."""
    end = min(end, start + config.max_seconds)
    if config.part != "most_motion" or end - start <= clip_seconds(config):
        return None
    return start + np.arange(int((end - start) * config.fps + 1e-6) + 1) / config.fps


def clip_seconds(config: RenderAssetsConfig) -> float:
    """Return the time from the first to the last frame of a clip that is not stretched."""
    return (config.num_frames - 1) * config.stride / config.fps


def choose_times(
    start: float, end: float, config: RenderAssetsConfig, moved: np.ndarray | None = None
) -> tuple[np.ndarray, str]:
    """Return the times of the frames [F] in seconds, and the rule that chose them.

    Args:
        start, end: of the animation, seconds.
        moved: with part=most_motion, how far vertices move between the ticks of ``dense_times``, [K - 1].
    """
    end, span = min(end, start + config.max_seconds), clip_seconds(config)
    if config.part == "whole" or end - start <= span:
        return np.linspace(start, end, config.num_frames), "whole"
    first = start
    if config.part == "middle":
        first = start + (end - start - span) / 2
    elif config.part == "most_motion":
        if moved is None:
            raise ValueError("part=most_motion needs the movement between ticks")
        ticks = (config.num_frames - 1) * config.stride
        totals = np.convolve(moved, np.ones(ticks), mode="valid")
        first = start + int(totals.argmax()) / config.fps
    return first + np.arange(config.num_frames) * config.stride / config.fps, config.part


def moved_between(frames: list[np.ndarray]) -> np.ndarray:
    """Return the mean displacement of the vertices between consecutive frames, [len(frames) - 1]."""
    return np.array([_displacement(a, b).mean() for a, b in zip(frames, frames[1:], strict=False)])


def movement(frames: list[np.ndarray]) -> float:
    """Return the largest vertex displacement from the first frame over the diagonal of its box."""
    diagonal = float(np.linalg.norm(np.ptp(frames[0], axis=0)))
    if diagonal == 0:
        return 0.0
    return max(float(_displacement(frames[0], frame).max()) for frame in frames[1:]) / diagonal


def _displacement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape == b.shape:
        return np.linalg.norm(a - b, axis=1)
    return np.abs(_box(a) - _box(b)).max(axis=1)  # a mesh sequence without shared topology: the change of its box


def _box(points: np.ndarray) -> np.ndarray:
    return np.stack([points.min(axis=0), points.max(axis=0)])


def travel(frames: list[np.ndarray]) -> float:
    """Return the diagonal of the box over all frames over the median diagonal of the box of one frame."""
    boxes = np.stack([_box(frame) for frame in frames])
    one = float(np.median(np.linalg.norm(boxes[:, 1] - boxes[:, 0], axis=1)))
    every = float(np.linalg.norm(boxes[:, 1].max(axis=0) - boxes[:, 0].min(axis=0)))
    return every / one if one > 0 else 1.0


def scene_from_engine(axes: str, heading_deg: float) -> np.ndarray:
    """Return the rotation [3, 3] from an engine's world (`gltf` or `blender`) to the scene."""
    angle = np.radians(heading_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return turn @ {"gltf": SCENE_FROM_GLTF, "blender": SCENE_FROM_BLENDER}[axes]


def normalization(frames: list[np.ndarray], rotation: np.ndarray, config: RenderAssetsConfig, rig: Rig) -> np.ndarray:
    """Return the matrix [4, 4] from the engine's world to the scene.

    The center of the box over ALL frames goes to the origin and its largest side becomes ``cube_side``; with
    ``keep_in_frame`` the object is shrunk until it is in frame from every azimuth at the elevations of the settings.
    """
    boxes = np.stack([_box(frame @ rotation.T) for frame in frames])
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    center = (low + high) / 2
    scale = config.cube_side / float((high - low).max())
    if config.keep_in_frame:
        points = np.concatenate(frames) @ rotation.T - center
        scale = min(scale, largest_scale(points, config, rig))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = scale * rotation, -scale * center
    return matrix


def largest_scale(points: np.ndarray, config: RenderAssetsConfig, rig: Rig) -> float:
    """Return the scale at which the outermost of the centered ``points`` [N, 3] reaches the margin of the frame.

    A point p is in frame if |right . p| + t back . p <= t D (and likewise up), t the tangent of the half field of view
    and D the distance. The maximum of the left side over all azimuths has a closed form for each elevation.
    """
    distance = float(np.linalg.norm(rig.c2w[0, :3, 3]))
    tangent_y = np.tan(np.radians(rig.fovy_deg) / 2) * (1 - config.frame_margin)
    tangent_x = tangent_y * config.width / config.height
    radius, z = np.hypot(points[:, 0], points[:, 1]), points[:, 2]
    elevations = list(np.linspace(config.elevation_deg[0], config.elevation_deg[1], 5))
    if config.num_random_views:
        elevations += list(np.linspace(config.random_elevation_deg[0], config.random_elevation_deg[1], 9))
    scales = [np.inf]
    for elevation in np.radians(np.unique(elevations)):
        cos, sin = np.cos(elevation), np.sin(elevation)
        reach_x = radius * np.hypot(1, tangent_x * cos) + tangent_x * z * sin
        above = z * (cos + tangent_y * sin) + radius * abs(tangent_y * cos - sin)
        below = z * (tangent_y * sin - cos) + radius * abs(tangent_y * cos + sin)
        for reach, tangent in ((reach_x, tangent_x), (above, tangent_y), (below, tangent_y)):
            if reach.max() > 0:
                scales.append(tangent * distance / float(reach.max()))
    return float(min(scales))


def share_outside(frames: list[np.ndarray], matrix: np.ndarray, config: RenderAssetsConfig, rig: Rig) -> float:
    """Return the largest share of points that lies outside the image, over all frames and cameras."""
    worst = 0.0
    for camera in np.linalg.inv(rig.c2w):
        for frame in frames:
            pixels, depth = project(frame @ matrix[:3, :3].T + matrix[:3, 3], camera, config, rig.fovy_deg)
            low, high = pixels >= -1e-6, pixels <= np.array([config.width, config.height]) + 1e-6
            inside = low.all(axis=1) & high.all(axis=1) & (depth > 0)
            worst = max(worst, 1 - float(inside.mean()))
    return worst


def project(
    points: np.ndarray, w2c: np.ndarray, config: RenderAssetsConfig, fovy_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return image positions [N, 2] in pixels (x right, y down, 0 the image's corner) and depths [N]."""
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    focal = config.height / 2 / np.tan(np.radians(fovy_deg) / 2)
    depth = -local[:, 2]
    safe = np.where(depth > 1e-9, depth, 1e-9)
    x = config.width / 2 + focal * local[:, 0] / safe
    y = config.height / 2 - focal * local[:, 1] / safe
    return np.stack([x, y], axis=1), depth


def make_rig(config: RenderAssetsConfig, uid: str) -> Rig:
    """Return the cameras of a clip: a function of the seed, the uid and the settings only.

    Random azimuths keep a distance from the equal ones and from each other (modulo the equal spacing), so that no
    random camera is mistaken for one of an even rig.
    """
    rng = _draws(config, uid)
    spacing = 360 / config.num_views
    offset = float(rng.uniform(0, 360)) if config.random_offset else 0.0
    elevation = float(rng.uniform(config.elevation_deg[0], config.elevation_deg[1]))
    distance = float(rng.uniform(config.distance[0], config.distance[1]))
    fovy = config.fovy_deg + float(rng.uniform(-1, 1)) * config.fovy_jitter_deg
    cameras = [orbit((offset + k * spacing) % 360, elevation, distance) for k in range(config.num_views)]
    count = config.num_random_views
    gap = min(GAP_DEG, spacing / (2 * count + 2))
    used = [0.0]
    while len(used) <= count:
        azimuth = float(rng.uniform(0, 360))
        place = (azimuth - offset) % spacing
        if all(min(abs(place - u), spacing - abs(place - u)) >= gap for u in used):
            used.append(place)
            tilt = float(rng.uniform(config.random_elevation_deg[0], config.random_elevation_deg[1]))
            cameras.append(orbit(azimuth, tilt, distance))
    return Rig(np.stack(cameras), ["even"] * config.num_views + ["random"] * count, fovy)


def heading(config: RenderAssetsConfig, uid: str) -> float:
    """Return the angle in degrees by which a clip's object is rotated: a function of seed, uid and settings only."""
    return config.heading_deg + (float(_draws(config, uid, 1).uniform(0, 360)) if config.random_heading else 0.0)


def _draws(config: RenderAssetsConfig, uid: str, *stream: int) -> np.random.Generator:
    digest = hashlib.sha256(uid.encode()).digest()[:8]
    return np.random.default_rng([config.seed, int.from_bytes(digest, "big"), *stream])


def orbit(azimuth_deg: float, elevation_deg: float, distance: float) -> np.ndarray:
    """Return the camera [4, 4] of ``fourdiffusion.cameras.orbit`` in float64, without torch."""
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    sin_a, cos_a, sin_e, cos_e = np.sin(azimuth), np.cos(azimuth), np.sin(elevation), np.cos(elevation)
    back = np.array([cos_e * cos_a, cos_e * sin_a, sin_e])
    c2w = np.eye(4)
    c2w[:3, 0] = [-sin_a, cos_a, 0]
    c2w[:3, 1] = [-sin_e * cos_a, -sin_e * sin_a, cos_e]
    c2w[:3, 2], c2w[:3, 3] = back, distance * back
    return c2w


def light_direction(azimuth_deg: float, elevation_deg: float) -> list[float]:
    """Return the unit vector [3] from the scene to a light."""
    return [float(x) for x in orbit(azimuth_deg, elevation_deg, 1.0)[:3, 3]]
