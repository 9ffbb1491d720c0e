"""Videos in and out. Every input is drawn here, written as users have it, and read back."""

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from fourdiffusion.errors import UserError
from fourdiffusion.media.crop import OBJECT_SHARE
from fourdiffusion.media.image import composite
from fourdiffusion.media.read import choose_frames, load_video
from fourdiffusion.media.write import contact_sheet, write_image, write_video, write_views

HEIGHT, WIDTH = 72, 96
COLOUR = np.array([0.8, 0.25, 0.1])


def disc(frame: int, radius: float = 14.0) -> np.ndarray:
    """RGBA in [0, 1], [H, W, 4]: an orange disc with an antialiased edge that moves right by 3 pixels a frame."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distance = np.hypot(x - 24 - 3 * frame, y - 36)
    alpha = (radius + 0.5 - distance).clip(0, 1)[..., None]
    shade = COLOUR * (0.7 + 0.3 * (y / HEIGHT))[..., None]
    return np.concatenate([shade, alpha], axis=-1)


def rgba_frames(count: int) -> np.ndarray:  # uint8 [n, H, W, 4]
    return np.stack([(255 * disc(i)).round().astype(np.uint8) for i in range(count)])


def rgb_frames(count: int, background: float = 1.0) -> np.ndarray:  # uint8 [n, H, W, 3]
    drawn = np.stack([disc(i) for i in range(count)])
    return (255 * (drawn[..., :3] * drawn[..., 3:] + background * (1 - drawn[..., 3:]))).round().astype(np.uint8)


def save_folder(folder: Path, frames: np.ndarray, pattern: str = "{}.png") -> str:
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / pattern.format(i), quality=95)
    return str(folder)


def save_mp4(path: Path, frames: np.ndarray) -> str:
    write_video(path, torch.from_numpy(frames).permute(0, 3, 1, 2) / 255, min_side=1)
    return str(path)


def save_webm(path: Path, frames: np.ndarray, codec: str = "libvpx-vp9") -> str:
    """[n, H, W, 3 or 4]; four channels give a webm with transparency."""
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream(codec, rate=8, options={"crf": "10", "b": "4M", "auto-alt-ref": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuva420p" if frames.shape[-1] == 4 else "yuv420p"
        for frame in frames:
            kind = "rgba" if frames.shape[-1] == 4 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=kind).reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    return str(path)


def save_gif(path: Path, frames: np.ndarray, disposal: int = 2) -> str:
    """Transparent where alpha is under one half."""
    images = []
    for frame in frames:
        image = Image.fromarray(frame[..., :3]).quantize(255)
        image.paste(255, mask=Image.fromarray((frame[..., 3] < 128).astype(np.uint8) * 255))
        images.append(image)
    images[0].save(
        path, save_all=True, append_images=images[1:], transparency=255, disposal=disposal, duration=100, optimize=False
    )
    return str(path)


def reference(frames: np.ndarray, size: int = 48, tmp: Path | None = None) -> torch.Tensor:
    """What a folder of RGBA frames gives: the cleanest input, against which the others are held."""
    assert tmp is not None
    return load_video(save_folder(tmp / "reference", frames), len(frames), size).rgba


@pytest.mark.parametrize(
    "count, wanted, expected",
    [
        (32, 8, [0, 4, 8, 12, 16, 20, 24, 28]),
        (8, 8, list(range(8))),
        (30, 8, [0, 3, 7, 11, 15, 18, 22, 26]),
        (4, 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (2, 3, [0, 1, 1]),
        (5, 1, [0]),
    ],
)
def test_choice_of_frames(count: int, wanted: int, expected: list[int]) -> None:
    assert choose_frames(count, wanted) == expected


@pytest.mark.parametrize(
    "kind, way, tolerance",
    [
        ("rgba folder", "the file", 0.0),
        ("rgba glob", "the file", 0.0),
        ("rgb folder", "the plain background #ffffff", 0.03),
        ("jpeg folder", "the plain background", 0.06),
        ("mp4", "the plain background", 0.10),
        ("webm", "the plain background", 0.10),
        ("webm with alpha", "the file", 0.10),
        ("vp8 with alpha", "the file", 0.10),
        ("gif with alpha", "the file", 0.10),
        ("gif", "the plain background", 0.10),
        ("animated png", "the file", 0.0),
    ],
)
def test_every_kind_of_input_gives_the_object(tmp_path: Path, kind: str, way: str, tolerance: float) -> None:
    frames, plain = rgba_frames(6), rgb_frames(6)
    if kind in ("rgba folder", "rgba glob"):
        source = save_folder(tmp_path / "in", frames) + ("/*.png" if "glob" in kind else "")
    elif kind == "rgb folder":
        source = save_folder(tmp_path / "in", plain)
    elif kind == "jpeg folder":
        source = save_folder(tmp_path / "in", plain, "f{}.JPG")
    elif kind == "mp4":
        source = save_mp4(tmp_path / "in.mp4", plain)
    elif kind == "webm":
        source = save_webm(tmp_path / "in.webm", plain)
    elif kind in ("webm with alpha", "vp8 with alpha"):
        source = save_webm(tmp_path / "in.webm", frames, "libvpx" if "vp8" in kind else "libvpx-vp9")
    elif kind == "gif with alpha":
        source = save_gif(tmp_path / "in.gif", frames)
    elif kind == "gif":
        images = [Image.fromarray(frame) for frame in plain]
        images[0].save(tmp_path / "in.gif", save_all=True, append_images=images[1:], duration=100)
        source = str(tmp_path / "in.gif")
    else:
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(tmp_path / "in.png", save_all=True, append_images=images[1:], duration=100)
        source = str(tmp_path / "in.png")
    video = load_video(source, 6, 48)
    assert video.alpha_from.startswith(way)
    assert video.rgba.shape == (6, 4, 48, 48) and video.num_source_frames == 6
    assert video.rgba.min() >= 0 and video.rgba.max() <= 1
    expected = reference(frames, 48, tmp_path)
    alpha, colour = video.rgba[:, 3], composite(video.rgba)
    assert (alpha - expected[:, 3]).abs().mean() <= tolerance / 3 + 1e-6
    assert (colour - composite(expected)).abs().mean() <= tolerance / 3 + 1e-6
    interior = expected[:, 3] > 0.99
    assert alpha[interior].min() > 0.9
    centre_error = (video.rgba[:, :3].movedim(1, 0)[:, interior] - expected[:, :3].movedim(1, 0)[:, interior]).abs()
    assert centre_error.mean() <= tolerance + 1e-6


def test_frames_are_chosen_by_their_numbers(tmp_path: Path) -> None:
    """frame_10 comes after frame_9, also without leading zeros; the summary says what was chosen."""
    folder = save_folder(tmp_path / "in", rgba_frames(12), "frame_{}.png")
    (tmp_path / "in" / "notes.txt").write_text("no frame")
    video = load_video(folder, 4, 32)
    assert video.frame_indices == [0, 3, 6, 9] and video.num_source_frames == 12
    x = torch.arange(32) + 0.5
    centres = (video.rgba[:, 3] * x).sum((1, 2)) / video.rgba[:, 3].sum((1, 2))
    assert (centres.diff() > 0).all() and centres.diff().std() < 0.2  # the disc moves on evenly
    assert "of 12" in video.summary() and "the file" in video.summary()


def test_short_video_is_resampled(tmp_path: Path) -> None:
    video = load_video(save_folder(tmp_path / "in", rgba_frames(2)), 8, 16)
    assert video.frame_indices == [0] * 4 + [1] * 4 and video.rgba.shape[0] == 8


def test_gif_frames_that_are_disposed_leave_no_trail(tmp_path: Path) -> None:
    video = load_video(save_gif(tmp_path / "in.gif", rgba_frames(6)), 6, 64)
    areas = video.rgba[:, 3].sum((1, 2))
    assert areas.max() / areas.min() < 1.05
    kept = load_video(save_gif(tmp_path / "kept.gif", rgba_frames(6), disposal=1), 6, 64)
    areas = kept.rgba[:, 3].sum((1, 2))
    assert areas[-1] / areas[0] > 1.3  # "do not dispose" asks for the trail


def test_one_crop_holds_the_object_centred_in_all_frames(tmp_path: Path) -> None:
    """The union of all frames' boxes is centred and fills the share of the training data; the disc keeps its size."""
    video = load_video(save_folder(tmp_path / "in", rgba_frames(9)), 9, 100)
    shown = (video.rgba[:, 3] > 0.5).any(0)
    rows, columns = shown.any(1).nonzero().flatten(), shown.any(0).nonzero().flatten()
    width = columns[-1] - columns[0] + 1
    assert abs(width / 100 - OBJECT_SHARE) < 0.03
    assert abs((columns[0] + columns[-1] + 1) / 2 - 50) <= 1.5 and abs((rows[0] + rows[-1] + 1) / 2 - 50) <= 1.5
    areas = video.rgba[:, 3].sum((1, 2))
    assert areas.std() / areas.mean() < 0.01
    small = load_video(str(tmp_path / "in"), 9, 100, object_share=0.3)
    left, top, side = small.crop
    assert left < 0 and top < 0 and top + side > HEIGHT  # the crop reaches beyond the frame, it cuts nothing
    shown = (small.rgba[:, 3] > 0.5).any(0).any(0).nonzero().flatten()
    assert abs(len(shown) / 100 - 0.3) < 0.03 and abs((shown[0] + shown[-1] + 1) / 2 - 50) <= 1.5


