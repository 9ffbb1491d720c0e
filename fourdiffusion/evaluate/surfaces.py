"""Moving surfaces in folders: a mesh a frame, or the tracked points of ActionBench.

    <object>/mesh_00.glb     also .obj, .ply, .off, .stl; frames go by the number at the end of the name
    <object>/surfaces.npy    [T, N, 3 or more], N tracked points a frame (ActionBench's truth)
    and both without <object>, where the folder is one object itself

Letters: T frames, N points.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.measure import VideoResult
from fourdiffusion.evaluate.pairing import match_names
from fourdiffusion.evaluate.settings import SURFACE_METRICS, ProtocolConfig
from fourdiffusion.evaluate.summary import Row, summarize
from fourdiffusion.metrics.surfaces import (
    IDENTITY,
    align,
    chamfer_distance,
    f_score,
    motion_distance,
    points_on,
    sample_surface,
)

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".off", ".stl")
POINTS = "surfaces.npy"
SEED = 44  # of every sample of points, as in actionbench/benchmark.py:79 @cbb4d00


@dataclass(frozen=True)
class Surfaces:
    """One moving object."""

    path: Path
    files: tuple[Path, ...]  # a mesh a frame; empty: the points of surfaces.npy


@dataclass(frozen=True)
class Points:
    """Samples of a moving object. ``tracked`` is None where its meshes have different faces."""

    free: list[np.ndarray]  # T times [N, 3]
    tracked: np.ndarray | None  # [T, N, 3]: row n of every frame is one point of the surface


def find_surfaces(folder: Path) -> dict[str, Surfaces]:
    """Return the moving objects in a folder by name; empty where it holds no meshes or points."""
    if found := _object(folder):
        return {folder.resolve().name: found}
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: found for path in inner if (found := _object(path))}


def evaluate_surfaces(
    prediction: dict[str, Surfaces],
    reference: dict[str, Surfaces],
    folders: tuple[Path, Path],
    protocol: ProtocolConfig,
) -> dict[str, Any]:
    """Measure moving objects against others of the same names. UserError where they cannot be compared."""
    wanted = [name for name in protocol.metrics if name in SURFACE_METRICS]
    if not wanted:
        raise UserError(
            f"{folders[0]} holds meshes, {protocol.name} measures pictures: give protocol=actionbench, or "
            f"protocol.metrics=[{','.join(SURFACE_METRICS)}]"
        )
    if len(prediction) == len(reference) == 1 and _object(folders[0]) and _object(folders[1]):
        prediction = {next(iter(reference)): next(iter(prediction.values()))}
    notes: list[str] = []
    sides = (str(folders[0]), str(folders[1]))
    names = match_names(list(prediction), list(reference), sides, "object", protocol.object_mismatch, notes)
    rows = []
    for name in tqdm(names, desc="evaluate", unit="object", leave=False):
        sequences = _frames_of_both(name, prediction[name], reference[name], protocol, notes)
        measured = _measure(*sequences, protocol, wanted)
        notes += [f"{name}: {note}" for note in measured.notes]
        rows.append(Row(name, "surface", measured))
    result = summarize(rows, protocol, {})
    left = [name for name in protocol.metrics if name not in SURFACE_METRICS]
    notes += [f"{', '.join(left)}: missing (meshes, no pictures)"] if left else []
    return result | {"notes": notes + result["notes"]}


def _object(folder: Path) -> Surfaces | None:
    if (folder / POINTS).is_file():
        return Surfaces(folder / POINTS, ())
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.search(r"(\d+)\D*$", path.stem)
        if path.suffix.lower() not in MESH_SUFFIXES or not path.is_file() or match is None:
            continue
        if (number := int(match.group(1))) in numbered:
            raise UserError(f"{folder} holds frame {number} twice, {numbered[number].name} and {path.name}: remove one")
        numbered[number] = path
    return Surfaces(folder, tuple(path for _, path in sorted(numbered.items()))) if numbered else None


def _frames_of_both(
    name: str, prediction: Surfaces, reference: Surfaces, protocol: ProtocolConfig, notes: list[str]
) -> tuple[Points, Points]:
    a, b = _read(prediction, protocol), _read(reference, protocol)
    counts = [len(a.free[: protocol.frames]), len(b.free[: protocol.frames])]
    if counts[0] != counts[1]:
        if protocol.frame_mismatch == "error":
            raise UserError(
                f"{name}: {counts[0]} frames against {counts[1]}: give both the same frames, or name the rule: "
                "protocol.frame_mismatch=first"
            )
        notes.append(f"{name}: {counts[0]} predicted frames against {counts[1]}: the first {min(counts)} are compared")
    count = min(counts)
    if protocol.frames is not None and count < protocol.frames and protocol.frame_mismatch == "error":
        raise UserError(f"{name}: {count} frames, {protocol.name} compares {protocol.frames}")
    first, second = (
        Points(each.free[:count], None if each.tracked is None else each.tracked[:count]) for each in (a, b)
    )
    return first, second


def _read(surfaces: Surfaces, protocol: ProtocolConfig) -> Points:
    count = protocol.mesh_points
    if not surfaces.files:
        try:
            points = np.load(surfaces.path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{surfaces.path} is no array that numpy can read ({error}): export it again") from error
        if points.ndim != 3 or points.shape[2] < 3 or not points.size or not np.isfinite(points[..., :3]).all():
            raise UserError(f"{surfaces.path} is {list(points.shape)}: expected finite points [T, N, 3 or more]")
        points = points[..., :3].astype(np.float64)
        return Points(list(points), points)
    meshes = [_mesh(path) for path in surfaces.files]
    try:
        free = [points_on(*mesh, sample_surface(*mesh, count, SEED + n)) for n, mesh in enumerate(meshes)]
        if any(not np.array_equal(mesh[1], meshes[0][1]) for mesh in meshes):
            return Points(free, None)
        sample = sample_surface(*meshes[0], count, SEED)
        return Points(free, np.stack([points_on(*mesh, sample) for mesh in meshes]))
    except ValueError as error:
        raise UserError(f"{surfaces.path}: {error}: export the meshes again") from error


def _mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices [N, 3] and faces [M, 3] of a file, its scene's transforms applied."""
    try:
        import trimesh
    except ImportError as error:
        raise UserError(f"{path}: meshes are read by trimesh: pip install 'trimesh>=4.6'") from error
    try:
        mesh: Any = trimesh.load(path, force="mesh", process=False)
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    except Exception as error:  # trimesh's readers raise whatever their formats' libraries raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no mesh that can be read ({reason}): export it again") from error
    if not len(faces) or not np.isfinite(vertices).all():
        raise UserError(f"{path} holds {len(faces)} faces, or vertices that are not finite: export it again")
    return vertices, faces


