"""Videos in and out. Every input is drawn here, written as users have it, and read back."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from fourdiffusion.errors import UserError
from fourdiffusion.media.crop import OBJECT_SHARE
from fourdiffusion.media.image import composite
from fourdiffusion.media.read import load_video
from fourdiffusion.media.settings import InputVideo
from fourdiffusion.media.write import contact_sheet, write_image, write_video, write_views

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 72, 96
COLOR = np.array([0.8, 0.25, 0.1])


def disc(frame: int, radius: float = 14.0) -> np.ndarray:
    """RGBA in [0, 1], [H, W, 4]: an orange disc with an antialiased edge that moves right by 3 pixels a frame."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distance = np.hypot(x - 24 - 3 * frame, y - 36)
    alpha = (radius + 0.5 - distance).clip(0, 1)[..., None]
    shade = COLOR * (0.7 + 0.3 * (y / HEIGHT))[..., None]
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
        assert isinstance(stream, av.VideoStream)
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
    """The result for a folder of RGBA frames, the reference for the other inputs."""
    assert tmp is not None
    return load_video(save_folder(tmp / "reference", frames), len(frames), size).rgba


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
    alpha, color = video.rgba[:, 3], composite(video.rgba)
    assert (alpha - expected[:, 3]).abs().mean() <= tolerance / 3 + 1e-6
    assert (color - composite(expected)).abs().mean() <= tolerance / 3 + 1e-6
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


def test_hidden_colors_do_not_bleed(tmp_path: Path) -> None:
    """Under alpha 0 some programs leave green: no trace of it may reach an edge that is resized."""
    frames = rgba_frames(2)
    frames[frames[..., 3] == 0] = (0, 255, 0, 0)
    frames[frames[..., 3] > 0, :3] = (200, 0, 0)
    video = load_video(save_folder(tmp_path / "in", frames), 2, 23)
    assert video.rgba[:, 1].max() < 0.02
    shown = video.rgba[:, 3] > 0.05
    assert (video.rgba[:, 0][shown] - 200 / 255).abs().max() < 0.02


# --- shape and turn of the picture -----------------------------------------------------------------------------------


def ffmpeg(*words: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *words], check=True)


def shown_by_ffmpeg(path: Path, height: int, width: int) -> np.ndarray:
    """Return the frames as displayed: FFmpeg applies the display matrix. uint8 [F, H, W, 3]."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24"]
    data = subprocess.run([*command, "-"], check=True, capture_output=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [[], ["-display_hflip"], ["-display_vflip"]])
def test_the_whole_display_matrix_is_applied(tmp_path: Path, turn: int, mirror: list[str]) -> None:
    """Turned and mirrored recordings come out as a player shows them."""
    frames = rgb_frames(2)
    frames[:, :20, :20] = (20, 60, 200)  # a corner that tells all eight ways apart
    source = save_mp4(tmp_path / "in.mp4", frames)
    ffmpeg("-display_rotation", str(turn), *mirror, "-i", source, "-c", "copy", str(tmp_path / "turned.mp4"))
    height, width = (WIDTH, HEIGHT) if turn % 180 else (HEIGHT, WIDTH)
    expected = (
        torch.from_numpy(shown_by_ffmpeg(tmp_path / "turned.mp4", height, width).copy()).permute(0, 3, 1, 2) / 255
    )
    video = load_video(str(tmp_path / "turned.mp4"), 2, 96, crop="frame")
    assert video.source_size == (width, height)
    left, top = -min(video.crop[0], 0), -min(video.crop[1], 0)
    found = composite(video.rgba)[..., top : top + height, left : left + width]
    assert (found - expected).abs().mean() < 0.01


def test_a_slanted_display_matrix_is_refused(tmp_path: Path) -> None:
    source = save_mp4(tmp_path / "in.mp4", rgb_frames(2))
    ffmpeg("-display_rotation", "30", "-i", source, "-c", "copy", str(tmp_path / "slanted.mp4"))
    with pytest.raises(UserError, match="slanted.mp4: is to be shown slanted.*export it upright"):
        load_video(str(tmp_path / "slanted.mp4"), 2, 32)


@pytest.mark.parametrize(
    "aspect, size", [("2/1", (192, 72)), ("1/2", (96, 144)), ("4/3", (128, 72)), ("1/1", (96, 72))]
)
def test_pixels_that_are_not_square_are_stretched(tmp_path: Path, aspect: str, size: tuple[int, int]) -> None:
    """The disc becomes an ellipse of the pixels' aspect; with a quarter turn it is turned after it is stretched."""
    source = save_mp4(tmp_path / "in.mp4", rgb_frames(3))
    ffmpeg("-i", source, "-vf", f"setsar={aspect}", str(tmp_path / "sar.mp4"))
    video = load_video(InputVideo(str(tmp_path / "sar.mp4"), num_frames=1), 64)
    assert video.source_size == size
    shown = video.rgba[0, 3] > 0.5
    ratio = float(shown.any(0).sum() / shown.any(1).sum())
    assert ratio == pytest.approx(size[0] / WIDTH / (size[1] / HEIGHT), rel=0.06)
    ffmpeg("-display_rotation", "90", "-i", str(tmp_path / "sar.mp4"), "-c", "copy", str(tmp_path / "turned.mp4"))
    assert load_video(str(tmp_path / "turned.mp4"), 2, 64).source_size == size[::-1]


