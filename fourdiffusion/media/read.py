"""Read videos and RGBA frames: decode, choose frames, find alpha, crop.

Images are float RGB in [0, 1], channel first. RGBA has straight (not premultiplied) alpha.
Letters: F frames, H W pixels, S the side of a square crop.
"""

import glob
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fourdiffusion.errors import UserError
from fourdiffusion.media.crop import CROPS, OBJECT_SHARE, frame_square, object_square, resample
from fourdiffusion.media.matting import WAYS, find_alpha

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# What Pillow raises on damaged files, depending on where the damage lies.
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
# All frames of a file in order; only those whose numbers are in the set are brought to pixels, the others are None.
FrameReader = Callable[[Path, set[int]], Iterator[np.ndarray | None]]


@dataclass(frozen=True)
class VideoInput:
    """A clip ready for the model, and what was chosen on the way."""

    rgba: Tensor  # [F, 4, S, S] float in [0, 1], straight alpha; colour is 0 where alpha is 0
    frame_indices: list[int]  # [F] which frames of the source
    num_source_frames: int
    crop: tuple[int, int, int]  # left, top, side in source pixels; may reach beyond the frame
    alpha_from: str  # one line: where alpha came from

    def summary(self) -> str:
        """What was chosen, in one line for the log."""
        left, top, side = self.crop
        return (
            f"frames {self.frame_indices} of {self.num_source_frames}, crop {side} x {side} at ({left}, {top}), "
            f"alpha from {self.alpha_from}"
        )


def load_video(
    source: str,
    num_frames: int,
    size: int,
    alpha: str = "auto",
    crop: str = "object",
    object_share: float = OBJECT_SHARE,
    matting_model: str = "u2net",
) -> VideoInput:
    """Read a video as users have it and cut the object out, with one crop for the whole clip.

    Args:
        source: a video file (mp4, webm, mov, ...), an animated gif / webp / png, a folder of frames, or a glob.
        num_frames: F. Of n >= F frames, number int(n / F * i) is taken; of fewer, the nearest in time.
        size: side of the square result in pixels.
        alpha: "file", "plain" (background) or "rembg"; "auto" takes the first of the three that works.
        crop: "object" frames the object as the training data does; "frame" keeps the whole frame, padded to a square.
        object_share: half extent of the object's bounding box over half the crop, in (0, 1]; crop="object" only.
        matting_model: a rembg model's name, or KIND:PATH of an ONNX file, where KIND is one of rembg's custom models.
    """
    if num_frames < 1 or size < 1 or not 0 < object_share <= 1:
        raise ValueError(
            "num_frames and size must be at least 1 and object_share inside (0, 1], "
            f"got {num_frames}, {size}, {object_share}"
        )
    if alpha not in WAYS:
        raise UserError(f"alpha={alpha} is unknown: choose one of {', '.join(WAYS)}")
    if crop not in CROPS:
        raise UserError(f"crop={crop} is unknown: choose one of {', '.join(CROPS)}")
    frames, indices, num_source_frames = _read_frames(source, num_frames)
    frames, alpha_from = find_alpha(source, frames, alpha, matting_model)
    if not (frames[..., 3] > 25).any():
        raise UserError(f"{source}: no object was found in {len(frames)} frames (alpha from {alpha_from}, all empty)")
    square = object_square(frames[..., 3], object_share) if crop == "object" else frame_square(*frames.shape[1:3])
    return VideoInput(resample(frames, square, size), indices, num_source_frames, square, alpha_from)


def choose_frames(num_source_frames: int, num_frames: int) -> list[int]:
    """Which frames stand for a clip: int(n / F * i) of n >= F (method.md section 1), else the nearest in time."""
    if num_source_frames >= num_frames:
        return [int(num_source_frames / num_frames * i) for i in range(num_frames)]
    step = (num_source_frames - 1) / (num_frames - 1)
    return [int(i * step + 0.5) for i in range(num_frames)]


