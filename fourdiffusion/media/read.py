"""Read an input video: decode, choose frames by time, find alpha, crop.

Images are float RGB in [0, 1], channel first. RGBA has straight (not premultiplied) alpha.
Letters: F frames, H W pixels, S the side of a square crop.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, overload

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from PIL import Image
from torch import Tensor

from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.media.choose import check_choice, choose_frames, normalized
from fourdiffusion.media.crop import OBJECT_SHARE, follow_squares, frame_square, object_square, resample
from fourdiffusion.media.matting import find_alpha, matte_picture
from fourdiffusion.media.paths import printable
from fourdiffusion.media.picture import (
    MAX_PIXELS,
    MAX_SEQUENCE_PIXELS,
    is_picture,
    open_picture,
    read_picture,
    to_rgba,
)
from fourdiffusion.media.series import Source, find_source
from fourdiffusion.media.settings import ALPHA_SOURCES, CROPS, InputVideo

MAX_BYTES = 2**31  # of the chosen frames in memory
MAX_STRETCH = 8.0  # of the sides of a pixel; beyond it the file is damaged
SHORT_S = 0.1  # duration of frames of 0.01 s or less in an animated picture, as in browsers
# Containers with embedded pictures; playlists would let FFmpeg open other files and addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,asf,flv,ogg,mpegts,mpeg,mpegvideo,mxf,ivf,h264,hevc"


@dataclass(frozen=True)
class VideoInput:
    """The model's input clip, and how it was chosen."""

    rgba: Tensor  # [F, 4, S, S] float in [0, 1], straight alpha; color is 0 where alpha is 0
    frame_indices: list[int]  # [F] indices of the source's frames
    num_source_frames: int  # of the whole source; of the part until ``end`` if that is given
    crop: tuple[int, int, int]  # left, top, side in source pixels; may reach beyond the frame. With follow: of frame 0
    alpha_from: str  # one line: source of the alpha
    times_s: list[float] = field(default_factory=list)  # [F] rising, seconds from the source's first frame
    times: list[float] = field(default_factory=list)  # [F] rising, the first 0 and the last 1
    source_size: tuple[int, int] = (0, 0)  # width, height in square pixels, upright
    digest: str = ""  # sha256 of the chosen frames, their masks and their times
    warnings: list[str] = field(default_factory=list)  # one line each
    crops: list[tuple[int, int, int]] = field(default_factory=list)  # [F]; equal except with crop=follow
    matte: np.ndarray | None = None  # uint8 [H', W', 3]: the frames above the detected object

    def summary(self) -> str:
        """Return the choices and the warnings in one line for the log."""
        left, top, side = self.crop
        what = (
            f"frames {self.frame_indices} of {self.num_source_frames}, crop {side} x {side} at ({left}, {top}), "
            f"alpha from {self.alpha_from}"
        )
        return "; warning: ".join([what, *self.warnings])

    def write(self, folder: Path, camera: dict[str, float] | None = None) -> None:
        """Write ``input.json`` and ``matte.png`` into a run folder, each atomically.

        ``camera`` holds the assumed camera: "fovy_deg" of the square crop, "distance", "elevation_deg".
        """
        record = {
            "crop": list(self.crop) if len(set(self.crops)) == 1 else None,  # None: it moves, see crops
            "crops": [list(crop) for crop in self.crops],
            "frames": self.frame_indices,
            "times_s": [round(time, 6) for time in self.times_s],
            "times": [round(time, 6) for time in self.times],
            "source_size": list(self.source_size),
            "alpha_from": self.alpha_from,
            "digest": self.digest,
            "warnings": self.warnings,
            **(camera or {}),
        }
        text = json.dumps(record, indent=1) + "\n"
        write_atomic(folder / "input.json", lambda partial: partial.write_text(text, encoding="utf-8"))
        if self.matte is not None:
            picture = Image.fromarray(self.matte)
            write_atomic(folder / "matte.png", lambda partial: picture.save(partial, format="PNG"))