def _measure(prediction: Points, truth: Points, protocol: ProtocolConfig, wanted: list[str]) -> VideoResult:
    """Measure one object; a name ends in the alignment that its number was taken after."""
    kind, threshold = protocol.mesh_alignment, protocol.f_threshold
    pairs = list(zip(prediction.free, truth.free, strict=True))
    per_frame: dict[str, list[float]] = {}
    per_video: dict[str, float] = {}
    notes: list[str] = []
    if "chamfer" in wanted:
        per_frame["chamfer [none]"] = [chamfer_distance(a, b) for a, b in pairs]
    if "f_score" in wanted:
        per_frame[f"f_score {threshold:g} [none]"] = [f_score(a, b, threshold) for a, b in pairs]
    if "cd_3d" in wanted or ("f_score" in wanted and kind != "none"):
        moved = [(align(*_few(a, b, protocol), kind)(a), b) for a, b in pairs]
        if "cd_3d" in wanted:
            per_frame[f"cd_3d [{kind}]"] = [chamfer_distance(a, b) for a, b in moved]
        if "f_score" in wanted and kind != "none":
            per_frame[f"f_score {threshold:g} [{kind}]"] = [f_score(a, b, threshold) for a, b in moved]
    if "cd_4d" in wanted or "cd_motion" in wanted:
        first = align(*_few(*pairs[0], protocol), kind) if kind != "none" else IDENTITY
        if "cd_4d" in wanted:
            per_frame[f"cd_4d [{kind}]"] = [chamfer_distance(first(a), b) for a, b in pairs]
        if "cd_motion" in wanted:
            untracked = [
                side for side, points in (("prediction", prediction), ("reference", truth)) if points.tracked is None
            ]
            if untracked:
                notes.append(
                    f"cd_motion: missing (the {untracked[0]}'s meshes have different faces): keep one topology"
                )
            else:
                assert prediction.tracked is not None and truth.tracked is not None
                per_video[f"cd_motion [{kind}]"] = motion_distance(first(prediction.tracked), truth.tracked)
    means = {name: float(np.mean(values)) for name, values in per_frame.items()}
    return VideoResult(per_frame, means | per_video, notes=notes)


def _few(prediction: np.ndarray, truth: np.ndarray, protocol: ProtocolConfig) -> tuple[np.ndarray, np.ndarray]:
    """The points that the alignment looks at."""
    few = [points[np.random.default_rng(SEED).permutation(len(points))[: protocol.mesh_icp_points]]
           for points in (prediction, truth)]  # fmt: skip
    return few[0], few[1]
