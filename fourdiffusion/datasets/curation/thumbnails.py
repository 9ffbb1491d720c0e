"""Animated thumbnails of clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fourdiffusion.files import write_atomic

SIDE = 96  # pixels of each view
FPS = 8
QUALITY = 55  # of WebP
GRAY = 235  # of the background


def write_thumbnail(path: Path, views: list[Tensor]) -> None:
    """Write views, uint8 [F, 4, H, W] each, side by side as an animated WebP, atomically."""
    strips = [_over_gray(view) for view in views]
    pictures = [Image.fromarray(np.concatenate(row, axis=1)) for row in zip(*strips, strict=True)]
    options = {"duration": round(1000 / FPS), "loop": 0, "quality": QUALITY, "method": 1}
    write_atomic(
        path,
        lambda partial: pictures[0].save(partial, format="WEBP", save_all=True, append_images=pictures[1:], **options),
    )


def _over_gray(rgba: Tensor) -> list[np.ndarray]:
    """Composite over gray and resize: uint8 [F, 4, H, W] -> F pictures [SIDE, w, 3]."""
    height, width = rgba.shape[-2:]
    size = (max(1, round(SIDE * width / height)), SIDE)
    pictures = []
    for frame in rgba.permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(frame)
        ground = Image.new("RGBA", picture.size, (GRAY, GRAY, GRAY, 255))
        whole = Image.alpha_composite(ground, picture).convert("RGB")
        pictures.append(
            np.asarray(whole.resize(size, Image.Resampling.BOX if height > SIDE else Image.Resampling.NEAREST))
        )
    return pictures