@overload
def load_video(video: InputVideo, size: int, /, *, object_share: float = ...) -> VideoInput: ...
@overload
def load_video(
    video: str,
    num_frames: int,
    size: int,
    /,
    alpha: str = ...,
    crop: str = ...,
    object_share: float = ...,
    matting_model: str = ...,
) -> VideoInput: ...
def load_video(
    video: InputVideo | str,
    num_frames: int,
    size: int | None = None,
    alpha: str = "auto",
    crop: str = "object",
    object_share: float = OBJECT_SHARE,
    matting_model: str = "u2netp",
) -> VideoInput:
    """Read a video, choose frames, matte and crop the object: ``load_video(settings, size)``.

    Args:
        video: the settings (``InputVideo``). A path with the arguments that follow is the former interface.
        size: side of the square result in pixels.
        object_share: half extent of the object's bounding box over half the crop, in (0, 1]; not with crop=frame.

    UserError if a setting is out of range, the source cannot be read, or it has no object.
    """
    if isinstance(video, InputVideo):
        settings, size = video, num_frames
    else:
        settings = InputVideo(video, num_frames, alpha=alpha, crop=crop, matting_model=matting_model)
    if size is None or size < 1 or not 0 < object_share <= 1:
        raise ValueError(f"size must be at least 1 and object_share inside (0, 1], got {size}, {object_share}")
    return _load(settings, size, object_share)


def _load(settings: InputVideo, size: int, object_share: float) -> VideoInput:
    alpha_source = {"rembg": "matting"}.get(settings.alpha, settings.alpha)  # former name
    if alpha_source not in ALPHA_SOURCES:
        raise UserError(f"alpha={printable(alpha_source)} is unknown: choose one of {', '.join(ALPHA_SOURCES)}")
    if settings.crop not in CROPS:
        raise UserError(f"crop={printable(settings.crop)} is unknown: choose one of {', '.join(CROPS)}")
    check_choice(settings)
    source = find_source(settings.video)
    starts_s, span_s = frame_times(source, settings.source_fps, settings.end)
    if len(starts_s) < 2:
        raise UserError(f"{source.name} holds {_count(len(starts_s), 'frame')}: a video needs at least 2")
    try:
        choice = choose_frames(starts_s, span_s, settings)
    except UserError as error:
        raise UserError(f"{source.name}: {error}") from error
    frames = read_frames(source, choice.indices)
    masks = _read_masks(source, settings, choice.indices, len(starts_s), frames.shape[1:3])
    times = normalized(choice.times_s)
    digest = _digest(frames, masks, times)
    rgba, alpha_from, doubts = find_alpha(source.name, frames, alpha_source, settings.matting_model, masks)
    if not (rgba[..., 3] > 25).any():
        raise UserError(
            f"{source.name}: no object was found in {len(rgba)} frames (alpha from {alpha_from}, all empty)"
        )
    height, width = rgba.shape[1:3]
    if settings.crop == "follow":
        crops = follow_squares(rgba[..., 3], object_share)
    else:
        square = object_square(rgba[..., 3], object_share) if settings.crop == "object" else frame_square(height, width)
        crops = [square] * len(rgba)
    return VideoInput(
        rgba=resample(rgba, crops, size),
        frame_indices=choice.indices,
        num_source_frames=len(starts_s),
        crop=crops[0],
        alpha_from=alpha_from,
        times_s=choice.times_s,
        times=times,
        source_size=(width, height),
        digest=digest,
        warnings=[*source.warnings, *choice.warnings, *doubts],
        crops=crops,
        matte=matte_picture(frames, rgba),
    )


def _digest(frames: np.ndarray, masks: np.ndarray | None, times: list[float]) -> str:
    """Return the sha256 of pixels and times, on which the result depends, but not of paths."""
    found = hashlib.sha256(repr((frames.shape, [round(time, 4) for time in times])).encode())
    found.update(np.ascontiguousarray(frames).data)
    if masks is not None:
        found.update(np.ascontiguousarray(masks).data)
    return found.hexdigest()


