"""Square crops around the object, resampled with premultiplied alpha.

Letters: F frames, H W pixels, S the side of a square crop.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

CROPS = ("object", "frame")
# Our training data shows an object of half extent about 0.36 in an image of half extent 1.1 tan(22.5 deg) = 0.456.
OBJECT_SHARE = 0.36 / 0.456


def object_square(alpha: np.ndarray, object_share: float) -> tuple[int, int, int]:
    """left, top, side of the square around the union of the object's boxes over all frames; alpha uint8 [F, H, W]."""
    shown = alpha.max(axis=0) > alpha.max() / 2  # a matting network's haze is no part of the object
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(1, round(float(max(bottom - top, right - left)) / object_share))
    return round(float(left + right - side) / 2), round(float(top + bottom - side) / 2), side


def frame_square(height: int, width: int) -> tuple[int, int, int]:
    side = max(height, width)
    return (width - side) // 2, (height - side) // 2, side


def resample(frames: np.ndarray, square: tuple[int, int, int], size: int) -> Tensor:
    """uint8 [F, H, W, 4] -> [F, 4, S, S]. Resized with premultiplied alpha: hidden colour must not bleed in."""
    left, top, side = square
    height, width = frames.shape[1:3]
    y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
    resized = []
    for frame in frames:
        pixels = torch.from_numpy(frame[y0:y1, x0:x1].astype(np.float32) / 255).permute(2, 0, 1)
        canvas = torch.zeros(4, side, side)
        canvas[:, y0 - top : y1 - top, x0 - left : x1 - left] = pixels
        canvas[:3] *= canvas[3:]
        resized.append(interpolate(canvas[None], size=(size, size), mode="bicubic", antialias=True)[0])
    rgba = torch.stack(resized)
    alpha = rgba[:, 3:]  # bicubic weights overshoot, alike in all four channels: clamp after the division
    colour = torch.where(alpha > 1 / 512, rgba[:, :3] / alpha.clamp(min=1 / 512), 0.0)
    return torch.cat([colour, alpha], dim=1).clamp(0, 1)