def test_crop_of_the_whole_frame_keeps_the_picture(tmp_path: Path) -> None:
    """crop=frame of a square picture at its own size is the identity where there is anything to see."""
    frames = rgba_frames(3)[:, :, :HEIGHT]
    video = load_video(save_folder(tmp_path / "in", frames), 3, HEIGHT, crop="frame")
    expected = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(composite(video.rgba, 0.3), composite(expected, 0.3), atol=1e-5, rtol=0)
    wide = load_video(save_folder(tmp_path / "wide", rgba_frames(3)), 3, 96, crop="frame")
    assert wide.crop == (0, -12, 96) and wide.rgba[:, 3, :12].max() == 0


def test_hidden_colours_do_not_bleed(tmp_path: Path) -> None:
    """Under alpha 0 some programs leave green: no trace of it may reach an edge that is resized."""
    frames = rgba_frames(2)
    frames[frames[..., 3] == 0] = (0, 255, 0, 0)
    frames[frames[..., 3] > 0, :3] = (200, 0, 0)
    video = load_video(save_folder(tmp_path / "in", frames), 2, 23)
    assert video.rgba[:, 1].max() < 0.02
    shown = video.rgba[:, 3] > 0.05
    assert (video.rgba[:, 0][shown] - 200 / 255).abs().max() < 0.02


