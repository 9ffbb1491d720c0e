"""Settings of an input video. This module imports no torch."""

from dataclasses import dataclass

ALPHA_SOURCES = ("auto", "file", "mask", "plain", "matting")
CROPS = ("object", "frame", "follow")


@dataclass
class InputVideo:
    """The input video, the part of it, and the source of the matte. Settings of a verb inherit these fields."""

    video: str = "???"  # mp4, gif, webm, a folder or a glob of frames
    num_frames: int = 8
    start: float = 0.0  # seconds from the first frame
    end: float | None = None  # seconds; null: to the end of the video
    fps: float | None = None  # frames per second to take from start on; null: num_frames evenly over start..end
    stride: int | None = None  # take every N-th frame from start on; null: evenly in time
    source_fps: float = 24.0  # of a folder or glob of frames, which keep no times
    alpha: str = "auto"  # source of the matte: auto | file | mask | plain | matting
    mask: str | None = None  # a folder, glob or video of masks (white: object), one for each frame of the video
    # object: framed as in the training data | frame: the frame as it is | follow: a crop that moves with the object
    crop: str = "object"
    matting_model: str = "u2netp"  # name or path of a U2-Net or ISNet ONNX file, for alpha=matting
