"""The clip format, its errors, and `data synth` that writes it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fourdiffusion.cameras import orbit
from fourdiffusion.datasets.clips import Clip, list_clips, opaque_clip, open_clip, read_caption, read_clip, write_clip
from fourdiffusion.datasets.synthetic import TEST_SEED_START
from fourdiffusion.errors import UserError
from fourdiffusion.prepare.settings import SynthConfig
from fourdiffusion.prepare.synth import make_clip, rig_azimuths, synth

pytestmark = pytest.mark.slow


def small_clip(views: int = 2, frames: int = 3, size: int = 8) -> Clip:
    generator = torch.Generator().manual_seed(0)
    rgba = torch.randint(0, 256, (views, frames, 4, size, size), generator=generator, dtype=torch.uint8)
    depth = torch.rand(views, frames, size, size, generator=generator) + 0.6
    depth[0, 0, 0] = torch.inf
    return Clip(
        "one", rgba, orbit(torch.arange(views) * 90.0), 45.0, torch.linspace(0, 1, frames), "a", "b", "c", depth
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clip(tmp_path / "one", small_clip())
    return tmp_path / "one"


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    meta = json.loads((folder / "transforms.json").read_text())
    change(meta)
    (folder / "transforms.json").write_text(json.dumps(meta))


def test_round_trip(folder: Path) -> None:
    wrote, read = small_clip(), read_clip(folder)
    assert torch.equal(read.rgba, wrote.rgba) and read.rgba.dtype == torch.uint8
    assert torch.equal(read.c2w, wrote.c2w)
    assert torch.equal(read.times, wrote.times)
    assert read.fovy_deg == pytest.approx(45.0)
    assert (read.uid, read.caption, read.license, read.source) == ("one", "a", "b", "c")
    assert read.depth is not None and wrote.depth is not None
    torch.testing.assert_close(read.depth, wrote.depth, atol=6e-5, rtol=0)


def test_a_wide_clip_keeps_its_vertical_field_of_view(tmp_path: Path) -> None:
    clip = small_clip()
    clip.rgba, clip.depth = clip.rgba[..., :4, :].contiguous(), None
    write_clip(tmp_path / "wide", clip)
    read = read_clip(tmp_path / "wide")
    assert read.fovy_deg == pytest.approx(45.0) and read.rgba.shape[-2:] == (4, 8) and read.depth is None
    assert json.loads((tmp_path / "wide" / "transforms.json").read_text())["camera_angle_x"] > 1.3


def test_an_image_without_alpha_is_opaque(folder: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "rgba" / "v00_f00.png")
    assert read_clip(folder).rgba[0, 0, :, 0, 0].tolist() == [1, 2, 3, 255]


def test_unnamed_depth_means_no_depth(folder: Path) -> None:
    edit(folder, lambda meta: [entry.pop("depth_file_path") for entry in meta["frames"][:1]])
    assert read_clip(folder).depth is None


BAD_META = {
    "camera_angle_x": (lambda m: m.pop("camera_angle_x"), r"missing: 'camera_angle_x' \(or 'fl_x'\); add"),
    "angle range": (lambda m: m.update(camera_angle_x=45), "radians"),
    "caption": (lambda m: m.update(caption=3), "'caption' is 3; give a text"),
    "half a character": (lambda m: m.update(caption="a \ud800"), r"'caption' is 'a \\ud800', which holds half"),
    "frames": (lambda m: m.update(frames=[]), "'frames' is not"),
    "view": (lambda m: m["frames"][4].pop("view"), r"missing: 'view' in frames\[4\]; add"),
    "time": (lambda m: m["frames"][1].pop("time"), r"missing: 'time' in frames\[1\]; add"),
    "unequal grid": (lambda m: m["frames"].pop(), "view 1 frame 2 is missing from the 2 x 3 grid"),
    "twice": (lambda m: m["frames"].append(m["frames"][0]), "view 0 frame 0 appears twice"),
    "matrix": (lambda m: m["frames"][0].update(transform_matrix=[[1.0]]), "not 4 x 4"),
    "ragged matrix": (lambda m: m["frames"][0].update(transform_matrix=[[1.0], [1.0, 2.0]]), "not 4 x 4"),
    "text for a matrix": (lambda m: m["frames"][0].update(transform_matrix="eye"), "not a matrix"),
    "moving camera": (lambda m: m["frames"][1]["transform_matrix"][0].__setitem__(3, 9.0), "moves at frame 1"),
    "flat": (lambda m: m.update(h=0), "'h' is 0; w and h are"),
    "endless matrix": (lambda m: m["frames"][0]["transform_matrix"][0].__setitem__(0, float("nan")), "not finite"),
    "falling time": (lambda m: [e.update(time=1 - e["time"]) for e in m["frames"]], "rise"),
    "time nan": (lambda m: [e.update(time=float("nan")) for e in m["frames"]], r"'time' is nan in frames\[0\]"),
    "time range": (lambda m: m["frames"][0].update(time=2.0), r"in \[0, 1\]"),
    "not simultaneous": (lambda m: m["frames"][4].update(time=0.9), "simultaneous"),
    "size": (lambda m: m.update(w=9), r"8 x 8, transforms.json \(or the first\) says 9 x 8"),
    "depth unit": (lambda m: m.pop("depth_unit"), "missing: 'depth_unit'"),
    "depth unit below 0": (lambda m: m.update(depth_unit=-0.001), "'depth_unit' is -0.001; give scene units"),
    "text number": (lambda m: m.update(w="wide"), "'w' is 'wide'"),
    "text time": (lambda m: m["frames"][0].update(time="noon"), "'time' is 'noon'"),
    "negative view": (lambda m: m["frames"][0].update(view=-1), "numbered from 0"),
}


@pytest.mark.parametrize("name", BAD_META)
def test_bad_metadata_is_one_clear_error(folder: Path, name: str) -> None:
    change, message = BAD_META[name]
    edit(folder, change)
    with pytest.raises(UserError, match=message) as caught:
        read_clip(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_broken_files(folder: Path) -> None:
    image = folder / "rgba" / "v01_f02.png"
    whole = image.read_bytes()
    for content in (b"no image", whole[: len(whole) // 2]):
        image.write_bytes(content)
        with pytest.raises(UserError, match="v01_f02.png: not a readable image"):
            read_clip(folder)
    image.unlink()
    with pytest.raises(UserError, match="v01_f02.png: missing"):
        read_clip(folder)
    for text, message in (("{", "not valid JSON"), ("[]", "not an object")):
        (folder / "transforms.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_clip(folder)
    (folder / "transforms.json").unlink()
    with pytest.raises(UserError, match="transforms.json: missing"):
        read_clip(folder)
    with pytest.raises(UserError, match="no such folder"):
        read_clip(folder / "nowhere")


def test_the_license_and_the_author_are_written_and_the_former_spelling_is_read(folder: Path) -> None:
    meta = json.loads((folder / "transforms.json").read_text())
    assert meta["license"] == "b" and "licence" not in meta and "author" not in meta
    edit(folder, lambda m: m.update(licence=m.pop("license")))
    assert read_clip(folder).license == "b"
    edit(folder, lambda m: m.pop("licence"))
    assert read_clip(folder).license == "unknown"
    clip = small_clip()
    clip.author = "A. N. Other"
    write_clip(folder.with_name("two"), clip)
    assert read_clip(folder.with_name("two")).author == "A. N. Other"


def test_pictures_are_opened_one_by_one(folder: Path) -> None:
    """An open clip reads what is asked for alone: other pictures may be damaged."""
    whole = small_clip().rgba
    clip = open_clip(folder)
    (folder / "rgba" / "v01_f02.png").write_bytes(b"no image")
    assert clip.pictures.shape == whole.shape and len(clip.c2w) == 2 and len(clip.times) == 3
    assert torch.equal(clip.pictures[0, 2], whole[0, 2])
    assert torch.equal(clip.pictures[0, :], whole[0])
    assert torch.equal(clip.pictures[:, 1], whole[:, 1])
    assert torch.equal(clip.pictures[[1, 0], 0:2], whole[[1, 0], 0:2])
    assert torch.equal(clip.pictures[-1, [1, 1, 0]], whole[-1, [1, 1, 0]])
    with pytest.raises(UserError, match="v01_f02.png: not a readable image"):
        _ = clip.pictures[1, 2]
    with pytest.raises(IndexError, match="index 3 lies outside 0..2"):
        _ = clip.pictures[0, 3]


def test_a_missing_picture_is_found_before_any_is_decoded(folder: Path) -> None:
    (folder / "rgba" / "v01_f02.png").unlink()
    with pytest.raises(UserError, match="v01_f02.png: missing; transforms.json names it"):
        open_clip(folder)


def test_a_caption_is_read_without_pictures(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()
    assert read_caption(folder) == "a"


def test_depth_of_8_bits_is_refused(folder: Path) -> None:
    Image.new("L", (8, 8), 9).save(folder / "depth" / "v00_f01.png")
    with pytest.raises(UserError, match="v00_f01.png: not a readable image .it is L, a depth file is 16-bit gray"):
        read_clip(folder)


def test_an_opaque_clip_keeps_the_times_it_is_given() -> None:
    rgb, c2w = torch.rand(2, 3, 3, 4, 4), orbit(torch.tensor([0.0, 90.0]))
    assert opaque_clip("a", rgb, c2w, 45.0, "", "").times.tolist() == [0, 0.5, 1]
    times = torch.tensor([0.0, 0.2, 1.0])
    assert torch.equal(opaque_clip("a", rgb, c2w, 45.0, "", "", times).times, times)


def test_a_clip_and_a_folder_of_clips_are_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(folder.with_name("two"), small_clip())
    with pytest.raises(UserError, match=r"is a folder of 2 clips \(one, two\): give one of them"):
        read_clip(folder.parent)
    assert list_clips(folder) == [folder]
    monkeypatch.setenv("HOME", str(folder.parent))
    assert read_clip(Path("~/one")).uid == "one" and list_clips(Path("~")) == [folder, folder.with_name("two")]
    monkeypatch.chdir(folder)
    assert read_clip(Path(".")).uid == "one"


def test_list_clips(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no clip"):
        list_clips(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        list_clips(tmp_path / "nowhere")
    for name in ("b", "a"):
        write_clip(tmp_path / name, small_clip())
    (tmp_path / "c.partial").mkdir()
    (tmp_path / "c.partial" / "transforms.json").write_text("{}")
    assert [p.name for p in list_clips(tmp_path)] == ["a", "b"]


def test_writing_is_atomic_and_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", broken)
        with pytest.raises(KeyboardInterrupt):
            write_clip(tmp_path / "one", small_clip())
    assert not (tmp_path / "one").exists()
    write_clip(tmp_path / "one", small_clip())  # sweeps the half-written folder away
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
    with pytest.raises(UserError, match="exists already"):
        write_clip(tmp_path / "one", small_clip())


def test_write_checks_its_arguments(tmp_path: Path) -> None:
    clip = small_clip()
    clip.times = clip.times[:2]
    with pytest.raises(ValueError, match="times"):
        write_clip(tmp_path / "one", clip)
    clip.rgba = clip.rgba.float()
    with pytest.raises(ValueError, match="uint8"):
        write_clip(tmp_path / "one", clip)
    assert not any(tmp_path.iterdir())


# data synth


def config(folder: Path, **changes: object) -> SynthConfig:
    settings: dict = dict(num_clips=3, num_views=4, num_frames=2, size=16, depth=True)
    return SynthConfig(**({"output": str(folder)} | settings | changes))


def files(root: Path) -> dict[str, bytes]:
    found = (p for p in sorted(root.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


def test_two_workers_write_what_one_writes(tmp_path: Path) -> None:
    synth(config(tmp_path / "one"))
    synth(config(tmp_path / "two", num_workers=2))
    one = files(tmp_path / "one")
    assert len(one) == 1 + 3 * (1 + 4 * 2 * 2) and one == files(tmp_path / "two")
    clip = read_clip(list_clips(tmp_path / "one")[1])
    assert clip.uid == "synthetic-0000001" and clip.rgba.shape == (4, 2, 4, 16, 16)
    assert clip.depth is not None and torch.equal(clip.depth.isfinite(), clip.rgba[:, :, 3] > 0)
    assert torch.equal(clip.rgba, make_clip(config(tmp_path), 1).rgba)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synth(config(tmp_path / "whole"))
    written: list[str] = []

    def stop_at_the_second(folder: Path, clip: Clip) -> None:
        if written:
            (folder.with_name(f"{folder.name}.{2**22 + 1}.partial") / "rgba").mkdir(parents=True)
            raise KeyboardInterrupt
        written.append(clip.uid)
        write_clip(folder, clip)

    with monkeypatch.context() as patch:
        patch.setattr("fourdiffusion.prepare.synth.write_clip", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            synth(config(tmp_path / "cut"))
    kept = (tmp_path / "cut" / written[0] / "transforms.json").stat().st_mtime_ns
    synth(config(tmp_path / "cut"))
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert (tmp_path / "cut" / written[0] / "transforms.json").stat().st_mtime_ns == kept


def test_splits_share_no_seed(tmp_path: Path) -> None:
    synth(config(tmp_path, split="test", num_clips=1, rig="orbit", depth=False))
    assert [p.name for p in list_clips(tmp_path)] == [f"synthetic-{TEST_SEED_START:07d}"]
    with pytest.raises(UserError, match="reaches the test seeds"):
        synth(config(tmp_path / "no", first_seed=TEST_SEED_START - 2))


def test_a_folder_holds_clips_of_one_kind(tmp_path: Path) -> None:
    synth(config(tmp_path, num_clips=1))
    with pytest.raises(UserError, match="size=16"):
        synth(config(tmp_path, size=24))


def test_rigs() -> None:
    assert rig_azimuths("orbit", 8, 5).tolist() == [0, 45, 90, 135, 180, 225, 270, 315]
    sets = rig_azimuths("two_orthogonal", 8, 5)
    for quarter in (sets[:4], sets[4:]):
        torch.testing.assert_close((quarter - quarter[0]) % 360, torch.tensor([0.0, 90, 180, 270]), atol=1e-3, rtol=0)
    assert torch.equal(sets, rig_azimuths("two_orthogonal", 8, 5))
    assert not torch.equal(sets, rig_azimuths("two_orthogonal", 8, 6))
    assert float((sets[4] - sets[0]).abs() % 90) > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": ""}, "output is empty"),
        ({"split": "val"}, "split=val is unknown; choose one of train, test"),
        ({"rig": "ring"}, "rig=ring is unknown"),
        ({"num_clips": 0}, "num_clips=0 is too small"),
        ({"num_frames": 1}, "num_frames=1 is too small"),
        ({"size": 4}, "size=4 is too small"),
        ({"num_workers": 0}, "num_workers=0 is too small"),
        ({"num_views": 6}, "num_views=6 does not fit"),
        ({"elevation_deg": 90.0}, "elevation_deg=90.0"),
        ({"first_seed": -1}, "first_seed=-1 is negative"),
    ],
)
def test_bad_settings_write_nothing(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        synth(config(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        synth(config(tmp_path / "out"))
    with pytest.raises(UserError, match="cannot be made"):
        synth(config(tmp_path / "out" / "below"))
