"""Files that other programs read: what trimesh and pygltflib find in them."""

import base64
import gzip
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pygltflib import GLTF2
from scene.shapes import RADIUS, ball_center, ball_scene

from fourdiffusion.cameras import FOVY_DEG, azimuth_deg, orbit, rays
from fourdiffusion.scene.export.glb import build_glb, srgb_to_linear, write_glb
from fourdiffusion.scene.export.html import write_html
from fourdiffusion.scene.export.images import dataset_cameras, write_nerfstudio, write_sequence
from fourdiffusion.scene.export.meshes import rotation_to, write_obj, write_ply, write_splats
from fourdiffusion.scene.export.surface import Mesh

trimesh = pytest.importorskip("trimesh")

# A tetrahedron with one corner on each axis of the world, and its corners' colors.
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.uint32)
COLORS = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5], [0, 0, 1]], dtype=np.float32)


def tetrahedron(shift: float = 0.0) -> Mesh:
    normals = np.array([[-1, -1, -1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Mesh(CORNERS + np.array([0, 0, shift], np.float32), FACES, normals, COLORS)


def accessor(gltf: GLTF2, number: int) -> np.ndarray:
    entry = gltf.accessors[number]
    view = gltf.bufferViews[entry.bufferView]
    kind = {5123: np.uint16, 5125: np.uint32, 5126: np.float32}[entry.componentType]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[entry.type]
    data = gltf.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    return np.frombuffer(data, kind).reshape(entry.count, width)


def visible(gltf: GLTF2, time: float) -> list[int]:
    """Nodes with scale 1 at a time, by the STEP rule."""
    found = []
    for channel in gltf.animations[0].channels:
        sampler = gltf.animations[0].samplers[channel.sampler]
        assert sampler.interpolation == "STEP" and channel.target.path == "scale"
        times, scales = accessor(gltf, sampler.input)[:, 0], accessor(gltf, sampler.output)
        assert (np.diff(times) > 0).all() and times[0] == 0 and times[-1] == pytest.approx(3 / 4)
        scale = scales[np.searchsorted(times, time, side="right") - 1]
        assert set(scale.tolist()) <= {0.0, 1.0}
        if scale[0] == 1:
            found.append(channel.target.node)
    return found


def test_an_animated_glb_shows_one_frame_at_a_time(tmp_path: Path) -> None:
    meshes = [tetrahedron(shift) for shift in (0.0, 1.0, 2.0)]
    write_glb(tmp_path / "a.glb", meshes, 4.0, 2.0, "Ann, CC0-1.0", {"prompt": "a bird"})
    gltf = GLTF2().load(str(tmp_path / "a.glb"))
    assert [visible(gltf, time) for time in (0.0, 0.24, 0.26, 0.49, 0.51, 0.74, 0.75)] == [[0], [0], [1], [1]] + [
        [2]
    ] * 3
    assert [node.scale for node in gltf.nodes[:3]] == [None, [0, 0, 0], [0, 0, 0]]
    assert gltf.asset.copyright == "Ann, CC0-1.0" and gltf.asset.extras == {"prompt": "a bird"}
    scene = trimesh.load(tmp_path / "a.glb")
    assert len(scene.geometry) == 3


def test_a_glb_is_y_up_in_meters_with_linear_colors() -> None:
    gltf = GLTF2.load_from_bytes(build_glb([tetrahedron(1.0)], 8.0, scale=2.0))
    attributes = gltf.meshes[0].primitives[0].attributes
    x, y, z = CORNERS.T
    np.testing.assert_allclose(accessor(gltf, attributes.POSITION), 2 * np.stack([y, z + 1, x], axis=1))
    np.testing.assert_allclose(accessor(gltf, attributes.NORMAL)[1:], [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    colors = accessor(gltf, attributes.COLOR_0) / 65535
    np.testing.assert_allclose(colors[2], [0.2140, 0.2140, 0.2140, 1], atol=1e-4)
    np.testing.assert_allclose(colors[1], [1, 0, 0, 1])
    np.testing.assert_allclose(srgb_to_linear(np.array([0.04, 1.0])), [0.04 / 12.92, 1])
    assert gltf.animations == [] and "KHR_materials_unlit" in gltf.materials[0].extensions
    loaded = trimesh.load(io.BytesIO(build_glb([tetrahedron()], 8.0)), file_type="glb", force="mesh")
    assert loaded.is_watertight and loaded.volume == pytest.approx(1.0)  # positive: wound from outside


@pytest.mark.parametrize("change", [{"meshes": []}, {"fps": 0.0}, {"scale": -1.0}])
def test_a_glb_of_nothing_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="a GLB needs"):
        build_glb(**({"meshes": [tetrahedron()], "fps": 8.0} | change))


def test_obj_and_ply_read_back(tmp_path: Path) -> None:
    write_obj(tmp_path / "a.obj", tetrahedron(), 2.0, "Ann")
    write_ply(tmp_path / "a.ply", tetrahedron(), 2.0, "Ann")
    x, y, z = CORNERS.T
    for name, corners in (("a.obj", np.stack([y, z, x], axis=1)), ("a.ply", CORNERS)):
        mesh = trimesh.load(tmp_path / name, process=False)
        np.testing.assert_allclose(mesh.vertices, 2 * corners)
        assert mesh.volume == pytest.approx(8.0) and "Ann" in (tmp_path / name).read_bytes()[:300].decode("latin1")
        np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3] / 255, COLORS, atol=0.01)


def test_splats_cover_the_faces_tangentially(tmp_path: Path) -> None:
    write_splats(tmp_path / "a.ply", tetrahedron(), 2.0)
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    names = re.findall(r"property float (\w+)", header.decode())
    columns = dict(zip(names, np.frombuffer(body, "<f4").reshape(-1, len(names)).T, strict=True))
    assert len(names) == 17 and len(columns["x"]) == 4
    slanted = np.argmax(columns["scale_0"])
    np.testing.assert_allclose([columns[n][slanted] for n in "xyz"], [4 / 3, -2, -2 / 3], rtol=1e-5)  # y down
    colors = COLORS[[1, 2, 3]].mean(axis=0)
    found = [0.5 + 0.28209479 * columns[f"f_dc_{i}"][slanted] for i in range(3)]
    np.testing.assert_allclose(found, colors, atol=1e-6)
    area = np.exp(columns["scale_0"] * 2) * np.pi
    assert area[slanted] == pytest.approx(4 * 3.5, rel=1e-5) and (columns["scale_2"] < columns["scale_0"]).all()


def test_rotations_take_z_to_the_normals() -> None:
    normals = np.random.default_rng(0).normal(size=(20, 3))
    normals[0], normals[1] = [0, 0, -1], [0, 0, 1]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    w, x, y, z = rotation_to(normals).T
    turned = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=1)
    np.testing.assert_allclose(turned, normals, atol=1e-6)


class Links(HTMLParser):
    """Everything in a page that would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_the_model_and_loads_nothing(tmp_path: Path) -> None:
    meshes = [tetrahedron(), tetrahedron(1.0)]
    write_html(tmp_path / "a.html", meshes, 4.0, "<b>bird</b>", "Ann & Bob")
    page = (tmp_path / "a.html").read_text()
    links = Links()
    links.feed(page)
    assert links.found == ["data:,"] and "http" not in page.replace("http-equiv", "")
    assert "&lt;b&gt;bird&lt;/b&gt;" in page and "Ann &amp; Bob" in page and "@@" not in page
    model = re.search(r'id="model" type="text/plain">([^<]+)<', page)
    assert model and gzip.decompress(base64.b64decode(model[1])) == build_glb(meshes, 4.0, copyright="Ann & Bob")


def test_image_sequences_show_the_ball(tmp_path: Path) -> None:
    times = torch.tensor([0.0, 1.0])
    write_sequence(tmp_path, ball_scene(times), times, 90.0, 0.0, 32, None)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{kind}_{index:04d}.png" for kind in ("rgba", "depth", "alpha") for index in (0, 1)
    }
    for index, height in enumerate((-0.1, 0.2)):
        rgba = np.array(Image.open(tmp_path / f"rgba_{index:04d}.png"))
        alpha = np.array(Image.open(tmp_path / f"alpha_{index:04d}.png"))[..., 0]
        depth = np.array(Image.open(tmp_path / f"depth_{index:04d}.png")) / 1000
        assert rgba.shape == (32, 32, 4) and (rgba[..., 3] == alpha).all()
        # Azimuth 90 looks from +y along -y: the ball is 0.9 away, its front 0.25 nearer, and x = 0.1 is left.
        row = round(16 - 0.5 - height / 0.9 * 16 / np.tan(np.radians(22.5)))
        column = round(16 - 0.5 - 0.1 / 0.9 * 16 / np.tan(np.radians(22.5)))
        assert alpha[row, column] > 250 and depth[row, column] == pytest.approx(0.65, abs=0.05)
        top, bottom = rgba[row - 4, column], rgba[row + 4, column]
        assert top[0] > 140 > 60 > top[2] and bottom[2] > 140 > 60 > bottom[0]
        assert depth[-1, -1] == 0 and alpha[-1, -1] == 0


def test_a_nerfstudio_dataset_describes_its_images(tmp_path: Path) -> None:
    times = torch.tensor([0.0, 1.0])
    write_nerfstudio(tmp_path, ball_scene(times), times, 3, 24, "Ann", None)
    content = json.loads((tmp_path / "transforms.json").read_text())
    assert len(content["frames"]) == 6 and {frame["time"] for frame in content["frames"]} == {0.0, 1.0}
    for frame in content["frames"]:
        rgba = np.array(Image.open(tmp_path / frame["file_path"]))
        depth = np.array(Image.open(tmp_path / frame["depth_file_path"])) * content["depth_unit_scale_factor"]
        c2w = torch.tensor(frame["transform_matrix"])
        # Unproject with the file's own numbers: what is opaque lies near the ball's surface.
        row, column = (rgba[..., 3] > 250).nonzero()
        z = depth[row, column]
        local = [
            (column + 0.5 - content["cx"]) / content["fl_x"] * z,
            -(row + 0.5 - content["cy"]) / content["fl_y"] * z,
        ]
        world = np.stack([*local, -z], axis=1) @ c2w[:3, :3].numpy().T + c2w[:3, 3].numpy()
        distances = np.linalg.norm(world - ball_center(torch.tensor(frame["time"])).numpy(), axis=1)
        on_ball = distances < 0.35  # the rest is the speck
        assert on_ball.sum() > 20 and abs(np.median(distances[on_ball]) - RADIUS) < 0.05


def test_dataset_cameras_surround_the_object() -> None:
    c2w = dataset_cameras(40)
    elevations = torch.rad2deg(torch.asin(c2w[:, 2, 3] / c2w[:, :3, 3].norm(dim=1)))
    assert elevations.min() > -31 and elevations.max() < 61 and elevations.max() > 50
    counts = torch.histc(azimuth_deg(c2w), 4, -180, 180)
    assert counts.min() >= 8
    origins, directions = rays(orbit(0.0), FOVY_DEG, 1, 1)
    torch.testing.assert_close(directions[0, 0], -origins[0, 0] / 1.1)
