"""Videos longer than the model's window: groups of frames that are denoised together at a sampling step."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from fourdiffusion.errors import UserError

FrameGroups = Callable[[int], list[Tensor]]  # index of a sampling step -> groups of frame indices that cover the video


def windows(num_frames: int, length: int) -> FrameGroups:
    """Return runs of ``length`` consecutive frames that overlap by half; predictions are averaged in the overlap.

    After MultiDiffusion (Bar-Tal et al. 2023): one prediction per frame, so neighboring windows agree in the overlap.
    """
    starts = [*range(0, num_frames - length, max(length // 2, 1)), max(num_frames - length, 0)]
    groups = [torch.arange(start, min(start + length, num_frames)) for start in starts]
    return lambda _: groups


def interleaved(num_frames: int, length: int) -> FrameGroups:
    """Return groups of every N-th frame, which span the whole video (paper Fig. 5), alternating with contiguous runs.

    Groups without common frames drift apart; runs at every other step, shifted by half a run each time, couple them.
    """
    count = -(-num_frames // length)
    spread = [torch.arange(first, num_frames, count) for first in range(count)]

    def groups(step: int) -> list[Tensor]:
        if step % 2 == 0:
            return spread
        bounds = [0, *range(max(length // 2, 1) if step % 4 == 3 else length, num_frames, length), num_frames]
        return [torch.arange(low, high) for low, high in pairwise(bounds)]

    return groups


KINDS = {"windows": windows, "interleaved": interleaved}


def frame_groups(kind: str, num_frames: int, length: int, max_frames: int) -> FrameGroups | None:
    """Return groups of ``length`` frames of a kind in KINDS; None if the video fits into one.

    Raises:
        UserError: an unknown kind, or a length outside 1..max_frames, the motion layers' position table.
    """
    if kind not in KINDS:
        raise UserError(f"model.long_video={kind} is not one of {', '.join(KINDS)}")
    if not 1 <= length <= max_frames:
        raise UserError(f"model.window={length}: the motion layers support 1 to {max_frames} frames")
    return KINDS[kind](num_frames, length) if num_frames > length else None
