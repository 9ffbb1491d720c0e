"""Blender beside the OpenGL engine: the same pictures, other formats, the same reasons. Skipped without Blender."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from animated_glb import swinging_box
from PIL import Image
from test_rendering_gltf import rewrite

from fourdiffusion.datasets.rendering import run
from fourdiffusion.datasets.rendering.settings import RenderAssetsConfig

BLENDER = os.environ.get("FOURDIFFUSION_BLENDER") or shutil.which("blender") or ""
pytestmark = pytest.mark.skipif(not BLENDER, reason="no Blender: set FOURDIFFUSION_BLENDER to one")

EXPORT = """
import bpy, sys
source, folder = sys.argv[-2:]
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=source)
bpy.context.scene.frame_start, bpy.context.scene.frame_end = 0, 24
bpy.ops.wm.usd_export(filepath=folder + "/usd.usdc", export_animation=True)
bpy.ops.wm.alembic_export(filepath=folder + "/alembic.abc", as_background_job=False)
bpy.ops.export_scene.fbx(filepath=folder + "/fbx.fbx", path_mode="COPY", embed_textures=True)
bpy.ops.wm.save_as_mainfile(filepath=folder + "/blend.blend")
"""


def settings(folder: Path, engine: str, **changes: Any) -> RenderAssetsConfig:
    usual: dict[str, Any] = {
        "assets": str(folder / "assets"), "output": str(folder / engine), "engine": engine, "blender": BLENDER,
        "width": 64, "height": 64, "num_views": 2, "num_frames": 3, "part": "whole", "samples": 16, "threads": 1,
    }  # fmt: skip
    return RenderAssetsConfig(**(usual | changes))


def picture(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors on white in [0, 1] and the silhouette."""
    image = np.array(Image.open(path)).astype(float) / 255
    return image[..., :3] * image[..., 3:] + 1 - image[..., 3:], image[..., 3] > 0.5


def test_both_engines_draw_the_same(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    swinging_box(tmp_path / "assets" / "box.glb")
    for engine in ("opengl", "cycles"):
        assert run.render_batch(settings(tmp_path, engine)).clips == 1
    meta = [json.loads((tmp_path / e / "box-swing" / "transforms.json").read_text()) for e in ("opengl", "cycles")]
    assert [f["transform_matrix"] for f in meta[0]["frames"]] == [f["transform_matrix"] for f in meta[1]["frames"]]
    for entry in meta[0]["frames"]:
        (one, shape), (two, other) = (
            picture(tmp_path / e / "box-swing" / entry["file_path"]) for e in ("opengl", "cycles")
        )
        assert (shape & other).sum() / (shape | other).sum() > 0.985
        assert np.abs(one - two)[shape | other].mean() < 0.12  # Blender adds shadows and a gray reflection


def test_bad_assets_have_the_same_reasons(tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    swinging_box(assets / "good.glb")
    (assets / "text.glb").write_text("no model")
    whole = swinging_box(assets / "cut.glb").read_bytes()
    (assets / "cut.glb").write_bytes(whole[: len(whole) // 2])
    rewrite(swinging_box(assets / "bare.glb"), lambda d: d["images"].__setitem__(0, {"uri": "fur.png"}))
    rewrite(swinging_box(assets / "rest.glb"), lambda d: d.pop("animations"))
    swinging_box(assets / "rocket.glb", shift=60.0)
    (assets / "noise.fbx").write_text("no model")
    summary = run.render_batch(settings(tmp_path, "cycles", samples=1, num_workers=2))
    assert (summary.clips, summary.failures) == (
        1, {"leaves_frame": 1, "missing_texture": 1, "no_animation": 1, "unreadable": 3},
    )  # fmt: skip


@pytest.mark.skipif("python" not in Path(BLENDER).name, reason="the export needs a Python with bpy")
def test_other_formats_move_as_the_glb_does(tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    swinging_box(assets / "glb.glb")
    (tmp_path / "export.py").write_text(EXPORT)
    subprocess.run(
        [BLENDER, str(tmp_path / "export.py"), str(assets / "glb.glb"), str(assets)], check=True, capture_output=True
    )
    changes = {"samples": 1, "num_workers": 2, "random_offset": False, "num_views": 4, "heading_deg": 45.0}
    summary = run.render_batch(settings(tmp_path, "cycles", **changes))
    assert (summary.clips, summary.failures) == (5, {})
    clips = {path.parent.name.split("-")[0]: path.parent for path in (tmp_path / "cycles").glob("*/transforms.json")}
    assert set(clips) == {"glb", "usd", "alembic", "fbx", "blend"}
    for name, clip in clips.items():
        for frame in range(3):
            _, shape = picture(clip / f"rgba/v00_f{frame:02d}.png")
            _, wanted = picture(clips["glb"] / f"rgba/v00_f{frame:02d}.png")
            assert (shape & wanted).sum() / (shape | wanted).sum() > 0.9, (name, frame)