def _read_frames(source: str, num_frames: int) -> tuple[np.ndarray, list[int], int]:
    """The chosen frames, uint8 [F, H, W, 4], their numbers, and how many the source has."""
    path = Path(source).expanduser()
    if path.is_file():
        try:
            with Image.open(path):
                open_frames: FrameReader = _pillow_frames
        except UnidentifiedImageError:
            open_frames = _video_frames
        except OSError as error:
            raise UserError(f"{source} cannot be read ({error}): give another file") from error
        frames, count = _pick(open_frames, path, num_frames)
    elif path.is_dir():
        frames, count = _pick_files(sorted(_images_in(path), key=_natural_order), source, num_frames)
    elif glob.has_magic(source):
        matches = [Path(name) for name in glob.glob(str(path)) if Path(name).is_file()]
        frames, count = _pick_files(sorted(matches, key=_natural_order), source, num_frames)
    else:
        raise UserError(f"{source} does not exist: give a video file, a folder of frames or a glob such as 'run/*.png'")
    shapes = [frame.shape for frame in frames]
    for index, shape in zip(choose_frames(count, num_frames), shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"{source}: frame {index} is {shape[1]} x {shape[0]} pixels, the first is {shapes[0][1]} x "
                f"{shapes[0][0]}: all frames must have one size"
            )
    return np.stack(frames), choose_frames(count, num_frames), count


def _pick(open_frames: FrameReader, path: Path, num_frames: int) -> tuple[list[np.ndarray], int]:
    """Two passes, count and keep, so that a long video never stands in memory."""
    count = sum(1 for _ in open_frames(path, set()))
    _need_two(str(path), count)
    wanted = choose_frames(count, num_frames)
    kept = {i: frame for i, frame in enumerate(open_frames(path, set(wanted))) if frame is not None}
    return [kept[i] for i in wanted], count


def _pick_files(files: list[Path], source: str, num_frames: int) -> tuple[list[np.ndarray], int]:
    if (Path(source) / "transforms.json").is_file():
        raise UserError(f"{source} holds a clip of several views: give one, for example {source}/rgba/v00_*.png")
    if not files:
        raise UserError(f"{source} holds no image: frames are files that end in {', '.join(IMAGE_SUFFIXES)}")
    _need_two(source, len(files))
    return [_image_file(files[i]) for i in choose_frames(len(files), num_frames)], len(files)


def _need_two(source: str, count: int) -> None:
    if count < 2:
        raise UserError(f"{source} holds {count} frame{'s' if count != 1 else ''}: a video needs at least 2")


def _images_in(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _image_file(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return _rgba_array(ImageOps.exif_transpose(image))
    except PILLOW_ERRORS as error:
        raise UserError(f"{path} is no image that can be read ({_first_line(error)}): replace or remove it") from error


def _rgba_array(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 4]. 16-bit grey is brought to 8 bits first: Pillow would clip it."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8))
    return np.asarray(image.convert("RGBA"))


def _pillow_frames(path: Path, wanted: set[int]) -> Iterator[np.ndarray | None]:
    """All frames of an animated image in order, None for those not wanted. Pillow applies disposal and transparency."""
    try:
        with Image.open(path) as image:
            for i in range(getattr(image, "n_frames", 1)):
                image.seek(i)
                yield _rgba_array(image) if i in wanted else None
    except PILLOW_ERRORS as error:
        raise UserError(f"{path} is damaged ({_first_line(error)}): export it again") from error


def _video_frames(path: Path, wanted: set[int]) -> Iterator[np.ndarray | None]:
    """All frames of a video in order, None for those not wanted."""
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no picture in it (no video stream): give a video")
            stream = container.streams.video[0]
            announced = stream.frames
            for frame in _decode(container, stream):
                if count in wanted and frame.is_corrupt:
                    raise UserError(f"{path}: frame {count} is damaged: export the video again")
                yield _upright(frame) if count in wanted else None
                count += 1
    except av.FFmpegError as error:
        raise UserError(
            f"{path} is not a video that can be read ({error.strerror}): convert it, for example with "
            "'ffmpeg -i IN -pix_fmt yuv420p OUT.mp4', or give a folder of frames"
        ) from error
    if count < 0.9 * announced:
        raise UserError(f"{path} ends after {count} of {announced} frames: it is cut off, copy or export it again")


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames of a stream. WebM keeps alpha beside the picture, where only the libvpx decoders look."""
    name = stream.codec_context.name
    if stream.metadata.get("alpha_mode") == "1" and name in ("vp8", "vp9"):
        decoder = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[name], "r")
        assert isinstance(decoder, VideoCodecContext)
        for packet in container.demux(stream):
            yield from decoder.decode(packet)
    else:
        stream.thread_type = "AUTO"
        yield from container.decode(stream)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """uint8 [H, W, 4], turned as the file says (phones write sideways and note it)."""
    return np.rot90(frame.to_ndarray(format="rgba"), round(frame.rotation / 90) % 4)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
