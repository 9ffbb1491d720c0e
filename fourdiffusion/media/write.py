"""Write pictures, videos and contact sheets.

Images are float RGB in [0, 1], channel first. Letters: T frames of a written video, H W pixels.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fourdiffusion.files import write_atomic


def write_image(path: Path | str, image: Tensor) -> None:
    """Write [3 or 4, H, W] in [0, 1] as a PNG, atomically."""
    picture = Image.fromarray(_to_uint8(image[None])[0])
    write_atomic(Path(path), lambda partial: picture.save(partial, format="PNG"))


def write_video(path: Path | str, frames: Tensor, fps: float = 8.0, min_side: int = 256) -> None:
    """Write [T, 3, H, W] in [0, 1] as H.264 for any player, atomically.

    Frames under ``min_side`` pixels are enlarged by an integer factor without smoothing.
    """
    pixels = _to_uint8(_enlarge(frames, min_side))
    # yuv420p stores color for 2 x 2 pixels: odd sizes repeat their last row or column.
    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
    write_atomic(Path(path), lambda partial: _encode(partial, pixels, fps))


def _encode(path: Path, pixels: np.ndarray, fps: float) -> None:
    """Encode uint8 [T, H, W, 3] of even sizes as mp4."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def contact_sheet(
    images: Tensor,
    row_labels: list[str] | None = None,
    column_labels: list[str] | None = None,
    gap: int = 4,
    min_side: int = 128,
) -> Tensor:
    """Lay a grid of pictures out on white: [rows, columns, 3, H, W] -> [3, H', W'].

    Cells under ``min_side`` pixels are enlarged by an integer factor. Row labels are at the left, column labels above.
    """
    rows, columns = images.shape[:2]
    for name, labels, count in (("row", row_labels, rows), ("column", column_labels, columns)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"{len(labels)} {name}_labels for {count} {name}s: give one each")
    cells = _to_uint8(_enlarge(images.flatten(0, 1), min_side))
    height, width = cells.shape[1:3]
    font = ImageFont.load_default(14)
    left = gap + max((round(font.getlength(label)) + 2 * gap for label in row_labels or []), default=0)
    top = gap + (20 if column_labels else 0)
    sheet = Image.new("RGB", (left + columns * (width + gap), top + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        sheet.paste(Image.fromarray(cell), (left + column * (width + gap), top + row * (height + gap)))
    for row, label in enumerate(row_labels or []):
        draw.text((gap, top + row * (height + gap) + height / 2), label, fill="black", font=font, anchor="lm")
    for column, label in enumerate(column_labels or []):
        draw.text((left + column * (width + gap) + width / 2, 12), label, fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1) / 255


def write_views(folder: Path, input_video: Tensor, views: Tensor, azimuths_deg: list[float], fps: float = 8.0) -> None:
    """Write each view as an mp4, and a contact sheet with frames as columns and the input and the views as rows.

    input_video is [F, 3, H, W], views [V, F, 3, H, W], both RGB in [0, 1].
    """
    for azimuth, view in zip(azimuths_deg, views, strict=True):
        write_video(folder / f"view_{round(azimuth) % 360:03d}.mp4", view, fps)
    labels = ["input", *(f"{round(azimuth) % 360}\N{DEGREE SIGN}" for azimuth in azimuths_deg)]
    write_image(folder / "contact_sheet.png", contact_sheet(torch.cat([input_video[None], views]), row_labels=labels))


def _enlarge(images: Tensor, min_side: int) -> Tensor:
    """Repeat the pixels of [N, C, H, W] by an integer factor until the shorter side reaches ``min_side``."""
    if images.ndim != 4:
        raise ValueError(f"pictures must be [N, C, H, W], got {list(images.shape)}")
    factor = max(1, -(-min_side // min(images.shape[-2:])))
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def _to_uint8(images: Tensor) -> np.ndarray:
    """Convert [N, C, H, W] in [0, 1] to uint8 [N, H, W, C]."""
    scaled = images.detach().float().clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
