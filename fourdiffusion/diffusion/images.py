"""Check and resize the input images of a pipeline: tensors, arrays or PIL pictures."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor

Images = Tensor | np.ndarray | Sequence[Image.Image]
TOLERANCE = 1e-3  # tolerance around [0, 1], for resized or composited pictures


def to_frames(images: Images, size: int) -> Tensor:
    """Return the model's input frames: RGB in [0, 1], [F, 3, size, size], float32.

    Args:
        images: a tensor [F, 3, H, W] or an array [F, H, W, 3], uint8 or float in [0, 1]; or a list of F PIL pictures
            (transparent ones are composited on white). Pictures are square.
        size: side in pixels to resize to.

    Raises:
        ValueError: another type, shape, dtype or range, or a number that is not finite.
    """
    if isinstance(images, Tensor):
        frames = images
    elif isinstance(images, np.ndarray):
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images: an array of shape {list(images.shape)}, give [F, H, W, 3]")
        frames = torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1)
    else:
        frames = _from_pictures(images)
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"images: a tensor of shape {list(frames.shape)}, give [F, 3, H, W]")
    count, _, height, width = frames.shape
    if count == 0 or height == 0 or height != width:
        raise ValueError(f"images: {count} pictures of {width} x {height} pixels, give one or more square ones")
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    elif not frames.is_floating_point():
        raise ValueError(f"images: dtype {frames.dtype}, give uint8 or floating point in [0, 1]")
    frames = frames.float()
    if not bool(frames.isfinite().all()):
        raise ValueError("images: some numbers are NaN or infinite")
    low, high = frames.min().item(), frames.max().item()
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(f"images: values run from {low:g} to {high:g}, give floats in [0, 1] or uint8")
    if height != size:
        frames = functional.interpolate(frames, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return frames


def _from_pictures(images: Sequence[Image.Image]) -> Tensor:
    if not isinstance(images, (list, tuple)) or not all(isinstance(image, Image.Image) for image in images):
        inside = f" of {type(images[0]).__name__}" if isinstance(images, (list, tuple)) and images else ""
        raise ValueError(
            f"images: a {type(images).__name__}{inside}, give a tensor, an array or a list of PIL pictures"
        )
    if len(sizes := {image.size for image in images}) != 1:
        raise ValueError(f"images: {len(images)} pictures of sizes {sorted(sizes)}, give one or more of one size")
    frames = []
    for image in images:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        frames.append(torch.from_numpy(np.asarray(white.convert("RGB")).copy()).movedim(-1, 0))
    return torch.stack(frames)
