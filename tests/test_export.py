"""The verb `export` on a small random scene: what appears where, and how mistakes are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
import yaml
from pygltflib import GLTF2
from scipy.spatial import cKDTree

from fourdiffusion.cli import main
from fourdiffusion.errors import UserError
from fourdiffusion.export import export
from fourdiffusion.files import save_tensors
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.export.glb import srgb_to_linear
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, load_scene, save_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig
from fourdiffusion.settings import ExportConfig

pytestmark = pytest.mark.slow

TIMES = torch.tensor([0.0, 0.5, 1.0])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as written by fit: an opaque, not fitted ball of three frames."""
    folder = tmp_path / "run"
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    renderer = RendererConfig(num_samples=24, occupancy_resolution=8)
    field = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8, blob_scale=40), backend="torch")
    occupancy = OccupancyGrid(renderer)
    occupancy.update(field.density, TIMES)
    save_scene(folder / "scene", Scene(field, occupancy, renderer))
    save_tensors(folder / "input.safetensors", {"rgba": torch.rand(3, 4, 8, 8), "times": TIMES}, {})
    content = {"commit": "abc", "license": "CC-BY-4.0", "settings": {"prompt": "a ball", "author": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def config(run: Path, format: str, **change: object) -> ExportConfig:
    small: dict = {"resolution": 12, "size": 8, "num_views": 2, "device": "cpu"}
    return ExportConfig(str(run), format, **(small | change))


FRAMES = ["frame_0000", "frame_0001", "frame_0002"]


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("glb", ["scene.glb"]),
        ("html", ["scene.html"]),
        ("usd", ["scene.usdc"]),
        ("glb_frames", [f"glb_frames/{name}.glb" for name in FRAMES]),
        ("obj", [f"obj/{name}.obj" for name in FRAMES]),
        ("ply", [f"ply/{name}.ply" for name in FRAMES]),
        ("splats", [f"splats/{name}.ply" for name in FRAMES]),
        ("images", [f"images/{kind}_{i:04d}.png" for kind in ("alpha", "depth", "rgba") for i in range(3)]),
        (
            "nerfstudio",
            [f"nerfstudio/{kind}/view_{v:03d}_frame_{i:04d}.png" for kind in ("depths", "images") for v in (0, 1)
             for i in range(3)] + ["nerfstudio/transforms.json"],
        ),
    ],
)  # fmt: skip
def test_every_format_goes_under_the_run(run: Path, format: str, expected: list[str]) -> None:
    if format == "usd":
        pytest.importorskip("pxr")
    export(config(run, format))
    folder = run / "export"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == expected


def test_the_file_names_its_author_license_and_origin(run: Path, tmp_path: Path) -> None:
    export(config(run, "glb", output=str(tmp_path / "a.glb"), author="Ann", num_frames=2))
    gltf = GLTF2().load(str(tmp_path / "a.glb"))
    assert gltf.asset.copyright == "Ann, CC-BY-4.0" and len(gltf.meshes) == 2
    extras = json.loads(json.dumps(gltf.asset.extras))
    assert extras["prompt"] == "a ball" and extras["commit"] == "abc" and extras["iso_level"] > 0
    export(config(run, "glb", output=str(tmp_path / "b.glb"), license="CC0-1.0", iso_level=20.0))
    gltf = GLTF2().load(str(tmp_path / "b.glb"))
    assert gltf.asset.copyright == "CC0-1.0" and gltf.asset.extras["iso_level"] == 20.0 and len(gltf.meshes) == 3


def test_usd_is_read_back_with_a_time_sample_a_frame(run: Path, tmp_path: Path) -> None:
    pxr_usd = pytest.importorskip("pxr.Usd")
    from pxr import UsdGeom

    export(config(run, "usd", output=str(tmp_path / "a.usda"), author="Ann", fps=12.0, scale=2.0))
    export(config(run, "ply", output=str(tmp_path / "ply"), scale=2.0))
    stage = pxr_usd.Stage.Open(str(tmp_path / "a.usda"))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/object/surface"))
    for attribute in (mesh.GetPointsAttr(), mesh.GetFaceVertexIndicesAttr(), mesh.GetNormalsAttr()):
        assert attribute.GetTimeSamples() == [0.0, 1.0, 2.0]
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode(), stage.GetTimeCodesPerSecond()) == (0, 2, 12)
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    layer = stage.GetRootLayer()
    assert layer.comment.startswith("Ann, CC-BY-4.0") and layer.customLayerData["prompt"] == "a ball"
    for frame in range(3):
        truth = trimesh.load(tmp_path / "ply" / f"frame_{frame:04d}.ply", process=False)  # z up
        points = np.array(mesh.GetPointsAttr().Get(frame))
        np.testing.assert_allclose(points, np.asarray(truth.vertices)[:, [1, 2, 0]], atol=1e-5)  # type: ignore[attr-defined]
        assert len(mesh.GetFaceVertexIndicesAttr().Get(frame)) == 3 * len(truth.faces)  # type: ignore[attr-defined]
        linear = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("displayColor").Get(frame))
        srgb = np.asarray(truth.visual.vertex_colors)[:, :3] / 255  # type: ignore[attr-defined]
        np.testing.assert_allclose(linear, srgb_to_linear(srgb), atol=0.01)