def test_an_aspect_that_no_camera_has_is_refused(tmp_path: Path) -> None:
    source = save_mp4(tmp_path / "in.mp4", rgb_frames(2))
    ffmpeg("-i", source, "-vf", "setsar=30/1", str(tmp_path / "sar.mp4"))
    with pytest.raises(UserError, match="its pixels are 30 times as wide as high: export it again"):
        load_video(str(tmp_path / "sar.mp4"), 2, 32)


# --- time ------------------------------------------------------------------------------------------------------------


def numbered(count: int, height: int = 32, width: int = 64) -> np.ndarray:
    """uint8 [n, H, W, 3]: frame i has a square of red 8 i, so that a frame tells its own number."""
    frames = np.full((count, height, width, 3), 255, np.uint8)
    for i in range(count):
        frames[i, 8:24, 16:48] = (8 * i, 0, 0)
    return frames


def numbers(video_rgba: torch.Tensor) -> list[int]:
    return [round(255 * float(frame[0][frame[3] > 0.9].median()) / 8) for frame in video_rgba]


def save_timed_mp4(path: Path, times_s: list[float]) -> str:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=100, options={"crf": "1", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for pixels, time in zip(numbered(len(times_s)), times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = round(100 * time)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def test_frames_of_a_video_of_varying_rate_are_chosen_by_time(tmp_path: Path) -> None:
    """Eight frames in the first 0.8 s, then one each 0.8 s: by number the start would count ten times as much."""
    times = [0.1 * i for i in range(8)] + [0.8 + 0.8 * i for i in range(8)]
    video = load_video(save_timed_mp4(tmp_path / "in.mp4", times), 8, 32)
    assert video.frame_indices == [0, 8, 9, 10, 11, 12, 13, 14] == numbers(video.rgba)
    assert video.times_s == pytest.approx([times[i] for i in video.frame_indices])
    assert video.times[0] == 0 and video.times[-1] == 1
    assert video.times == pytest.approx([times[i] / times[14] for i in video.frame_indices])


def test_durations_of_a_gif_count(tmp_path: Path) -> None:
    """A first frame that stands for 0.8 s of 1.2 s is shown at four of six moments, each later than the one before."""
    images = [Image.fromarray(frame) for frame in numbered(5)]
    durations = [800, 100, 100, 100, 100]
    images[0].save(tmp_path / "in.gif", save_all=True, append_images=images[1:], duration=durations)
    video = load_video(str(tmp_path / "in.gif"), 6, 32)
    assert video.frame_indices == [0, 0, 0, 0, 1, 3] == numbers(video.rgba)
    assert video.times_s == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    images[0].save(tmp_path / "in.webp", save_all=True, append_images=images[1:], duration=durations, lossless=True)
    assert load_video(str(tmp_path / "in.webp"), 6, 32).frame_indices == [0, 0, 0, 0, 1, 3]


def test_the_still_of_an_animated_png_is_no_frame_and_short_durations_are_a_tenth(tmp_path: Path) -> None:
    images = [Image.fromarray(frame) for frame in numbered(4)]
    later: dict[str, Any] = {"save_all": True, "append_images": images[1:]}
    images[0].save(tmp_path / "still.png", default_image=True, duration=[100] * 4, **later)
    video = load_video(str(tmp_path / "still.png"), 3, 16)
    assert video.num_source_frames == 3 and numbers(video.rgba) == [1, 2, 3]
    images[0].save(tmp_path / "fast.gif", duration=[0, 10, 300, 100], **later)
    fast = InputVideo(str(tmp_path / "fast.gif"), num_frames=4, stride=1)
    assert load_video(fast, 16).times_s == pytest.approx([0, 0.1, 0.2, 0.5])
    images[0].save(tmp_path / "pages.tif", **later)
    pages = InputVideo(str(tmp_path / "pages.tif"), num_frames=4, source_fps=200)
    assert load_video(pages, 16).times_s == pytest.approx([0, 0.005, 0.01, 0.015])


def test_a_part_of_a_video(tmp_path: Path) -> None:
    source = save_timed_mp4(tmp_path / "in.mp4", [0.1 * i for i in range(24)])

    def part(**settings: Any) -> list[int]:
        video = load_video(InputVideo(source, num_frames=4, **settings), 16)
        assert numbers(video.rgba) == video.frame_indices
        return video.frame_indices

    assert part() == [0, 6, 12, 18]
    assert part(start=0.8, end=1.6) == [8, 10, 12, 14]
    assert part(end=0.4) == [0, 1, 2, 3]
    assert part(start=1.6) == [16, 18, 20, 22]
    assert part(start=0.5, fps=5) == [5, 7, 9, 11]
    assert part(start=0.5, stride=3) == [5, 8, 11, 14]
    with pytest.raises(UserError, match=r"in.mp4: start=9 is after the end of the video, which lasts 2.40 s"):
        part(start=9)


def test_a_part_of_a_folder_goes_by_its_frame_rate(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "in", numbered(20))
    video = load_video(InputVideo(folder, num_frames=2, start=1, source_fps=10), 16)
    assert video.frame_indices == [10, 15] and video.times_s == pytest.approx([1.0, 1.5])


def test_frames_far_apart_and_repeated_ones_are_told_with_figures(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "in", numbered(20))
    assert load_video(InputVideo(folder, num_frames=8), 16).warnings == []
    far = load_video(InputVideo(folder, num_frames=2, source_fps=2), 16)
    assert "2 chosen frames are up to 5.0 s apart (over 10.0 s of video)" in far.warnings[0]
    assert far.warnings[0] in far.summary()
    again = load_video(InputVideo(folder, num_frames=8, end=0.125), 16)
    assert (
        "5 of the 8 chosen frames repeat" in again.warnings[0] and "3 different frames in 0.12 s" in again.warnings[0]
    )
    assert all(b > a for a, b in zip(again.times, again.times[1:], strict=False))


def packets_copied(source: str, target: Path, *words: str) -> Path:
    ffmpeg(*words, "-i", source, "-c", "copy", str(target))
    return target


def test_a_trimmed_stream_copy_is_read(tmp_path: Path) -> None:
    """-ss with -c copy keeps the packets from the key frame on and marks those before the cut as not to be shown."""
    source = save_timed_mp4(tmp_path / "in.mp4", [0.1 * i for i in range(16)])
    for start, first in (("0.2", 2), ("0.8", 8)):
        video = load_video(str(packets_copied(source, tmp_path / f"{start}.mp4", "-ss", start)), 4, 16)
        assert video.num_source_frames == 16 - first and numbers(video.rgba)[0] == first and video.times_s[0] == 0


def test_an_edit_list_that_ends_early_is_no_damage(tmp_path: Path) -> None:
    """Phones trim without touching the pictures: only the edit list gets shorter."""
    path = Path(save_timed_mp4(tmp_path / "in.mp4", [0.1 * i for i in range(16)]))
    data = bytearray(path.read_bytes())
    spot = data.index(b"elst")
    assert int.from_bytes(data[spot + 8 : spot + 12], "big") == 1
    data[spot + 12 : spot + 16] = (500).to_bytes(4, "big")  # of the movie's 1000 a second
    path.write_bytes(data)
    video = load_video(str(path), 4, 16)
    assert video.num_source_frames <= 7 and numbers(video.rgba)[0] == 0


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_of_every_kind_become_alpha(tmp_path: Path) -> None:
    """From beside the frames, from a folder, from a video, from an alpha channel: the colors stay, alpha is theirs."""
    frames, masks = rgb_frames(6, 0.0), rgba_frames(6)[..., 3]
    beside = Path(save_folder(tmp_path / "beside", frames, "{:03d}.png"))
    (tmp_path / "masks").mkdir()
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(beside / f"{i:03d}_mask.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    save_folder(tmp_path / "cut", rgba_frames(6))
    save_mp4(tmp_path / "masks.mp4", masks[..., None].repeat(3, -1))
    plain = save_folder(tmp_path / "frames", frames)
    truth = save_folder(tmp_path / "truth", np.concatenate([frames, masks[..., None]], axis=-1))
    expected = load_video(truth, 3, 48).rgba
    found = load_video(str(beside), 3, 48)
    assert found.alpha_from == "the masks" and found.num_source_frames == 6
    torch.testing.assert_close(found.rgba, expected)
    for mask in ("masks", "cut", "masks.mp4"):
        video = load_video(InputVideo(plain, num_frames=3, mask=str(tmp_path / mask)), 48)
        assert video.frame_indices == [0, 2, 4]
        assert (video.rgba - expected).abs().mean() < (0.02 if mask.endswith("mp4") else 1e-6)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    frames = save_folder(tmp_path / "frames", rgb_frames(6))
    few = save_folder(tmp_path / "few", rgba_frames(5)[..., 3])
    with pytest.raises(UserError, match="mask=.*few holds 5 pictures for 6 frames of .*frames"):
        load_video(InputVideo(frames, num_frames=3, mask=few), 16)
    small = save_folder(tmp_path / "small", rgba_frames(6)[:, :40, :50, 3])
    with pytest.raises(UserError, match="masks of .*small are 50 x 40 pixels, the frames 96 x 72"):
        load_video(InputVideo(frames, num_frames=3, mask=small), 16)


# --- crop=follow -----------------------------------------------------------------------------------------------------


def crossing(count: int = 8) -> np.ndarray:
    """uint8 [F, 60, 200, 4]: a disc of radius 10 that crosses a wide frame."""
    y, x = np.mgrid[:60, :200]
    frames = np.zeros((count, 60, 200, 4), np.uint8)
    for i in range(count):
        frames[i, (x - 20 - 22 * i) ** 2 + (y - 30) ** 2 < 100] = (200, 60, 20, 255)
    return frames


def test_a_crop_can_follow_an_object_that_crosses_the_frame(tmp_path: Path) -> None:
    """One square for the whole path shows a small disc; a square that follows shows it large, and its path is kept."""
    folder = save_folder(tmp_path / "in", crossing())
    still = load_video(InputVideo(folder), 64)
    follow = load_video(InputVideo(folder, crop="follow"), 64)
    assert len(set(still.crops)) == 1 and still.crops[0] == still.crop
    assert {side for _, _, side in follow.crops} == {follow.crop[2]} and follow.crop[2] < still.crop[2] / 5
    assert np.diff([left for left, _, _ in follow.crops]) == pytest.approx(22, abs=1)
    shown = follow.rgba[:, 3] > 0.5
    assert (shown.any(1).sum(1) / 64 - OBJECT_SHARE).abs().max() < 0.1
    assert shown[..., 0].sum() == shown[..., -1].sum() == 0
    follow.write(tmp_path)
    record = json.loads((tmp_path / "input.json").read_text())
    assert record["crop"] is None and record["crops"] == [list(crop) for crop in follow.crops]


def test_the_path_of_a_following_crop_is_smooth(tmp_path: Path) -> None:
    """An outline that trembles by 2 pixels moves the crop by less; the object stays inside it in every frame."""
    frames = crossing()
    for i in range(0, 8, 2):
        frames[i] = np.roll(frames[i], 4, axis=0)
    follow = load_video(InputVideo(save_folder(tmp_path / "in", frames), crop="follow"), 64)
    tops = [top for _, top, _ in follow.crops]
    assert max(tops) - min(tops) <= 2
    shown = follow.rgba[:, 3] > 0.5
    assert not (shown[:, 0].any() or shown[:, -1].any() or shown[..., 0].any() or shown[..., -1].any())


def test_a_following_crop_bridges_frames_without_the_object(tmp_path: Path) -> None:
    frames = crossing()
    frames[3] = 0
    follow = load_video(InputVideo(save_folder(tmp_path / "in", frames), crop="follow"), 64)
    assert np.diff([left for left, _, _ in follow.crops]) == pytest.approx(22, abs=1)


# --- what a run keeps of its input -----------------------------------------------------------------------------------


def test_the_input_is_written_beside_the_run(tmp_path: Path) -> None:
    video = load_video(save_folder(tmp_path / "in", rgba_frames(6)), 3, 32)
    video.write(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "input.json").read_text())
    assert record["crop"] == list(video.crop) and record["crops"] == [list(video.crop)] * 3
    assert record["frames"] == [0, 2, 4] and record["source_size"] == [WIDTH, HEIGHT]
    assert record["times_s"] == pytest.approx([0, 2 / 24, 4 / 24], abs=1e-6) and record["times"] == [0, 0.5, 1]
    assert record["digest"] == video.digest and len(video.digest) == 64
    assert Image.open(tmp_path / "run" / "matte.png").size[1] == 256
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["input.json", "matte.png"]


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    """The same frames elsewhere, under other names, are the same; a pixel, a mask or a time makes another input."""
    frames = rgba_frames(6)
    first = load_video(save_folder(tmp_path / "a", frames), 6, 32).digest
    assert load_video(save_folder(tmp_path / "b", frames, "other_{:04d}.png"), 6, 32).digest == first
    assert load_video(str(tmp_path / "a"), 6, 64, crop="frame").digest == first  # those are settings
    changed = frames.copy()
    changed[5, 40, 40, 0] ^= 1
    assert load_video(save_folder(tmp_path / "c", changed), 6, 32).digest != first
    assert load_video(str(tmp_path / "a"), 3, 32).digest != first
    masked = InputVideo(str(tmp_path / "a"), num_frames=6, mask=save_folder(tmp_path / "m", frames[..., 3] // 2))
    assert load_video(masked, 32).digest != first
    images = [Image.fromarray(frame) for frame in frames]
    found = []
    for durations in ([100] * 6, [50] * 6, [100, 200, 100, 100, 100, 100]):
        images[0].save(tmp_path / "in.png", save_all=True, append_images=images[1:], duration=durations)
        found.append(load_video(InputVideo(str(tmp_path / "in.png"), num_frames=6, stride=1), 32).digest)
    assert found[0] == found[1] == first != found[2]  # twice as fast is the same on the way from 0 to 1


# --- names -----------------------------------------------------------------------------------------------------------


def test_files_of_odd_names_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path(save_mp4(tmp_path / "in.mp4", rgb_frames(3)))
    names = ["a:b.mp4", "C:\\x.mp4", "~t.mp4", "[1].mp4", "a,b.mp4", "a b.mp4", "*.mp4x", "http:x.mp4", "-i.mp4"]
    for name in names:
        Path(name).write_bytes(source.read_bytes())
        assert load_video(name, 3, 16).num_source_frames == 3, name
    save_folder(tmp_path / "run[1], {x}", rgba_frames(3))
    assert load_video("run[1], {x}", 3, 16).num_source_frames == 3
    assert load_video("run[1], {x}/*.png", 3, 16).num_source_frames == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_video("~/in.mp4", 3, 16).num_source_frames == 3
    assert load_video("~/run[1], {x}/?.png", 3, 16).num_source_frames == 3


# --- what cannot work says why ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, message",
    [
        ("missing", "nothing.mp4 does not exist"),
        ("empty folder", "holds no image"),
        ("empty glob", "does not exist, and as a glob it matches no file"),
        ("clip folder", r"several views: give one, for example .*v00_\*.png"),
        ("one frame", "holds 1 frame: a video needs at least 2"),
        ("one picture", "holds 1 frame: a video needs at least 2"),
        ("one frame mp4", "holds 1 frame: a video needs at least 2"),
        ("text", "not a video that can be read"),
        ("empty file", "not a video that can be read"),
        ("cut mp4", "mp4.*(not a video that can be read|cut off|damaged)"),
        ("scrambled mp4", "mp4.*(not a video that can be read|cut off|damaged)"),
        ("cut gif", "gif: not a readable image"),
        ("sound only", "no picture"),
        ("text as png", "1.png: not a readable image"),
        ("cut png", "1.png: not a readable image"),
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
        whole = Path(source).read_bytes()
        Path(source).write_bytes(whole[: int(len(whole) * 0.6)])
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


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "video is empty: give a path"),
        ("   ", "video is empty"),
        ("https://x.org/a.mp4", "is an address: download it"),
        ("rtsp://x.org/a", "is an address"),
        ("file:///tmp/a.mp4", "without file://: /tmp/a.mp4"),
        ("a\0b.mp4", r"video=a\\x00b.mp4: holds characters that no file name can hold"),
        ("a\ud800b.mp4", "holds characters"),
        ("x" * 5000, "does not exist|cannot be read"),
        ("~nobody-here/x.mp4", "~nobody-here/x.mp4 does not exist"),
        ("\x1b[31mred.mp4", r"\\x1b\[31mred.mp4 does not exist, and as a glob"),
        ("in/frames.png/x", "does not exist|cannot be read"),
        ("/dev/zero", "/dev/zero: is a device, not a file"),
    ],
)
def test_what_is_no_path_is_answered_by_name(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_video(name, 3, 32)
    assert str(caught.value).isprintable()


def test_pipes_and_closed_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="pipe.mp4: is a pipe, not a file"):
        load_video(str(tmp_path / "pipe.mp4"), 3, 32)
    folder = Path(save_folder(tmp_path / "in", rgba_frames(3)))
    (folder / "1.png").unlink()
    os.mkfifo(folder / "1.png")
    with pytest.raises(UserError, match="1.png: is a pipe"):
        load_video(str(folder), 3, 32)


def test_what_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    """As a user without the rights of root."""
    save_folder(tmp_path / "closed", rgba_frames(2))
    save_mp4(tmp_path / "closed.mp4", rgb_frames(2))
    for path in (tmp_path / "closed", tmp_path / "closed.mp4"):
        path.chmod(0)
    code = "import sys\nfrom fourdiffusion.media.series import find_source\nfor name in sys.argv[1:]:\n"
    code += "    try:\n        find_source(name)\n    except Exception as error:\n        print(repr(error))"
    rights = "-dac_override,-dac_read_search"
    drop = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", "--no-new-privs"]
    names = [str(tmp_path / "closed"), str(tmp_path / "closed" / "0.png"), str(tmp_path / "closed.mp4")]
    command = [*(drop if os.geteuid() == 0 else []), sys.executable, "-c", code, *names]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (tmp_path / "closed").chmod(0o700)
    assert len(said) == 3 and all("UserError" in line and "Permission denied" in line for line in said)


def test_metadata_of_another_encoding_is_no_fault(tmp_path: Path) -> None:
    source = save_mp4(tmp_path / "in.mp4", rgb_frames(3))
    ffmpeg("-i", source, "-c", "copy", "-metadata", "title=pXche", str(tmp_path / "titled.mp4"))
    data = (tmp_path / "titled.mp4").read_bytes()
    (tmp_path / "titled.mp4").write_bytes(data.replace(b"pXche", "pêche".encode("latin-1")))
    assert load_video(str(tmp_path / "titled.mp4"), 3, 16).num_source_frames == 3


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "png", "tif"])
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path, kind: str, recwarn: object) -> None:
    path = tmp_path / f"in.{kind}"
    if kind in ("mp4", "webm"):
        (save_mp4 if kind == "mp4" else save_webm)(path, rgb_frames(3))
    else:
        images = [Image.fromarray(frame) for frame in rgb_frames(3)]
        images[0].save(path, save_all=True, append_images=images[1:])
    data, random = path.read_bytes(), np.random.default_rng(0)
    for count in (1, 3, 10, 30) * 3:
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[random.integers(0, min(len(data), int(random.choice([64, 2000]))), count)] = random.integers(0, 256)
        path.write_bytes(damaged.tobytes())
        try:
            assert load_video(str(path), 3, 16).rgba.isfinite().all()
        except UserError as error:
            assert str(error).isprintable()


