"""Rendered pictures against known geometry: markers, distances, sides, motion, for every engine that runs here."""

import io
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from animated_glb import FACES, MARKERS, marker_places, markers, swinging_box
from PIL import Image

from fourdiffusion.datasets.rendering.gltf import AssetError
from fourdiffusion.datasets.rendering.rasterizer import create_context
from fourdiffusion.datasets.rendering.run import render_batch
from fourdiffusion.datasets.rendering.settings import LightConfig, RenderAssetsConfig

pytestmark = pytest.mark.slow

GLTF_FROM_BLENDER = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
BLENDER = os.environ.get("FOURDIFFUSION_BLENDER") or shutil.which("blender") or ""


@pytest.fixture(scope="module", params=["opengl", "cycles"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "opengl":
        try:
            create_context()
        except AssetError as error:
            pytest.skip(str(error))
    elif not BLENDER:
        pytest.skip("no Blender: set FOURDIFFUSION_BLENDER to one, or to a Python with bpy")
    return str(request.param)


def settings(folder: Path, engine: str, **changes: Any) -> RenderAssetsConfig:
    usual: dict[str, Any] = {
        "assets": str(folder / "assets"), "output": str(folder / "clips"), "engine": engine, "blender": BLENDER,
        "width": 96, "height": 96, "num_views": 3, "num_random_views": 1, "num_frames": 3, "part": "whole",
        "samples": 4, "denoise": False, "threads": 1, "depth": True, "normals": True, "motion_vectors": True,
    }  # fmt: skip
    return RenderAssetsConfig(**(usual | changes))


@pytest.fixture(scope="module")
def marked(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip of three glowing spheres, at a wide image so that both focal lengths count."""
    folder = tmp_path_factory.mktemp("markers")
    (folder / "assets").mkdir()
    markers(folder / "assets" / "markers.glb")
    config = settings(folder, engine, width=160, height=128, ambient=0.0, lights=[], samples=16)
    assert render_batch(config).clips == 1
    return folder / "clips" / "markers-orbit"


@pytest.fixture(scope="module")
def swung(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip of a box with colored faces."""
    folder = tmp_path_factory.mktemp("box")
    (folder / "assets").mkdir()
    swinging_box(folder / "assets" / "box.glb")
    config = settings(folder, engine, num_views=4, random_offset=False, ambient=0.9, lights=[])
    assert render_batch(config).clips == 1
    return folder / "clips" / "box-swing"


def load(clip: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Return `transforms.json` and the matrix from the glTF world to the scene."""
    meta = json.loads((clip / "transforms.json").read_text())
    matrix = np.array(meta["scene_from_asset"])
    return meta, matrix if meta["asset_axes"] == "gltf" else matrix @ np.linalg.inv(GLTF_FROM_BLENDER)


def pixels(meta: dict[str, Any], entry: dict[str, Any], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return image positions [N, 2] and distances to the camera [N] of scene points [N, 3]."""
    w2c = np.linalg.inv(np.array(entry["transform_matrix"]))
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    x = meta["cx"] + meta["fl_x"] * local[:, 0] / -local[:, 2]
    y = meta["cy"] - meta["fl_y"] * local[:, 1] / -local[:, 2]
    return np.stack([x, y], axis=1), np.linalg.norm(local, axis=1)


def test_markers_lie_where_the_cameras_say(marked: Path) -> None:
    meta, scene = load(marked)
    colors, tested = np.array(list(MARKERS)), 0
    for entry in meta["frames"]:
        image = np.array(Image.open(marked / entry["file_path"])).astype(float) / 255
        places = marker_places(entry["asset_time"]) @ scene[:3, :3].T + scene[:3, 3]
        expected, distances = pixels(meta, entry, places)
        radius = 0.12 * np.linalg.norm(scene[:3, 0]) * meta["fl_x"] / distances
        gaps = np.linalg.norm(expected[:, None] - expected[None], axis=-1) + 1e3 * np.eye(3)
        for k, color in enumerate(colors):
            if gaps[k].min() < 2.5 * radius.max():
                continue  # one hides another
            wanted = image[..., :3] @ color - image[..., :3] @ (1 - color)
            weight = image[..., 3] * (wanted > 0.5)
            grid = np.stack(np.meshgrid(np.arange(meta["w"]) + 0.5, np.arange(meta["h"]) + 0.5), axis=-1)
            center = (grid * weight[..., None]).sum((0, 1)) / weight.sum()
            assert np.linalg.norm(center - expected[k]) < 0.5, (entry["view"], entry["frame"], k)
            tested += 1
    assert tested > 0.6 * 3 * len(meta["frames"])


def box_distances(meta: dict[str, Any], entry: dict[str, Any], scene: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance [H, W] from the camera to the swinging box along each pixel's ray, and the normals there."""
    angle, rise = np.radians(60 * entry["asset_time"]), 0.3 * entry["asset_time"]
    node = np.eye(4)
    node[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    node[1, 3] = rise
    scene_from_box = scene @ node
    c2w = np.array(entry["transform_matrix"])
    x = (np.arange(meta["w"]) + 0.5 - meta["cx"]) / meta["fl_x"]
    y = -(np.arange(meta["h"]) + 0.5 - meta["cy"]) / meta["fl_y"]
    rays = np.stack(np.broadcast_arrays(x[None], y[:, None], -1.0), axis=-1)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True) @ c2w[:3, :3].T
    inverse = np.linalg.inv(scene_from_box)
    origin, local = inverse[:3, :3] @ c2w[:3, 3] + inverse[:3, 3], rays @ inverse[:3, :3].T
    half = np.array([0.5, 1.0, 1.5])
    near = np.minimum((-half - origin) / local, (half - origin) / local)
    far = np.maximum((-half - origin) / local, (half - origin) / local).min(axis=-1)
    axis = near.argmax(axis=-1)
    hit = near.max(axis=-1) < far
    normal = -np.sign(np.take_along_axis(local, axis[..., None], -1)) * np.eye(3)[axis]
    normal = normal @ (scene_from_box[:3, :3] / np.linalg.norm(scene_from_box[:3, 0])).T
    return np.where(hit, near.max(axis=-1), 0), np.where(hit[..., None], normal, 0)


def test_depth_is_the_distance_along_the_ray(swung: Path) -> None:
    meta, scene = load(swung)
    for entry in meta["frames"]:
        found = np.array(Image.open(swung / entry["depth_file_path"])).astype(float) * meta["depth_unit"]
        expected, _ = box_distances(meta, entry, scene)
        both = (found > 0) & (expected > 0)
        assert both.sum() > 200
        assert ((found > 0) != (expected > 0)).mean() < 0.005
        assert np.abs(found / np.where(both, expected, 1) - 1)[both].max() < 0.005


def test_normals_are_those_of_the_world(swung: Path) -> None:
    meta, scene = load(swung)
    for entry in meta["frames"]:
        found = np.array(Image.open(swung / entry["normal_file_path"])).astype(float) / 127.5 - 1
        _, expected = box_distances(meta, entry, scene)
        covered = np.abs(expected).max(-1) > 0
        assert np.quantile(np.abs(found - expected)[covered].max(-1), 0.97) < 0.03


def test_motion_vectors_lead_to_the_next_frame(marked: Path) -> None:
    meta, scene = load(marked)
    by_place = {(entry["view"], entry["frame"]): entry for entry in meta["frames"]}
    tested = 0
    for (view, frame), entry in by_place.items():
        following = by_place.get((view, frame + 1))
        if following is None:
            continue
        motion = np.load(marked / entry["motion_file_path"]).astype(float)
        depth = np.array(Image.open(marked / entry["depth_file_path"])) * meta["depth_unit"]
        here, distances = pixels(meta, entry, marker_places(entry["asset_time"]) @ scene[:3, :3].T + scene[:3, 3])
        later = marker_places(following["asset_time"]) @ scene[:3, :3].T + scene[:3, 3]
        moved = pixels(meta, following, later)[0] - here
        for k, (column, row) in enumerate(here.astype(int)):
            radius = 0.12 * np.linalg.norm(scene[:3, 0])
            if not distances[k] - 1.5 * radius < depth[row, column] < distances[k]:
                continue  # hidden
            # The sphere turns while it moves, so the surface in front moves a little unlike its center.
            assert np.linalg.norm(motion[row, column] - moved[k]) < 0.25 * np.linalg.norm(moved[k]) + 1
            tested += 1
    assert tested > 0.6 * 3 * len(by_place) * 2 / 3


def test_the_front_is_at_azimuth_0_and_up_is_up(swung: Path) -> None:
    meta, _ = load(swung)
    faces = {0: (0, 0, 1), 1: (1, 0, 0), 2: (0, 0, -1), 3: (-1, 0, 0)}  # view at azimuth 90 k: what it looks at
    for view, face in faces.items():
        entry = next(e for e in meta["frames"] if e["view"] == view and e["frame"] == 0)
        azimuth = np.degrees(np.arctan2(entry["transform_matrix"][1][3], entry["transform_matrix"][0][3]))
        assert azimuth % 360 == pytest.approx(90 * view, abs=1e-6)
        image = np.array(Image.open(swung / entry["file_path"]))
        color = image[image.shape[0] // 2, image.shape[1] // 2, :3].astype(float)
        wanted = np.array(FACES[face]) * (0.9 ** (1 / 2.2))  # the light's strength, in sRGB
        assert np.abs(color - wanted).max() < 40, (view, color)  # Blender adds a gray reflection
    alphas = [np.array(Image.open(swung / f"rgba/v00_f0{f}.png"))[..., 3] for f in (0, 2)]
    top = [np.flatnonzero(alpha.any(axis=1))[0] for alpha in alphas]
    assert top[1] < top[0]  # the box rises


def test_alpha_is_straight_and_edges_are_smooth(swung: Path) -> None:
    image = np.array(Image.open(swung / "rgba/v00_f00.png")).astype(float)
    edge = (image[..., 3] > 25) & (image[..., 3] < 230)
    inside = image[..., 3] == 255
    assert edge.sum() > 20
    away = np.abs(image[edge][:, 0] - image[inside][:, 0].mean())
    assert np.quantile(away, 0.8) < 30  # the front has one color, also where it covers half a pixel
    assert (image[image[..., 3] == 0] == 0).all()


def test_the_whole_motion_stays_in_every_picture(swung: Path) -> None:
    for path in (swung / "rgba").iterdir():
        alpha = np.array(Image.open(path))[..., 3]
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert border.max() == 0 and (alpha > 0).any()


def test_a_random_heading_turns_each_object_under_the_same_cameras(engine: str, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for name in ("box", "case"):
        swinging_box(tmp_path / "assets" / f"{name}.glb")
    few = {"num_views": 1, "num_random_views": 0, "num_frames": 2, "random_offset": False}
    few |= {"depth": False, "normals": False, "motion_vectors": False}
    render_batch(settings(tmp_path, engine, random_heading=True, **few))
    clips = {name: tmp_path / "clips" / f"{name}-swing" for name in ("box", "case")}
    angles, pictures = [], {}
    for name, clip in clips.items():
        content = json.loads((clip / "transforms.json").read_text())
        assert content["frames"][0]["transform_matrix"][1][3] == pytest.approx(0)  # azimuth 0
        x, y = np.array(content["scene_from_asset"])[:2, 2]  # where the asset's front, +Z, points
        angles.append(math.degrees(math.atan2(y, x)))
        pictures[name] = (clip / "rgba/v00_f00.png").read_bytes()
    assert abs(angles[0] - angles[1]) > 1 and pictures["box"] != pictures["case"]
    shutil.rmtree(tmp_path / "clips")
    render_batch(settings(tmp_path, engine, heading_deg=angles[1], **few))
    same = np.array(Image.open(clips["case"] / "rgba/v00_f00.png")).astype(int)
    shown = np.array(Image.open(io.BytesIO(pictures["case"]))).astype(int)
    assert np.abs(same - shown).mean() < 0.05


def test_a_light_shines_from_where_it_stands(engine: str, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    swinging_box(tmp_path / "assets" / "box.glb")
    light = LightConfig(azimuth_deg=90.0, elevation_deg=0.0, strength=0.9, angle_deg=1.0)
    config = settings(tmp_path, engine, num_views=4, num_random_views=0, num_frames=2, random_offset=False,
                      lights=[light], ambient=0.1, depth=False, normals=False, motion_vectors=False,
                      heading_deg=90.0)  # fmt: skip
    render_batch(config)
    shown = [np.array(Image.open(tmp_path / f"clips/box-swing/rgba/v0{v}_f00.png"))[48, 48, :3] for v in range(4)]
    assert shown[1][0] > 170 and shown[1][1:].max() < 70  # with this heading the red front faces the light
    assert max(shown[v].max() for v in (0, 2, 3)) < 110
