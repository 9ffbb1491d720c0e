"""transforms.json as other programs write it: what is read, what is refused by name, and hostile files."""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from fourdiffusion.cameras import orbit
from fourdiffusion.datasets.clips import Clip, read_clip, write_clip
from fourdiffusion.errors import UserError

VIEWS, FRAMES, SIZE = 3, 2, 64
FOCAL = SIZE / 2 / math.tan(math.radians(22.5))


def truth() -> Clip:
    generator = torch.Generator().manual_seed(0)
    rgba = torch.randint(0, 256, (VIEWS, FRAMES, 4, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    times = torch.linspace(0, 1, FRAMES)
    return Clip("clip", rgba, orbit(torch.arange(VIEWS) * 90.0), 45.0, times, "a box", "cc0", "test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clip", truth())
    return tmp_path / "clip"


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def frames(change: Callable[[dict], object]) -> Callable[[dict], object]:
    return lambda meta: [change(entry) for entry in meta["frames"]]


def first_view(change: Callable[[dict], object]) -> Callable[[dict], object]:
    return lambda meta: [change(entry) for entry in meta["frames"] if entry["view"] == 1]


def strip(meta: dict, *keys: str) -> None:
    """Leave what D-NeRF and Blender write: camera_angle_x, and paths without their ending."""
    for entry in meta["frames"]:
        entry["file_path"] = "./" + entry["file_path"].removesuffix(".png")
        entry["rotation"] = 0.0125
        del entry["view"], entry["frame"]
    for key in ("w", "h", "caption", "license", "source", *keys):
        meta.pop(key, None)


# ---- what other programs write --------------------------------------------------------------------------------------


def test_a_file_of_blender_and_d_nerf_is_read(folder: Path) -> None:
    edit(folder, strip)
    read, wrote = read_clip(folder), truth()
    assert torch.equal(read.rgba, wrote.rgba) and torch.equal(read.c2w, wrote.c2w)
    assert torch.equal(read.times, wrote.times) and read.fovy_deg == pytest.approx(45)
    assert (read.caption, read.license, read.source, read.author) == ("", "unknown", "", "")


def test_a_file_of_nerfstudio_is_read(folder: Path) -> None:
    """Focal lengths instead of an angle, zero distortion, and keys of a previous world transform."""

    def change(meta: dict) -> None:
        strip(meta, "camera_angle_x")
        meta |= {"fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2, "w": SIZE, "h": SIZE}
        meta |= {"camera_model": "OPENCV", "k1": 0.0, "k2": 0, "p1": 0.0, "p2": -0.0, "is_fisheye": False}
        meta |= {"applied_transform": [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]], "applied_scale": 0.5}
        meta |= {"ply_file_path": "sparse.ply", "orientation_override": "none", "aabb_scale": 16}

    edit(folder, change)
    assert read_clip(folder).fovy_deg == pytest.approx(45) and torch.equal(read_clip(folder).rgba, truth().rgba)


@pytest.mark.parametrize("keys", [{"fl_x": FOCAL}, {"fl_y": FOCAL}, {"camera_angle_y": math.pi / 4}])
@pytest.mark.parametrize("per_frame", [False, True])
def test_any_one_key_gives_the_field_of_view(folder: Path, keys: dict, per_frame: bool) -> None:
    def change(meta: dict) -> None:
        strip(meta, "camera_angle_x")
        for place in meta["frames"] if per_frame else [meta]:
            place.update(keys)

    edit(folder, change)
    assert read_clip(folder).fovy_deg == pytest.approx(45)


def test_entries_stand_in_any_order(folder: Path) -> None:
    """Times fall and views mix: frames go by time, views by their first entry, whether or not they are numbered."""
    edit(folder, lambda meta: meta["frames"].reverse())
    assert torch.equal(read_clip(folder).rgba, truth().rgba)
    edit(folder, strip)
    read = read_clip(folder)
    assert torch.equal(read.rgba, truth().rgba.flip(0)) and torch.equal(read.c2w, truth().c2w.flip(0))
    assert read.times.tolist() == [0, 1]


def test_the_size_comes_from_the_pictures(folder: Path) -> None:
    for path in (folder / "rgba").glob("*.png"):
        Image.new("RGBA", (32, 16)).save(path)
    edit(folder, strip)
    read = read_clip(folder)
    assert read.rgba.shape[-2:] == (16, 32)
    assert read.fovy_deg == pytest.approx(math.degrees(2 * math.atan(math.tan(math.pi / 8) / 2)))


def test_another_ending_is_found(folder: Path) -> None:
    for path in (folder / "rgba").glob("*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
        path.unlink()
    edit(folder, strip)
    assert read_clip(folder).rgba.shape == truth().rgba.shape


def test_a_json_file_of_another_name_is_given_itself(folder: Path) -> None:
    (folder / "transforms.json").rename(folder / "transforms_train.json")
    assert torch.equal(read_clip(folder / "transforms_train.json").rgba, truth().rgba)
    with pytest.raises(UserError, match="transforms.json: missing; this folder holds transforms_train.json: give one"):
        read_clip(folder)


def test_pictures_that_are_no_grid_are_counted(folder: Path) -> None:
    def change(meta: dict) -> None:
        strip(meta)
        meta["frames"].pop()

    edit(folder, change)
    with pytest.raises(UserError, match="its 5 pictures are of 3 cameras at 2 times; a clip needs exactly one"):
        read_clip(folder)


def test_everything_that_is_missing_is_asked_for_at_once(folder: Path) -> None:
    def change(meta: dict) -> None:
        del meta["camera_angle_x"], meta["frames"][2]["view"]
        for k, entry in enumerate(meta["frames"]):
            del entry["time"]
            if k % 2:
                del entry["transform_matrix"]

    edit(folder, change)
    with pytest.raises(UserError) as caught:
        read_clip(folder)
    for part in ("'camera_angle_x' (or 'fl_x')", "'time' in 6 of 6 frames", "'transform_matrix' in 3 of 6 frames"):
        assert part in str(caught.value)
    assert "'view' in frames[2]" in str(caught.value) and "\n" not in str(caught.value)


# ---- keys that change the camera ------------------------------------------------------------------------------------


def rescale(factor: float) -> Callable[[dict], object]:
    def change(entry: dict) -> None:
        for row in entry["transform_matrix"][:3]:
            row[:3] = [factor * value for value in row[:3]]

    return change


def negate_column(entry: dict) -> None:
    for row in entry["transform_matrix"][:3]:
        row[0] = -row[0]


CAMERAS = {
    "cx": (lambda m: m.update(cx=33.0), "cx is 33.0, the middle is 32"),
    "cy": (lambda m: m.update(cy=20), "cy is 20, the middle is 32"),
    "fl_y": (lambda m: m.update(fl_x=FOCAL, fl_y=FOCAL / 2), "fl_y is 38.6"),
    "fl_x": (
        lambda m: m.update(fl_x=200.0),
        "fl_x is 200.0, a focal length of 200 pixels, and camera_angle_x gives 77",
    ),
    "camera_angle_y": (lambda m: m.update(camera_angle_y=0.5), "camera_angle_y is 0.5"),
    "fl_x below 0": (lambda m: m.update(fl_x=-77.0), "fl_x is -77.0"),
    "nan": (lambda m: m.update(cx=float("nan")), "'cx' is nan"),
    "k1": (lambda m: m.update(k1=-0.3), "k1 is -0.3; undistort"),
    "k4": (lambda m: m.update(k4=1e-6), "k4 is 1e-06; undistort"),
    "p2": (lambda m: m.update(p2=0.001), "p2 is 0.001; undistort"),
    "k1 of a frame": (first_view(lambda e: e.update(k1=0.1)), "k1 is 0.1 of view 1 frame 0"),
    "distortion_params": (frames(lambda e: e.update(distortion_params=[0, 0, 0, 0, 0.1, 0])), "distortion_params"),
    "camera_model": (lambda m: m.update(camera_model="OPENCV_FISHEYE"), "camera_model is 'OPENCV_FISHEYE'"),
    "camera_model of a frame": (first_view(lambda e: e.update(camera_model="EQUIRECTANGULAR")), "camera_model"),
    "camera_model is a list": (lambda m: m.update(camera_model=[1]), "camera_model"),
    "is_fisheye": (lambda m: m.update(is_fisheye=True), "is_fisheye is True"),
    "ftheta_p0": (lambda m: m.update(ftheta_p0=0.5), "ftheta_p0"),
    "rolling_shutter": (lambda m: m.update(rolling_shutter=[0, 0, 1, 0]), "rolling_shutter"),
    "transform_matrix_end": (frames(lambda e: e.update(transform_matrix_end=e["transform_matrix"])), "matrix_end"),
    "own angle": (
        first_view(lambda e: e.update(camera_angle_x=0.3)),
        "camera_angle_x of the frames give fields of view",
    ),
    "own fl_x": (first_view(lambda e: e.update(fl_x=200.0)), "fl_x is 200.0 of view 1 frame 0"),
    "own size": (first_view(lambda e: e.update(w=128)), "w is 128 of view 1 frame 0"),
    "mirrored": (frames(negate_column), r"frames\[0\] mirrors \(its determinant is -1\)"),
    "scaled": (frames(rescale(3)), "scales or shears"),
    "slightly scaled": (frames(rescale(1.01)), "scales or shears"),
    "zero": (frames(rescale(0)), "scales or shears"),
    "huge": (frames(lambda e: e["transform_matrix"][0].__setitem__(3, 1e29)), "further than 1e"),
    "bottom row": (frames(lambda e: e["transform_matrix"][3].__setitem__(0, 0.5)), "has the last row"),
    "bool": (frames(lambda e: e["transform_matrix"][3].__setitem__(3, True)), "other than numbers"),
    "text": (frames(lambda e: e["transform_matrix"][3].__setitem__(3, "1")), "other than numbers"),
    "half a frame": (lambda m: m["frames"][0].update(frame=0.5), r"'frame' is 0.5 in frames\[0\]; give a whole number"),
    "endless view": (lambda m: m["frames"][0].update(view=float("inf")), "'view' is inf"),
    "a view of many": (lambda m: m["frames"][0].update(view=10**12), "view 0 frame 0 is missing from the"),
    "w": (lambda m: m.update(w=float("-inf")), "'w' is -inf"),
    "w and h": (lambda m: m.update(w=10**6, h=10**6), "w x h is 1000000 x 1000000; at most"),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_what_changes_the_camera_is_refused_by_name(folder: Path, name: str) -> None:
    change, message = CAMERAS[name]
    edit(folder, change)
    with pytest.raises(UserError, match=message) as caught:
        read_clip(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_keys_that_repeat_others_pass(folder: Path) -> None:
    def change(meta: dict) -> None:
        meta |= {"fl_x": round(FOCAL, 3), "fl_y": round(FOCAL, 3), "cx": SIZE / 2, "cy": SIZE / 2}
        meta |= {"camera_angle_y": math.pi / 4, "k1": 0.0, "k2": 0, "k3": None, "distortion_params": [0.0] * 6}
        meta |= {"camera_model": "pinhole", "rolling_shutter": [0, 0, 0, 0]}
        for entry in meta["frames"]:
            entry |= {"fl_x": FOCAL, "w": SIZE, "h": SIZE, "k1": 0}

    edit(folder, change)
    assert read_clip(folder).fovy_deg == pytest.approx(45)


# ---- paths ----------------------------------------------------------------------------------------------------------


def first_frame_is(name: str, meta: dict) -> None:
    meta["frames"][0].update(file_path=name)


def test_pictures_outside_the_folder_are_read_only_where_that_is_allowed(folder: Path) -> None:
    outside = folder.with_name("outside.png")
    Image.open(folder / "rgba" / "v00_f00.png").save(outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "way").symlink_to(folder.parent)
    (folder / "inside.png").symlink_to(folder / "rgba" / "v00_f00.png")
    for name in ("../outside.png", str(outside), "link.png", "rgba/../../outside", "way/outside.png"):
        edit(folder, partial(first_frame_is, name))
        with pytest.raises(UserError, match="lies outside the clip's folder.*copy the pictures"):
            read_clip(folder)
        assert torch.equal(read_clip(folder, allow_outside=True).rgba, truth().rgba)
    for name in ("inside.png", "rgba/../rgba/v00_f00.png", "./rgba/v00_f00"):
        edit(folder, partial(first_frame_is, name))
        assert torch.equal(read_clip(folder).rgba, truth().rgba)
    linked = folder.with_name("linked")
    linked.symlink_to(folder)
    assert torch.equal(read_clip(linked).rgba, truth().rgba)  # the folder itself may be a link


@pytest.mark.parametrize("name", ["", 3, None, ["a"], "a\0b", "\ud800.png", "\x1b[31m.png", "x" * 5000, ".", "rgba"])
def test_what_is_no_file_path_is_one_line(folder: Path, name: object) -> None:
    edit(folder, lambda meta: meta["frames"][0].update(file_path=name))
    with pytest.raises(UserError) as caught:
        read_clip(folder)
    assert str(caught.value).isprintable()


def test_depth_stays_inside_too(tmp_path: Path) -> None:
    clip = truth()
    clip.depth = torch.ones(VIEWS, FRAMES, SIZE, SIZE)
    write_clip(tmp_path / "deep", clip)
    (tmp_path / "d.png").write_bytes((tmp_path / "deep" / "depth" / "v00_f00.png").read_bytes())
    edit(tmp_path / "deep", lambda meta: meta["frames"][0].update(depth_file_path="../d.png"))
    with pytest.raises(UserError, match="depth_file_path '../d.png' lies outside"):
        read_clip(tmp_path / "deep")


# ---- hostile files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ('{"a":' * 100_000, "nested too deeply|not valid JSON"),
        ('{"w": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"frames": [{"time": 1e999}]}', "missing:"),
        ('{"frames": 3}', "'frames' is not a list"),
        ('{"frames": [3]}', "'frames' is not a list"),
        ("\xff\xfe", "not valid JSON|'frames' is not"),
        ("3", "holds a int, not an object"),
    ],
)
def test_hostile_json_is_one_line(folder: Path, text: str, message: str) -> None:
    (folder / "transforms.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message) as caught:
        read_clip(folder)
    assert str(caught.value).isprintable()


def test_numbers_of_many_digits_are_refused(folder: Path) -> None:
    edit(folder, lambda meta: meta["frames"][0]["transform_matrix"][0].__setitem__(0, 10**400))
    with pytest.raises(UserError, match="not finite"):
        read_clip(folder)
    edit(folder, lambda meta: meta["frames"][0].update(time=10**400))
    with pytest.raises(UserError, match="'time' is a number of very many digits"):
        read_clip(folder)


def test_what_is_no_file_or_too_large_is_not_read(folder: Path) -> None:
    path = folder / "transforms.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="transforms.json: is a pipe, not a file"):
        read_clip(folder)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**27)  # a hole: takes no room
    with pytest.raises(UserError, match="has 134217728 bytes, at most 67108864 are read"):
        read_clip(folder)


def test_control_characters_do_not_reach_the_terminal(folder: Path) -> None:
    edit(folder, lambda meta: meta.update(camera_model="\x1b[2J\nPINHOLE"))
    with pytest.raises(UserError) as caught:
        read_clip(folder)
    assert str(caught.value).isprintable() and "x1b" in str(caught.value)
    edit(folder, lambda meta: (meta.pop("camera_model"), meta.update(caption="a \x1b[2Jbox\n")))
    assert read_clip(folder).caption == "a  [2Jbox "
