"""Square crops around the object, resampled with premultiplied alpha.

Letters: F frames, H W pixels, S the side of a square crop. A square is (left, top, side) in pixels.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Square = tuple[int, int, int]

# The training data shows an object of half extent about 0.36 in an image of half extent 1.1 tan(22.5 deg) = 0.456.
OBJECT_SHARE = 0.36 / 0.456
SMOOTH_FRAMES = 5  # the path of a crop that follows the object is smoothed by line fits over this many frames


def object_square(alpha: np.ndarray, object_share: float) -> Square:
    """Return the square around the union of the object's boxes over all frames; alpha uint8 [F, H, W]."""
    left, top, right, bottom = _box((alpha > alpha.max() / 2).any(axis=0))  # ignore the haze of a matting network
    side = max(1, round(float(max(bottom - top, right - left)) / object_share))
    return round(float(left + right - side) / 2), round(float(top + bottom - side) / 2), side


def follow_squares(alpha: np.ndarray, object_share: float) -> list[Square]:
    """Return a square of equal side for each frame that moves with the object; alpha uint8 [F, H, W].

    The centers of the object's boxes are smoothed over time, so that the crop does not jitter with the outline. The
    square contains the object's box in every frame. Centers of frames without object are interpolated.
    """
    shown = alpha > alpha.max() / 2
    present = np.flatnonzero(shown.any(axis=(1, 2)))
    boxes = np.array([_box(shown[i]) for i in present], dtype=np.float64)  # [P, 4]: left, top, right, bottom
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    every = np.arange(len(alpha))
    path = np.stack([np.interp(every, present, centers[:, axis]) for axis in (0, 1)], axis=1)
    window = min(SMOOTH_FRAMES, len(path) - 1 + len(path) % 2)
    if window > 2:
        from scipy.signal import savgol_filter  # here: it takes a second to import

        path = savgol_filter(path, window, polyorder=1, axis=0)  # keeps a uniform motion unchanged, also at the ends
    margins = np.maximum(path[present] - boxes[:, :2], boxes[:, 2:] - path[present])
    side = max(1, round(2 * float(margins.max()) / object_share))
    return [(round(float(x) - side / 2), round(float(y) - side / 2), side) for x, y in path]


def frame_square(height: int, width: int) -> Square:
    """Return the centered square that contains the whole frame."""
    side = max(height, width)
    return (width - side) // 2, (height - side) // 2, side


def resample(frames: np.ndarray, squares: list[Square], size: int) -> Tensor:
    """Crop and resize, uint8 [F, H, W, 4] -> [F, 4, S, S], with premultiplied alpha: hidden color must not bleed in."""
    height, width = frames.shape[1:3]
    resized = []
    for frame, (left, top, side) in zip(frames, squares, strict=True):
        y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
        pixels = torch.from_numpy(frame[y0:y1, x0:x1].astype(np.float32) / 255).permute(2, 0, 1)
        canvas = torch.zeros(4, side, side)
        canvas[:, y0 - top : y1 - top, x0 - left : x1 - left] = pixels
        canvas[:3] *= canvas[3:]
        resized.append(interpolate(canvas[None], size=(size, size), mode="bicubic", antialias=True)[0])
    rgba = torch.stack(resized)
    alpha = rgba[:, 3:]  # bicubic weights overshoot equally in all four channels: clamp after the division
    color = torch.where(alpha > 1 / 512, rgba[:, :3] / alpha.clamp(min=1 / 512), 0.0)
    return torch.cat([color, alpha], dim=1).clamp(0, 1)


def _box(shown: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom (exclusive) of the True pixels of [H, W]."""
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
