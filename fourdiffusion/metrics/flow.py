"""Motion of a video without weights: TV-L1 optical flow (Zach et al. 2007), by scikit-image."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from fourdiffusion.metrics.image import check_pair

LUMA = (0.299, 0.587, 0.114)
AGREEMENT = 0.1  # largest mean absolute color difference of a pixel and its warped position


def estimate_flow(video: Tensor) -> tuple[Tensor, Tensor]:
    """Return the motion of each frame's pixels to the next frame, and which of them are visible there.

    A pixel is visible if the backward flow at its target returns to it within half a pixel, or a tenth of the motion
    (after Sundaram et al. 2010).

    Args:
        video: [F, 3, H, W] in [0, 1], F at least 2.

    Returns:
        flow [F - 1, 2, H, W] in pixels, x to the right, then y down; visible [F - 1, H, W], bool.
    """
    from skimage.registration import optical_flow_tvl1

    check_pair(video, video)
    if video.ndim != 4 or len(video) < 2:
        raise ValueError(f"flow needs a video [F, 3, H, W] of at least 2 frames, got {list(video.shape)}")
    gray = torch.einsum("fchw,c->fhw", video.float(), torch.tensor(LUMA)).numpy()

    def flow_of(a: np.ndarray, b: np.ndarray) -> Tensor:
        rows, columns = optical_flow_tvl1(a, b)
        return torch.from_numpy(np.stack([columns, rows]).astype(np.float32))

    ahead = torch.stack([flow_of(a, b) for a, b in zip(gray[:-1], gray[1:], strict=True)])
    back = torch.stack([flow_of(b, a) for a, b in zip(gray[:-1], gray[1:], strict=True)])
    returned = ahead + carry(back, ahead)
    lengths = (ahead.square() + carry(back, ahead).square()).sum(1)
    return ahead, returned.square().sum(1) < 0.25 + 0.01 * lengths


def visible_along(video: Tensor, flow: Tensor) -> Tensor:
    """Return which pixels have the same color at their known flow's target in the next frame, bool [F - 1, H, W].

    Pixels that are occluded in the next frame, or leave it, have motion vectors too. ``video`` [F, 3, H, W], ``flow``
    as in ``estimate_flow``.
    """
    height, width = video.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (
        (x + flow[:, 0] >= 0) & (x + flow[:, 0] <= width - 1) & (y + flow[:, 1] >= 0) & (y + flow[:, 1] <= height - 1)
    )
    return inside & ((carry(video[1:], flow) - video[:-1]).abs().mean(1) < AGREEMENT)


def carry(images: Tensor, flow: Tensor) -> Tensor:
    """Sample images [N, C, H, W] bilinearly at the targets of the flow [N, 2, H, W]."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = [(x + flow[:, 0] + 0.5) / width * 2 - 1, (y + flow[:, 1] + 0.5) / height * 2 - 1]
    grid = torch.stack(places, dim=-1)
    return grid_sample(images.float(), grid.float(), padding_mode="border", align_corners=False)
