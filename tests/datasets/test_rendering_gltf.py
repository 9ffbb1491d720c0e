"""The glTF reader on keyframes, skins, morph targets and broken files."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from animated_glb import Glb, about_y, face_texture, swinging_box

from fourdiffusion.datasets.rendering.gltf import AssetError, Channel, load_gltf
from fourdiffusion.datasets.rendering.pose import pose, sample_channel

TRIANGLE = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]


def channel(interpolation: str, values: Any, path: str = "translation") -> Channel:
    return Channel(0, path, np.array([1.0, 2.0, 4.0], np.float32), np.array(values, np.float32), interpolation)


def test_keys_are_held_or_blended_and_clamped() -> None:
    values = [[0.0], [10.0], [20.0]]
    linear, step = channel("LINEAR", values), channel("STEP", values)
    assert [float(sample_channel(linear, t)[0]) for t in (0, 1, 1.5, 3, 4, 9)] == [0, 0, 5, 15, 20, 20]
    assert [float(sample_channel(step, t)[0]) for t in (0, 1.99, 2, 3.99, 4)] == [0, 0, 10, 10, 20]


def test_a_cubic_spline_has_its_tangents() -> None:
    # value x^2 between the keys at 1, 2 and 4: tangents 2x
    values = [[[2 * x], [x * x], [2 * x]] for x in (1.0, 2.0, 4.0)]
    cubic = channel("CUBICSPLINE", values)
    for time in (1.0, 1.3, 2.0, 3.1, 4.0):
        assert float(sample_channel(cubic, time)[0]) == pytest.approx(time * time, abs=1e-5)


def test_rotations_take_the_short_way_at_constant_speed() -> None:
    turn = np.array([about_y(0), [-x for x in about_y(120)], about_y(120)])
    found = sample_channel(channel("LINEAR", turn, "rotation"), 1.25)
    assert np.abs(found) == pytest.approx(np.abs(about_y(30)), abs=1e-6)


def test_children_move_with_their_parents(tmp_path: Path) -> None:
    glb = Glb()
    parent = glb.node(translation=[1, 0, 0])
    glb.node(parent, mesh=glb.mesh([[0, 1, 2]], POSITION=TRIANGLE), translation=[0, 0, 2], scale=[2, 2, 2])
    glb.animate("turn", (parent, "rotation", [0, 1], [about_y(0), about_y(90)], "LINEAR"))
    asset = load_gltf(glb.save(tmp_path / "a.glb"))
    positions, normals = pose(asset, asset.animations[0], 1.0)[0]
    # +z turns to +x, +x to -z: the child's origin lies at (1 + 2, 0, 0)
    assert positions == pytest.approx(np.array([[3.0, 0, 0], [3, 0, -2], [3, 2, 0]]), abs=1e-5)
    assert normals is None


def skinned(path: Path) -> Path:
    """Write a strip along +y whose upper half hangs on a joint at height 1 that turns about z by 90 degrees."""
    glb = Glb()
    strip = [[0.0, 0, 0], [0, 1, 0], [0, 2, 0]]
    weights = [[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 2.0, 0, 0]]  # the last does not sum to 1
    mesh = glb.mesh([[0, 1, 2]], POSITION=strip, NORMAL=[[1.0, 0, 0]] * 3, WEIGHTS_0=weights)
    joints = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]], np.uint32)
    glb.document["meshes"][mesh]["primitives"][0]["attributes"]["JOINTS_0"] = glb.accessor(joints, 5125)
    lower = glb.node()
    upper = glb.node(lower, translation=[0, 1, 0])
    bind = np.stack([np.eye(4), np.eye(4)])
    bind[1, 3, 1] = -1  # column-major: the translation stands in the last row
    glb.document["skins"] = [{"joints": [lower, upper], "inverseBindMatrices": glb.accessor(bind.reshape(2, 16))}]
    glb.node(mesh=mesh, skin=0, translation=[50, 50, 50])  # of a skinned mesh the node's own place does not count
    quarter = [0, 0, float(np.sin(np.pi / 4)), float(np.cos(np.pi / 4))]
    glb.animate("bend", (upper, "rotation", [0, 1], [[0, 0, 0, 1], quarter], "LINEAR"))
    return glb.save(path)


def test_a_skin_follows_its_joints(tmp_path: Path) -> None:
    asset = load_gltf(skinned(tmp_path / "a.glb"))
    positions, normals = pose(asset, asset.animations[0], 1.0)[0]
    assert positions == pytest.approx(np.array([[0.0, 0, 0], [0, 1, 0], [-1, 1, 0]]), abs=1e-5)
    assert normals is not None
    assert normals[0] == pytest.approx([1, 0, 0], abs=1e-5)
    assert normals[2] == pytest.approx([0, 1, 0], abs=1e-5)


def test_morph_targets_are_added_by_weight(tmp_path: Path) -> None:
    glb = Glb()
    mesh = glb.mesh([[0, 1, 2]], POSITION=TRIANGLE)
    shifts = [glb.accessor([[0.0, 0, 1]] * 3), glb.accessor([[0.0, 2, 0]] * 3)]
    glb.document["meshes"][mesh]["primitives"][0]["targets"] = [{"POSITION": shift} for shift in shifts]
    node = glb.node(mesh=mesh)
    weights = [[0.0], [1], [1], [0]]  # two targets at each of two keys
    glb.animate("morph", (node, "weights", [0, 1], weights, "LINEAR"))
    asset = load_gltf(glb.save(tmp_path / "a.glb"))
    positions, _ = pose(asset, asset.animations[0], 0.25)[0]
    assert positions == pytest.approx(np.array(TRIANGLE) + [0, 1.5, 0.25], abs=1e-5)


def test_nodes_outside_the_scene_are_not_drawn(tmp_path: Path) -> None:
    glb = Glb()
    mesh = glb.mesh([[0, 1, 2]], POSITION=TRIANGLE)
    glb.node(mesh=mesh)
    glb.node(mesh=mesh)
    glb.document["scenes"][0]["nodes"].pop()
    assert len(load_gltf(glb.save(tmp_path / "a.glb")).primitives) == 1


def rewrite(path: Path, change: Any) -> None:
    """Change the JSON document of a GLB in place."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + size])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    path.write_bytes(
        struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest
    )


