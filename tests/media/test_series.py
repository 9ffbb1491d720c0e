"""Which files of a folder or glob are the frames of one video."""

from pathlib import Path

import pytest

from fourdiffusion.errors import UserError
from fourdiffusion.media.series import find_source


def folder(path: Path, *names: str) -> str:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return str(path)


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_numbers_order_the_frames(tmp_path: Path) -> None:
    source = find_source(folder(tmp_path / "a", "f_10.png", "f_9.png", "f_1.JPG", "notes.txt", ".f_2.png"))
    assert names(source.files) == ["f_1.JPG", "f_9.png", "f_10.png"] and source.masks == [] and source.warnings == []
    assert names(find_source(folder(tmp_path / "b", "b.png", "a.png", "c.png")).files) == ["a.png", "b.png", "c.png"]
    dated = [f"shot 2024-01-31 10-{minute:02}-{second:02}.png" for minute, second in ((1, 59), (2, 0), (2, 1))]
    assert names(find_source(folder(tmp_path / "c", *dated)).files) == dated


@pytest.mark.parametrize(
    "mask", ["{}_mask.png", "mask_{}.png", "{}.mask.png", "{}-alpha.png", "seg{}.png", "{}_Segmentation.png"]
)
def test_masks_beside_the_frames_are_paired(tmp_path: Path, mask: str) -> None:
    numbers = ["000", "001", "010"]
    source = find_source(folder(tmp_path, *[f"{n}.png" for n in numbers], *[mask.format(n) for n in numbers]))
    assert names(source.files) == [f"{n}.png" for n in numbers]
    assert names(source.masks) == [mask.format(n) for n in numbers]


def test_depth_beside_the_frames_is_left_out_with_a_word(tmp_path: Path) -> None:
    source = find_source(folder(tmp_path, "0.png", "1.png", "0_depth.png", "1_depth.png"))
    assert names(source.files) == ["0.png", "1.png"] and source.masks == []
    assert source.warnings == ["left out: 2 files such as 0_depth.png"]
    depth = find_source(str(tmp_path / "*_depth.png"))  # asked for
    assert names(depth.files) == ["0_depth.png", "1_depth.png"] and depth.warnings == []


@pytest.mark.parametrize(
    "files, message",
    [
        (["left_0.png", "left_1.png", "right_0.png", "right_1.png"], r"several series.*left_0.*right_0.*left_\*.png"),
        (["0.png", "1.png", "0.jpg", "1.jpg"], "several series of pictures"),
        (["0.png", "1.png", "cover.png"], "several series of pictures"),
        ([f"v0{v}_f0{f}.png" for v in range(2) for f in range(3)], r"2 x 3 pictures, several views.*v00_f\*.png"),
        (["0.png", "1.png", "0_mask.png"], "2 frames and 1 masks whose numbers do not pair.*mask="),
        (["0.png", "1.png", "1_mask.png", "2_mask.png"], "2 frames and 2 masks whose numbers do not pair"),
        (["0.png", "0_mask.png", "1.png", "1_mask.png", "0_alpha.png", "1_alpha.png"], "2 frames and 4 masks"),
        (["images/0.png", "masks/0.png"], r"holds no image \(its folders: images, masks\)"),
        (["transforms.json", "0.png"], r"holds a clip of several views: give one, for example .*v00_\*.png"),
        (["clip-1/transforms.json", "clip-2/transforms.json"], r"folder of 2 clips.*clip-1/rgba/v00_\*.png"),
    ],
)
def test_what_is_not_one_series_is_asked_about(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_source(folder(tmp_path / "in", *files))
    assert "\n" not in str(caught.value)


def test_a_view_of_a_clip_is_one_series(tmp_path: Path) -> None:
    folder(tmp_path, *[f"v0{v}_f0{f}.png" for v in range(2) for f in range(3)])
    assert names(find_source(str(tmp_path / "v01_*.png")).files) == [f"v01_f0{f}.png" for f in range(3)]
    assert names(find_source(str(tmp_path / "v*_f02.png")).files) == ["v00_f02.png", "v01_f02.png"]
