"""Write videos with transparency, GIFs and numbered pictures.

Frames are uint8 RGBA, straight alpha: [T, H, W, 4].
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from fourdiffusion.files import fill_folder, write_atomic


def write_webm(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write VP9 with an alpha channel, which browsers play, atomically."""
    even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")

    def write(partial: Path) -> None:
        with av.open(str(partial), "w", format="webm") as container:
            options = {"crf": "20", "b": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "4"}
            stream = container.add_stream("libvpx-vp9", rate=Fraction(fps).limit_denominator(1000), options=options)
            stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuva420p"
            for frame in even:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
            container.mux(stream.encode(None))

    write_atomic(path, write)


def write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write a looping GIF; pixels with alpha below 1/2 are transparent. GIF times are in hundredths of a second."""
    cut = frames.copy()
    cut[..., 3] = np.where(frames[..., 3] < 128, 0, 255)
    pictures = [Image.fromarray(frame) for frame in cut]
    duration = max(round(100 / fps), 2) * 10
    write_atomic(
        path,
        lambda partial: pictures[0].save(
            partial, format="GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, disposal=2
        ),
    )


def write_pictures(folder: Path, frames: np.ndarray) -> None:
    """Write frame_0000.png and so on, atomically; the folder must not exist."""

    def write(partial: Path) -> None:
        for index, frame in enumerate(frames):
            picture = Image.fromarray(frame if (frame[..., 3] < 255).any() else frame[..., :3])
            picture.save(partial / f"frame_{index:04d}.png")

    fill_folder(folder, write)