def test_broken_files_are_refused_by_reason(tmp_path: Path) -> None:
    def refused(change: Any) -> tuple[str, str]:
        path = swinging_box(tmp_path / "a.glb")
        rewrite(path, change)
        with pytest.raises(AssetError) as caught:
            load_gltf(path)
        return caught.value.reason, str(caught.value)

    assert refused(lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"]))[0] == "unsupported"
    reason, text = refused(lambda d: d["images"].__setitem__(0, {"uri": "fur.png"}))
    assert reason == "missing_texture" and "fur.png" in text
    assert refused(lambda d: d["bufferViews"][1].update(byteLength=10**9))[0] == "unreadable"
    assert refused(lambda d: d["accessors"][0].update(count=10**6))[0] == "unreadable"
    assert refused(lambda d: d["nodes"][0].update(children=[0]))[0] == "unreadable"
    assert refused(lambda d: d["nodes"][0].update(mesh=7))[0] == "unreadable"
    assert refused(lambda d: d.pop("asset"))[0] == "unreadable"


@pytest.mark.parametrize("data", [b"", b"glTF", b"not a model", b"[]", b'{"a": 1}', b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_gltf_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.glb").write_bytes(data)
    with pytest.raises(AssetError) as caught:
        load_gltf(tmp_path / "a.glb")
    assert caught.value.reason == "unreadable"


def test_a_texture_beside_the_file_is_found(tmp_path: Path) -> None:
    glb = Glb()
    mesh = glb.mesh([[0, 1, 2]], face_texture(glb), POSITION=TRIANGLE, TEXCOORD_0=[[0.0, 0]] * 3)
    glb.node(mesh=mesh)
    path = glb.save(tmp_path / "a.glb")
    texture = load_gltf(path).primitives[0].material.texture
    assert texture is not None and texture.nearest
    from PIL import Image

    Image.fromarray(texture.pixels).save(tmp_path / "my fur.png")
    rewrite(path, lambda d: d["images"].__setitem__(0, {"uri": "my%20fur.png"}))
    again = load_gltf(path).primitives[0].material.texture
    assert again is not None and (again.pixels == texture.pixels).all()