def test_sideways_recording_is_turned(tmp_path: Path) -> None:
    """A phone's rotation mark, written by the muxer's display matrix through a stream copy."""
    frames = rgb_frames(3)
    source = save_mp4(tmp_path / "in.mp4", frames)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", source]
    subprocess.run([*command, "-c", "copy", str(tmp_path / "turned.mp4")], check=True)
    turned = load_video(str(tmp_path / "turned.mp4"), 3, 96, crop="frame").rgba
    straight = load_video(source, 3, 96, crop="frame").rgba
    torch.testing.assert_close(turned, straight.rot90(1, (-2, -1)), atol=2e-2, rtol=0)


# --- what cannot work says why ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, message",
    [
        ("missing", "nothing.mp4 does not exist"),
        ("empty folder", "holds no image"),
        ("empty glob", "holds no image"),
        ("clip folder", r"several views: give one, for example .*v00_\*.png"),
        ("one frame", "holds 1 frame: a video needs at least 2"),
        ("one picture", "holds 1 frame: a video needs at least 2"),
        ("one frame mp4", "holds 1 frame: a video needs at least 2"),
        ("text", "not a video that can be read"),
        ("empty file", "not a video that can be read"),
        ("cut mp4", "mp4.*(not a video that can be read|cut off|damaged)"),
        ("scrambled mp4", "mp4.*(not a video that can be read|cut off|damaged)"),
        ("cut gif", "gif.*damaged"),
        ("sound only", "no picture"),
        ("text as png", "1.png is no image"),
        ("cut png", "1.png is no image"),
        ("two sizes", "frame 1 is 50 x 40 pixels, the first is 96 x 72"),
        ("nothing to see", "no object"),
        ("plain only", "no object"),
    ],
)
def test_bad_input_is_one_line_with_the_file_and_the_remedy(tmp_path: Path, case: str, message: str) -> None:
    source = str(tmp_path / "in")
    path = tmp_path / "in.mp4"
    if case == "missing":
        source = str(tmp_path / "nothing.mp4")
    elif case in ("empty folder", "empty glob"):
        (tmp_path / "in").mkdir()
        source += "/*.png" if "glob" in case else ""
    elif case == "clip folder":
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "transforms.json").write_text("{}")
    elif case == "one frame":
        save_folder(tmp_path / "in", rgba_frames(1))
    elif case == "one picture":
        Image.fromarray(rgba_frames(1)[0]).save(tmp_path / "in.png")
        source = str(tmp_path / "in.png")
    elif case == "one frame mp4":
        source = save_mp4(path, rgb_frames(1))
    elif case in ("text", "empty file"):
        path.write_text("this is no video\n" * 100 if case == "text" else "")
        source = str(path)
    elif case in ("cut mp4", "scrambled mp4"):
        source = save_mp4(path, np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8))
        data = bytearray(path.read_bytes())
        if case == "cut mp4":
            data = data[: len(data) // 2]
        else:
            data[len(data) // 4 :] = np.random.default_rng(1).bytes(len(data) - len(data) // 4)
        path.write_bytes(data)
    elif case == "cut gif":
        source = save_gif(tmp_path / "in.gif", rgba_frames(6))
        data = Path(source).read_bytes()
        Path(source).write_bytes(data[: int(len(data) * 0.6)])
    elif case == "sound only":
        source = str(path)
        with av.open(source, "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    elif case == "two sizes":
        save_folder(tmp_path / "in", rgba_frames(3))
        Image.fromarray(rgba_frames(1)[0]).resize((50, 40)).save(tmp_path / "in" / "1.png")
    elif case in ("text as png", "cut png"):
        save_folder(tmp_path / "in", rgba_frames(3))
        broken = tmp_path / "in" / "1.png"
        broken.write_bytes(b"no image" if case == "text as png" else broken.read_bytes()[:300])
    elif case == "nothing to see":
        frames = rgba_frames(3)
        frames[..., 3] = 0
        save_folder(tmp_path / "in", frames)
    else:
        save_folder(tmp_path / "in", np.full((3, 32, 32, 3), 200, np.uint8))
    with pytest.raises(UserError, match=message) as caught:
        load_video(source, 3, 32)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_unknown_choices_are_named() -> None:
    with pytest.raises(UserError, match="alpha=magic is unknown: choose one of auto, file, plain, rembg"):
        load_video("x.mp4", 8, 64, alpha="magic")
    with pytest.raises(UserError, match="crop=tight is unknown: choose one of object, frame"):
        load_video("x.mp4", 8, 64, crop="tight")
    with pytest.raises(ValueError, match="object_share"):
        load_video("x.mp4", 8, 64, object_share=0.0)


# --- writing ---------------------------------------------------------------------------------------------------------


def decoded(path: Path) -> tuple[np.ndarray, str]:
    with av.open(str(path)) as container:
        kind = container.streams.video[0].codec_context.pix_fmt
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), str(kind)


def test_small_odd_video_is_written_so_that_it_can_be_watched(tmp_path: Path) -> None:
    frames = torch.from_numpy(rgb_frames(4)).permute(0, 3, 1, 2)[:, :, :63, :65] / 255
    write_video(tmp_path / "sub" / "out.mp4", frames, fps=7.5)
    pixels, kind = decoded(tmp_path / "sub" / "out.mp4")
    assert kind == "yuv420p" and pixels.shape == (4, 63 * 5 + 1, 65 * 5 + 1, 3)
    back = torch.from_numpy(pixels[:, 2::5, 2::5][:, :63, :65]).permute(0, 3, 1, 2) / 255
    assert (back - frames).abs().mean() < 0.02
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["out.mp4"]


def test_image_is_written_exactly(tmp_path: Path) -> None:
    for frames in (rgba_frames(1), rgb_frames(1)):
        write_image(tmp_path / "out.png", torch.from_numpy(frames[0]).permute(2, 0, 1) / 255)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), frames[0])


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", torch.zeros(2, 3, 32, 32))
    before = (tmp_path / "out.mp4").read_bytes()
    with pytest.raises(ValueError):
        write_video(tmp_path / "out.mp4", torch.zeros(3, 32, 32))
    assert (tmp_path / "out.mp4").read_bytes() == before


