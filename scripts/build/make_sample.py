"""Write the sample that ships: one view of a rendered clip as a video, and all its views as the truth.

    python scripts/build/make_sample.py data/sample CLIP

CLIP is a clip of 256 x 256 pixels, its view 0 at azimuth 0: `fourdiffusion data render num_views=8
random_offset=false random_heading=true`. The video is view 0; the truth is half as large, the size that the model
generates. Of eight views, half are where 4DM puts its own and half are between.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fourdiffusion.datasets.clips import read_clip, write_clip
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import write_video


def halved(rgba: Tensor) -> Tensor:
    """Average straight-alpha pictures [V, F, 4, H, W], uint8, over 2 x 2 pixels, each weighted with its opacity."""
    values = rgba.flatten(0, 1).float() / 255
    alpha = values[:, 3:]
    color = functional.avg_pool2d(values[:, :3] * alpha, 2)
    share = functional.avg_pool2d(alpha, 2)
    small = torch.cat([color / share.clamp(min=1e-6), share], 1).clamp(0, 1)
    return small.mul(255).round().to(torch.uint8).unflatten(0, rgba.shape[:2])


def main(folder: Path, clip: Path) -> None:
    """Write ``folder/input.mp4`` and the clip ``folder/truth``."""
    content = read_clip(clip)
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / "input.mp4", composite(content.rgba[0].float() / 255))
    write_clip(folder / "truth", dataclasses.replace(content, uid="truth", rgba=halved(content.rgba), depth=None))
    print(f"{folder}: {content.caption}, {content.license}, {content.author}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