def _read_masks(
    source: Source, settings: InputVideo, indices: list[int], count: int, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Return masks of the chosen frames, uint8 [F, H, W], from mask= or next to the frames; None if there are none."""
    if settings.mask is not None:
        masks = find_source(settings.mask, "mask")
        found = len(frame_times(masks, settings.source_fps, None)[0])
        if settings.end is not None and not source.files:  # only the frames until ``end`` were counted
            found = min(found, count)
        if found != count:
            raise UserError(
                f"mask={masks.name} holds {found} pictures for {count} frames of {source.name}: give one each"
            )
    elif source.masks:
        masks = Source(source.name, source.path, source.masks)
    else:
        return None
    pictures = read_frames(masks, indices)
    if pictures.shape[1:3] != shape:
        sizes = f"{pictures.shape[2]} x {pictures.shape[1]} pixels, the frames {shape[1]} x {shape[0]}"
        raise UserError(f"the masks of {masks.name} are {sizes}: give masks of the frames' size")
    if (pictures[..., 3] < 255).any():  # a cut-out, or a mask in the alpha channel
        return pictures[..., 3]
    return (pictures[..., :3] @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)


# ---- frames and their times -----------------------------------------------------------------------------------------


def frame_times(source: Source, source_fps: float, end_s: float | None) -> tuple[np.ndarray, float]:
    """Return the start of each frame, in seconds from the first one [n], rising, and the end of the last one.

    A video is decoded only until ``end_s``. Picture files have no times and get ``source_fps`` frames per second.
    """
    if source.files:
        return np.arange(len(source.files)) / source_fps, len(source.files) / source_fps
    if is_picture(source.path):
        durations = _animation_durations(source.path, 1 / source_fps)
        ends = np.cumsum(durations)
        return ends - durations, float(ends[-1])
    starts: list[float] = []
    last = 0.0
    for frame, _ in _decode_video(source.path):
        index = len(starts)
        rate = 1 / source_fps
        time = float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else index * rate
        starts.append(max(time, starts[-1]) if starts else time)
        last = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        if end_s is not None and starts[-1] - starts[0] >= end_s:
            break
    found = np.array(starts) - (starts[0] if starts else 0.0)
    # Many files give the last frame no duration, or one tick: it lasts at least as long as most others.
    usual = float(np.median(np.diff(found))) if len(found) > 1 else 1 / source_fps
    return found, float(found[-1]) + max(last, usual) if starts else 0.0


def read_frames(source: Source, indices: list[int]) -> np.ndarray:
    """Return the frames at these indices, uint8 [F, H, W, 4], upright, square pixels. UserError for unequal sizes."""
    wanted = sorted(set(indices))
    if source.files:
        pictures: Iterator[np.ndarray] = (read_picture(source.files[i]) for i in wanted)
    elif is_picture(source.path):
        pictures = _animation_frames(source.path, set(wanted))
    else:
        pictures = video_frames(source.path, set(wanted))
    kept: dict[int, np.ndarray] = {}
    for index, frame in zip(wanted, pictures, strict=False):
        first = kept.setdefault(wanted[0], frame)
        if frame.shape != first.shape:
            raise UserError(
                f"{source.name}: frame {index} is {frame.shape[1]} x {frame.shape[0]} pixels, the first is "
                f"{first.shape[1]} x {first.shape[0]}: all frames must have one size"
            )
        if frame.nbytes * len(indices) > MAX_BYTES:
            raise UserError(
                f"{source.name}: {len(indices)} frames of {frame.shape[1]} x {frame.shape[0]} pixels need "
                f"{frame.nbytes * len(indices) / 2**30:.0f} GiB: choose fewer with num_frames=, or scale them down"
            )
        kept[index] = frame
    if len(kept) < len(wanted):
        raise UserError(f"{source.name} ends before frame {wanted[len(kept)]}: export it again")
    return np.stack([kept[i] for i in indices])


# ---- animated pictures ----------------------------------------------------------------------------------------------


def _animation(path: Path) -> Iterator[Image.Image]:
    """Yield an animated picture at each of its frames. Pillow applies disposal and transparency."""
    with open_picture(path) as image:
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photo with its thumbnails
        if count * image.width * image.height > MAX_SEQUENCE_PIXELS:
            raise ValueError(f"{count} frames of {image.width} x {image.height} pixels are too many to decode")
        still = 1 if image.info.get("default_image") and count > 1 else 0  # of a PNG: for viewers without animation
        for index in range(still, count):
            image.seek(index)
            image.load()
            yield image


def _animation_durations(path: Path, default_s: float) -> np.ndarray:
    """Return the duration of each frame in seconds; ``default_s`` for a file without durations (TIFF pages)."""
    durations = []
    for image in _animation(path):
        milliseconds = image.info.get("duration", 0)
        short = default_s if image.format == "TIFF" else SHORT_S
        durations.append(milliseconds / 1000 if milliseconds > 10 else short)
    return np.array(durations)


def _animation_frames(path: Path, wanted: set[int]) -> Iterator[np.ndarray]:
    for index, image in enumerate(_animation(path)):
        if index in wanted:
            yield to_rgba(image)


# ---- videos ---------------------------------------------------------------------------------------------------------


def video_frames(path: Path, wanted: set[int]) -> Iterator[np.ndarray]:
    for index, (frame, aspect) in enumerate(_decode_video(path)):
        if index in wanted:
            if frame.is_corrupt:
                raise UserError(f"{printable(path)}: frame {index} is damaged: export the video again")
            yield _upright(frame, aspect, path)
        if index >= max(wanted):
            return


def _decode_video(path: Path) -> Iterator[tuple[av.VideoFrame, float]]:
    """Yield all frames that a player shows, in order, each with its pixel aspect (width over height).

    UserError if the file is not a video, or is truncated.
    """
    name = printable(path)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    count, shown_until = 0, 0.0
    try:
        # An absolute path: FFmpeg would read the text before a colon as a protocol.
        with av.open(str(path.absolute()), options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                raise UserError(f"{name} has no picture in it (no video stream): give a video")
            stream = container.streams.video[0]
            announced, length = stream.frames, float((stream.duration or 0) * (stream.time_base or 0))
            if stream.width * stream.height > MAX_PIXELS:
                raise UserError(
                    f"{name} has {stream.width} x {stream.height} pixels, at most {MAX_PIXELS}: scale it down"
                )
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # its size may change within the stream
            decoder = _alpha_decoder(stream)
            aspect = float(stream.sample_aspect_ratio or 1)
            for packet in container.demux(stream):
                for frame in decoder.decode(packet) if decoder else packet.decode():
                    if frame.pts is not None and frame.time_base:
                        shown_until = float((frame.pts + (frame.duration or 0)) * frame.time_base)
                    yield frame, aspect
                    count += 1
    except UserError:
        raise
    except Exception as error:  # mostly FFmpeg's; damaged headers make PyAV raise other types
        reason = printable(error.strerror if isinstance(error, av.FFmpegError) else error)
        raise UserError(
            f"{name} is not a video that can be read ({reason}): convert it, for example with "
            "'ffmpeg -i IN -pix_fmt yuv420p OUT.mp4', or give a folder of frames"
        ) from error
    # An edit list may show only a part of the file: too few frames alone do not prove that the file is truncated.
    if count < 0.9 * announced and shown_until < 0.9 * length:
        raise UserError(f"{name} ends after {count} of {announced} frames: it is cut off, copy or export it again")


def _alpha_decoder(stream: av.VideoStream) -> VideoCodecContext | None:
    """Return a decoder for WebM with alpha, which only the libvpx decoders support; None: the stream's own."""
    name = stream.codec_context.name
    if stream.metadata.get("alpha_mode") == "1" and name in ("vp8", "vp9"):
        decoder = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[name], "r")
        assert isinstance(decoder, VideoCodecContext)
        return decoder
    stream.codec_context.thread_type = "AUTO"
    return None


