"""Every layout that ``open_views`` knows is read with the right pictures, cameras and times, or refused by name."""

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import Clip, write_clip
from fourdiffusion.datasets.readers import open_views
from fourdiffusion.errors import UserError

VIEWS, FRAMES, SIZE = 4, 3, 32
AZIMUTHS = [10.0, 100.0, 190.0, 280.0]


def color(view: int, frame: int) -> tuple[int, int, int]:
    """A flat color that tells view and frame, also after a lossy codec."""
    return 40 + 50 * view, 40 + 70 * frame, 200 - 40 * view


def picture(view: int, frame: int, alpha: int = 255) -> Image.Image:
    return Image.new("RGBA", (SIZE, SIZE), (*color(view, frame), alpha))


def write_frames(folder: Path, prefix: str, ending: str = "png", views: int = VIEWS, frames: int = FRAMES) -> Path:
    for v in range(views):
        place = folder / f"{prefix}{v}"
        place.mkdir(parents=True)
        for f in range(frames):
            picture(v, f).save(place / f"{f + 9}.{ending}")  # 9, 10, 11: text order is another one
    return folder


def write_videos(folder: Path, views: int = VIEWS, frames: int = FRAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for v in range(views):
        pixels = np.stack([np.asarray(picture(v, f).convert("RGB")) for f in range(frames)])
        imageio.imwrite(folder / f"view_{v}.mp4", pixels, fps=8, codec="libx264", macro_block_size=1)
    return folder


def check_pictures(path: Path, tolerance: int = 0, views: int = VIEWS, **cameras_given: object) -> None:
    grid = open_views(path, **cameras_given).pictures  # type: ignore[arg-type]
    assert grid.shape == (views, FRAMES, 4, SIZE, SIZE)
    for v in range(views):
        for f in range(FRAMES):
            seen = grid[v, f].float().mean((1, 2))
            assert seen[:3].tolist() == pytest.approx(color(v, f), abs=tolerance), (v, f)
            assert seen[3] == 255
    assert torch.equal(grid[1, [2, 0]], torch.stack([grid[1, 2], grid[1, 0]]))


def check_circle(path: Path, azimuths: list[float], elevation: float, radius: float, **given: object) -> None:
    c2w = open_views(path, **given).c2w  # type: ignore[arg-type]
    expected = cameras.orbit(torch.tensor(azimuths), elevation, radius)
    torch.testing.assert_close(c2w, expected, atol=1e-5, rtol=0)


def clip() -> Clip:
    rgba = torch.stack(
        [torch.stack([torch.from_numpy(np.array(picture(v, f))) for f in range(FRAMES)]) for v in range(4)]
    )
    times = torch.tensor([0.0, 0.25, 1.0])
    c2w = cameras.orbit(torch.tensor(AZIMUTHS), 10.0)
    return Clip("one", rgba.permute(0, 1, 4, 2, 3).contiguous(), c2w, 45.0, times, "a box", "cc0", "test", author="me")


def write_clip_edited(folder: Path, change: object = None) -> Path:
    write_clip(folder, clip())
    meta = json.loads((folder / "transforms.json").read_text())
    if callable(change):
        change(meta)
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


# ---- transforms.json ------------------------------------------------------------------------------------------------


def test_a_clip_of_this_project(tmp_path: Path) -> None:
    folder = write_clip_edited(tmp_path / "one")
    check_pictures(folder)
    found = open_views(folder)
    assert torch.equal(found.c2w, clip().c2w) and found.times.tolist() == [0.0, 0.25, 1.0]
    assert (found.uid, found.caption, found.author) == ("one", "a box", "me")
    with pytest.raises(UserError, match="azimuths_deg given, but its transforms.json holds the cameras"):
        open_views(folder, azimuths_deg=AZIMUTHS)


def test_nerfstudio_masks_become_alpha(tmp_path: Path) -> None:
    def change(meta: dict) -> None:
        for entry in meta["frames"]:
            entry["mask_path"] = entry["file_path"].replace("rgba", "masks")
            del entry["view"], entry["frame"]

    folder = write_clip_edited(tmp_path / "one", change)
    (folder / "masks").mkdir()
    for file in (folder / "rgba").iterdir():
        mask = Image.new("L", (SIZE, SIZE), 0)
        mask.paste(255, (0, 0, SIZE // 2, SIZE))
        mask.save(folder / "masks" / file.name)
    alpha = open_views(folder).pictures[2, 1][3]
    assert (alpha[:, : SIZE // 2] == 255).all() and (alpha[:, SIZE // 2 :] == 0).all()
    meta = json.loads((folder / "transforms.json").read_text())
    del meta["frames"][3]["mask_path"]
    (folder / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="some of its frames have a 'mask_path' and some none"):
        open_views(folder)


# ---- Diffuman4D -----------------------------------------------------------------------------------------------------


def write_diffuman4d(folder: Path, ending: str = "webp") -> Path:
    entries = []
    for v, label in enumerate(["07", "01", "33", "48"]):
        for kind in ("images", "fmasks"):
            (folder / kind / label).mkdir(parents=True)
        for f in range(FRAMES):
            picture(v, f).convert("RGB").save(folder / f"images/{label}/{f:06d}.{ending}", lossless=True)
            Image.new("L", (SIZE, SIZE), 255).save(folder / f"fmasks/{label}/{f:06d}.png")
        focal = SIZE / 2 / np.tan(np.pi / 6)
        entries.append(
            {"camera_label": label, "file_path": f"images/{label}/000000.{ending}", "w": SIZE, "h": SIZE}
            | {"fl_x": focal, "fl_y": focal, "cx": SIZE / 2, "cy": SIZE / 2}
            | {"transform_matrix": cameras.orbit(AZIMUTHS[v], 5.0, 3.0).tolist()}
        )
    (folder / "transforms.json").write_text(json.dumps({"frames": entries}))
    return folder


def test_diffuman4d(tmp_path: Path) -> None:
    folder = write_diffuman4d(tmp_path / "dance")
    check_pictures(folder)
    check_circle(folder, AZIMUTHS, 5.0, 3.0)
    found = open_views(folder)
    assert found.times.tolist() == [0.0, 0.5, 1.0] and found.fovy_deg == pytest.approx(60, abs=1e-3)
    Image.new("L", (SIZE, SIZE), 0).save(folder / "fmasks/33/000001.png")
    assert open_views(folder).pictures[2, 1][3].max() == 0


def test_what_diffuman4d_files_say_that_a_clip_cannot_is_refused(tmp_path: Path) -> None:
    folder = write_diffuman4d(tmp_path / "dance")
    meta = json.loads((folder / "transforms.json").read_text())

    def refused(key: str, value: object, message: str) -> None:
        changed = json.loads(json.dumps(meta))
        changed["frames"][2][key] = value
        (folder / "transforms.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            open_views(folder)

    refused("cx", 10.0, "cx is 10.0 of view 2 .* the middle is 16")
    refused("fl_x", 99.0, "fl_y is .* fl_x gives 99")
    refused("k1", 0.1, "k1 is 0.1 of view 2")
    refused("camera_label", "../07", "camera_label of frames.2. is '../07'")
    refused("camera_label", "55", r"images/55: holds no picture")
    (folder / "transforms.json").write_text(json.dumps(meta))
    (folder / "fmasks/33/000002.png").unlink()
    with pytest.raises(UserError, match="fmasks/33 lacks a mask of frame 000002"):
        open_views(folder)
    (folder / "images/33/000002.webp").unlink()
    with pytest.raises(UserError, match="images/33: its 2 frames are not those of the first camera"):
        open_views(folder)


# ---- separate views -------------------------------------------------------------------------------------------------


def test_consistent4d_evaluation_layout(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "aurorus", "eval_")
    (folder / "input").mkdir()
    picture(0, 0).save(folder / "input/0.png")
    check_pictures(folder)
    check_circle(folder, [-75, 15, 105, 195], 0, 2.0)
    found = open_views(folder)
    assert found.fovy_deg == 49.1 and found.uid == "aurorus" and found.times.tolist() == [0, 0.5, 1]
    check_circle(folder, AZIMUTHS, 0, 2.0, azimuths_deg=AZIMUTHS)


def test_mv_video_layout_with_and_without_its_list(tmp_path: Path) -> None:
    folder = write_videos(tmp_path / "videos" / "0a1b" / "00")
    for place in (folder, folder.parent):
        check_pictures(place, tolerance=6)
    check_circle(folder, [0, 90, 180, 270], 0, cameras.DISTANCE)
    assert open_views(folder).uid == "0a1b"
    other = {
        "data_path": ["/far/videos/9999/00/view_0.mp4"],
        "text_prompt": "a cat",
        "angle": {"elv": 1, "azi_start": 2},
    }
    entry = {
        "data_path": [f"/far/videos/0a1b/00/view_{k}.mp4" for k in range(4)],
        "text_prompt": "a running horse",
        "angle": {"elv": 12.0, "azi_start": 30.0},
    }
    (tmp_path / "train.json").write_text(json.dumps([other, entry]))
    check_circle(folder, [30, 120, 210, 300], 12.0, cameras.DISTANCE)
    assert open_views(folder).caption == "a running horse"
    check_circle(folder, [30, 120, 210, 300], 12.0, 2.0, distance=2.0)
    (folder.parent / "01").mkdir()
    with pytest.raises(UserError, match=r"0a1b holds 2 animations \(00, 01\): give one of these folders"):
        open_views(folder.parent)


def test_videos_with_azimuths_given(tmp_path: Path) -> None:
    """SV4D 2.0 makes five views at 0, 60, 120, 180, 240."""
    folder = write_videos(tmp_path / "sv4d", views=5)
    azimuths = [0.0, 60, 120, 180, 240]
    check_circle(folder, azimuths, 8.0, 2.0, azimuths_deg=azimuths, elevation_deg=8.0, distance=2.0, fovy_deg=33.8)
    found = open_views(folder, azimuths_deg=azimuths, fovy_deg=33.8)
    assert found.fovy_deg == 33.8 and found.pictures.shape[:2] == (5, FRAMES)
    with pytest.raises(UserError, match="positions of its 5 cameras .* are unknown: give azimuths_deg"):
        open_views(folder)
    with pytest.raises(UserError, match="azimuths_deg has 4 values for 5 views"):
        open_views(folder, azimuths_deg=AZIMUTHS)


def test_frames_with_a_camera_file(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "cat", "view_")
    file = folder / "cameras.json"
    texts = {"caption": "a cat", "license": "CC-BY", "author": "me", "source": "here", "times": [0, 0.3, 0.9]}
    file.write_text(json.dumps({"azimuths_deg": AZIMUTHS, "elevation_deg": [0, 10, 20, 30], "distance": 1.5} | texts))
    check_pictures(folder)
    found = open_views(folder)
    expected = cameras.orbit(torch.tensor(AZIMUTHS), torch.tensor([0.0, 10, 20, 30]), 1.5)
    torch.testing.assert_close(found.c2w, expected)
    assert found.times.tolist() == pytest.approx([0, 0.3, 0.9])
    assert (found.caption, found.license, found.author, found.source) == ("a cat", "CC-BY", "me", "here")
    file.write_text(json.dumps({"c2w": cameras.orbit(torch.tensor(AZIMUTHS), 3.0).tolist(), "fovy_deg": 30}))
    check_circle(folder, AZIMUTHS, 3.0, cameras.DISTANCE)
    assert open_views(folder).fovy_deg == 30
    with pytest.raises(UserError, match="cameras.json holds the cameras, and distance given"):
        open_views(folder, distance=2.0)


BAD_CAMERAS = {
    "times fall": ({"azimuths_deg": AZIMUTHS, "times": [0, 0.9, 0.3]}, "times must lie in"),
    "too few times": ({"azimuths_deg": AZIMUTHS, "times": [0, 1]}, "times is not a list of 3 numbers"),
    "text": ({"azimuths_deg": ["a", 1, 2, 3]}, "azimuths_deg is a; give a number"),
    "pole": ({"azimuths_deg": AZIMUTHS, "elevation_deg": 90}, "elevation_deg is 90.* below 90"),
    "angle": ({"azimuths_deg": AZIMUTHS, "fovy_deg": 200}, "fovy_deg is 200"),
    "shape": ({"c2w": [[1, 2], [3, 4]]}, r"c2w is \(2, 2\)"),
    "scaled": ({"c2w": (2 * torch.eye(4)).expand(4, 4, 4).tolist()}, "a matrix of c2w is not a camera"),
    "mirrored": ({"c2w": torch.diag(torch.tensor([-1.0, 1, 1, 1])).expand(4, 4, 4).tolist()}, "is not a camera"),
    "both": ({"c2w": torch.eye(4).expand(4, 4, 4).tolist(), "azimuths_deg": AZIMUTHS}, "c2w and azimuths_deg"),
}


@pytest.mark.parametrize("case", BAD_CAMERAS)
def test_a_camera_file_that_cannot_be_is_refused(tmp_path: Path, case: str) -> None:
    folder = write_frames(tmp_path / "cat", "view_")
    content, message = BAD_CAMERAS[case]
    (folder / "cameras.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        open_views(folder)
    assert "\n" not in str(caught.value)


def test_views_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "cat", "eval_")
    (folder / "eval_2/10.png").unlink()
    with pytest.raises(UserError, match="view 2 has 2 frames, view 0 has 3"):
        open_views(folder)
    folder = write_frames(tmp_path / "dog", "eval_")
    Image.new("RGBA", (8, 8)).save(folder / "eval_2/10.png")
    with pytest.raises(UserError, match="10.png: is 8 x 8"):
        open_views(folder).pictures[2, 1]
    write_frames(tmp_path / "dog", "view_")
    write_frames(tmp_path / "two", "view_")
    write_frames(tmp_path / "two", "mask_")
    with pytest.raises(UserError, match="holds several sets of views .4 of mask_<k>, 4 of view_<k>"):
        open_views(tmp_path / "two")
    folder = write_frames(tmp_path / "three", "eval_", views=3)
    with pytest.raises(UserError, match="azimuths_deg has 4 values for 3 views|positions of its 3 cameras"):
        open_views(folder)


def test_no_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_views(tmp_path / "none")
    with pytest.raises(UserError, match="holds no views; a clip is a folder with transforms.json, view_<k>.mp4"):
        open_views(tmp_path)