def test_a_texture_holds_the_colors_of_the_surface(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("xatlas")
    scene = load_scene(run)
    with torch.no_grad():
        for name, value in scene.field.named_parameters():
            if "params" in name:
                value.mul_(3000)  # colors that differ from place to place
    save_scene(run / "scene", scene)
    export(config(run, "glb_frames", output=str(tmp_path / "t"), texture_size=128, num_frames=2))
    export(config(run, "ply", output=str(tmp_path / "v"), num_frames=2))
    textured = trimesh.load(tmp_path / "t" / "frame_0001.glb", force="mesh")
    plain = trimesh.load(tmp_path / "v" / "frame_0001.ply", process=False)  # z up, sRGB at the vertices
    assert len(textured.faces) == len(plain.faces)  # type: ignore[attr-defined]
    distance, nearest = cKDTree(np.asarray(plain.vertices)[:, [1, 2, 0]]).query(textured.vertices)  # type: ignore[attr-defined]
    assert distance.max() < 1e-5
    shown = textured.visual.to_color().vertex_colors[:, :3] / 255  # type: ignore[attr-defined]
    expected = np.asarray(plain.visual.vertex_colors)[nearest, :3] / 255  # type: ignore[attr-defined]
    assert np.ptp(expected, axis=0).max() > 0.01  # not one gray
    assert np.abs(shown - expected).mean() < 0.25 * np.ptp(expected, axis=0).max()
    gltf = GLTF2().load(str(tmp_path / "t" / "frame_0001.glb"))
    assert gltf.meshes[0].primitives[0].attributes.COLOR_0 is None and gltf.images[0].mimeType == "image/png"


def test_texels_lie_where_their_faces_are() -> None:
    from fourdiffusion.scene.export.atlas import texels

    uv = np.array([[0.125, 0.25], [0.875, 0.25], [0.125, 0.75]])  # u to the right, v down
    row, column, corners, weights = texels(uv, np.array([[0, 1, 2]]), 64)
    places = (uv[corners] * weights[..., None]).sum(1)
    np.testing.assert_allclose(places, (np.stack([column, row], 1) + 0.5) / 64, atol=0.02)
    assert 0.9 < len(row) / (64 * 64 * 0.75 * 0.5 / 2) < 1.2


def test_a_run_without_notes_exports(run: Path) -> None:
    (run / "config.yaml").unlink()
    (run / "input.safetensors").unlink()
    export(config(run / "scene", "glb"))
    gltf = GLTF2().load(str(run / "export" / "scene.glb"))
    assert gltf.asset.copyright is None and len(gltf.meshes) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "nerfstudo"}, "format=nerfstudo: there is no such format, did you mean nerfstudio"),
        ({"format": "step7"}, "use glb, html"),
        ({"iso_level": 1e6}, r"iso_level=1e\+06 leaves no surface.*lower iso_level="),
        ({"iso_level": 0.0}, "iso_level=0.0 must be positive"),
        ({"fps": float("nan")}, "fps=nan must be positive"),
        ({"scale": -1.0}, "scale=-1.0"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"resolution": 2}, "resolution=2 is too small"),
        ({"texture_size": 8}, "texture_size=8; give 64 to 4096"),
        ({"format": "ply", "texture_size": 256}, "texture_size=256: format=ply has colors at its vertices"),
        ({"format": "usd", "output": "scene.glb"}, "ends in .usdc or .usda or .usd"),
        ({"min_component": 2.0}, "min_component=2.0"),
        ({"format": "images", "elevation_deg": 90.0}, "elevation_deg=90.0"),
        ({"output": "scene.obj"}, "ends in .glb"),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_written(run: Path, change: dict, message: str) -> None:
    before = {path.name for path in run.iterdir()}
    with pytest.raises(UserError, match=message):
        export(config(run, **({"format": "glb"} | change)))
    assert {path.name for path in run.iterdir()} == before


def test_a_folder_that_is_there_is_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "obj").mkdir()
    (tmp_path / "obj" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="obj is there already"):
        export(config(run, "obj", output=str(tmp_path / "obj")))
    assert [path.name for path in (tmp_path / "obj").iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="is a folder"):
        export(config(run, "glb", output=str(tmp_path / "obj")))


def test_the_command_line_exports(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"scene={run}", "resolution=12", "device=cpu"]) == 0
    assert f"written: {run / 'export' / 'scene.glb'}" in capsys.readouterr().out
    assert main(["export", f"scene={run}", "iso_levl=3"]) == 2
    assert "did you mean iso_level" in capsys.readouterr().err


def test_morph_targets_where_one_mesh_fits_all_frames_and_frames_where_none_does(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(config(run, "glb", animation="morph"))
    gltf = GLTF2().load(str(run / "export" / "scene.glb"))
    assert len(gltf.meshes) == 1 and len(gltf.meshes[0].primitives[0].targets) == 2
    assert "one mesh with 2 morph targets, tracked from frame 1" in capsys.readouterr().out
    assert gltf.asset.extras["iso_level"] > 0
    monkeypatch.setattr("fourdiffusion.scene.export.morph.MAX_DISTANCE", -1.0)
    export(config(run, "glb", animation="morph"))
    assert len(GLTF2().load(str(run / "export" / "scene.glb")).meshes) == 3
    assert "no mesh that all frames share (frame 1" in capsys.readouterr().out
    export(config(run, "glb", animation="morph", num_frames=1))
    assert "one frame does not move" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"animation": "morf"}, "did you mean morph"),
        ({"animation": "morph", "format": "usd"}, "not with format=usd"),
        ({"animation": "morph", "texture_size": 64}, "not with texture_size=64"),
    ],
)
def test_a_wrong_animation_is_named(run: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(config(run, **({"format": "glb"} | change)))