def test_playlists_open_no_other_file(tmp_path: Path) -> None:
    """FFmpeg would follow a list of files or addresses under any name."""
    save_mp4(tmp_path / "in.mp4", rgb_frames(3))
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile in.mp4\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nin.mp4\n#EXT-X-ENDLIST\n")
    for name in ("concat.mp4", "hls.mp4"):
        with pytest.raises(UserError, match="not a video that can be read"):
            load_video(str(tmp_path / name), 3, 32)


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    gif = bytearray(Path(save_gif(tmp_path / "in.gif", rgba_frames(2))).read_bytes())
    gif[6:10] = (40000).to_bytes(2, "little") * 2
    (tmp_path / "bomb.gif").write_bytes(gif)
    with pytest.raises(UserError, match="bomb.gif: not a readable image.*(40000 x 40000|pixels)"):
        load_video(str(tmp_path / "bomb.gif"), 3, 32)
    save_folder(tmp_path / "frames", rgba_frames(2))
    with pytest.raises(UserError, match="90000 frames of 96 x 72 pixels need .* GiB"):
        load_video(InputVideo(str(tmp_path / "frames"), num_frames=90_000), 32)


def test_the_former_name_of_the_matting_network_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    with pytest.raises(UserError, match="onnxruntime is not installed|u2net.onnx is not here"):
        load_video(save_folder(tmp_path / "in", rgb_frames(2)), 2, 32, alpha="rembg", matting_model="u2net")


def test_unknown_choices_are_named() -> None:
    with pytest.raises(UserError, match="alpha=magic is unknown: choose one of auto, file, mask, plain, matting"):
        load_video("x.mp4", 8, 64, alpha="magic")
    with pytest.raises(UserError, match="crop=tight is unknown: choose one of object, frame, follow"):
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