def test_composite_of_half_transparent_pixels() -> None:
    rgba = torch.tensor([1.0, 0.0, 0.0, 0.5])[:, None, None].expand(2, 4, 3, 3)
    assert composite(rgba)[0, :, 0, 0].tolist() == [1.0, 0.5, 0.5]
    blue = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    assert composite(rgba, blue)[1, :, 2, 2].tolist() == [0.5, 0.0, 0.5]
    with pytest.raises(ValueError, match="4 channels"):
        composite(rgba[:, :3])


def test_views_are_written_by_azimuth_with_the_input_above(tmp_path: Path) -> None:
    images, views = torch.rand(3, 3, 16, 16), torch.rand(4, 3, 3, 16, 16)
    write_views(tmp_path, images, views, [0.0, 90.0, 180.0, 270.0])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["contact_sheet.png", *(f"view_{azimuth:03d}.mp4" for azimuth in (0, 90, 180, 270))]
    assert decoded(tmp_path / "view_090.mp4")[0].shape == (3, 256, 256, 3)
    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png"))
    assert sheet.shape[0] == 4 + 5 * 132 and (sheet[70, -70] - 255 * images[-1, :, 8, 7].numpy()).max() < 1


def test_contact_sheet_places_every_cell() -> None:
    images = torch.rand(2, 3, 3, 8, 10)
    sheet = contact_sheet(images, gap=2, min_side=8)
    assert sheet.shape == (3, 2 + 2 * 10, 2 + 3 * 12)
    for row in range(2):
        for column in range(3):
            cell = sheet[:, 2 + row * 10 : 10 + row * 10, 2 + column * 12 : 12 + column * 12]
            assert (cell - images[row, column]).abs().max() < 1 / 255
    labelled = contact_sheet(images, ["first row", "2"], ["a", "b", "c"], gap=2, min_side=8)
    assert labelled.shape[1] > sheet.shape[1] and labelled.shape[2] > sheet.shape[2]
    with pytest.raises(ValueError, match="row_labels"):
        contact_sheet(images, ["only one"])