def _upright(frame: av.VideoFrame, aspect: float, path: Path) -> np.ndarray:
    """Return uint8 [H, W, 4] in square pixels, rotated and mirrored by the display matrix."""
    pixels = frame.to_ndarray(format="rgba")
    if aspect != 1:
        if not 1 / MAX_STRETCH <= aspect <= MAX_STRETCH:
            raise UserError(f"{printable(path)}: its pixels are {aspect:g} times as wide as high: export it again")
        height, width = pixels.shape[:2]  # enlarge the shorter side of a pixel: nothing is lost
        size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        premultiplied = Image.fromarray(pixels).convert("RGBa")
        pixels = np.asarray(premultiplied.resize(size, Image.Resampling.BICUBIC).convert("RGBA"))
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return pixels
    a, b, _, c, d = (
        np.frombuffer(cast(bytes, data), dtype="<i4")[:5] / 2**16
    )  # ISO 14496-12: x' = a x + c y, y' = b x + d y
    straight, turned = max(abs(a), abs(d)), max(abs(b), abs(c))
    scale = max(straight, turned)
    if min(straight, turned) > 0.01 * scale or abs(abs(a) - abs(d)) + abs(abs(b) - abs(c)) > 0.02 * scale:
        raise UserError(
            f"{printable(path)}: is to be shown slanted or stretched by its display matrix: export it upright"
        )
    if turned > straight:
        pixels, flip_x, flip_y = pixels.transpose(1, 0, 2), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
