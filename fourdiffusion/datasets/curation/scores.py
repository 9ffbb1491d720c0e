"""Scores of one clip: motion, framing and content. Pure functions of tensors.

Letters: V views, F frames, H W pixels, h w working pixels. Pictures are compared as *signed* pictures
[..., 4, h, w]: alpha * (red - 0.5, green - 0.5, blue - 0.5, 1), so that black and white objects count the same on a
transparent background. The *difference* of two pictures is the sum of their absolute differences over the area of the
union of their silhouettes: 0 where they are equal, at least 1 where they do not overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.curation.alignment import aligned_residuals

WORKING_SIDE = 64  # pixels of the pictures that are compared
TURNING_SIDE = 32  # of pictures compared over all pairs of views
SAME_ELEVATION_DEG = 3.0
SAME_OFFSET_DEG = 2.0
RING_SHARE = 0.02  # share of the border's pixels that are covered: above it the object is cut off
ALIGNED_FRAMES = 8  # compared with the first one
NOISE = 0.02  # difference of two pictures that counts as zero


@dataclass(frozen=True)
class Scores:
    """The scores of a clip. Differences are defined in the module's docstring."""

    num_frames: int
    pixel_motion: float  # largest difference of two frames, mean over views
    silhouette_motion: float  # 1 - smallest intersection over union of two frames' silhouettes, mean over views
    articulation: float  # as pixel_motion to the first frame, after the best similarity transform of each picture
    turning: float  # in [0, 1]: how well other views of other frames explain a frame; 1 is a turning camera or object
    outside: float  # share of pictures that cut the object off or do not show it
    size: float  # longer side of the object's bounding box as a share of the picture's side, mean over pictures
    flicker: float  # mean over frames of changes that are reverted in the next frame
    texture: float  # entropy of the colors in bits, 64 bins
    opacity: float  # share of covered pixels; 1: the clip has no transparent background


def choose_views(c2w: Tensor, max_views: int) -> list[int]:
    """Return at most ``max_views`` of the cameras c2w [V, 4, 4], spread evenly over the azimuths.

    If at least four cameras share an elevation, only cameras of the most common one are chosen.
    """
    azimuths = cameras.azimuth_deg(c2w) % 360
    elevations = elevation_deg(c2w)
    level = max(
        ([i for i, e in enumerate(elevations) if abs(float(e - center)) < SAME_ELEVATION_DEG] for center in elevations),
        key=len,
    )
    if len(level) < min(4, len(c2w)):
        level = list(range(len(c2w)))
    level.sort(key=lambda i: float(azimuths[i]))
    return evenly(level, max_views)


def evenly(items: list[int], most: int) -> list[int]:
    """Return at most ``most`` of the items, evenly spaced in their order."""
    if len(items) <= most:
        return items
    return [items[k * len(items) // most] for k in range(most)]


def elevation_deg(c2w: Tensor) -> Tensor:
    """Return the elevation of the cameras' positions [..., 4, 4] -> [...] in degrees."""
    position = c2w[..., :3, 3]
    return torch.atan2(position[..., 2], position[..., :2].norm(dim=-1)) * (180 / math.pi)


def read_for_scores(clip: ClipFiles, max_views: int, max_frames: int) -> tuple[Tensor, Tensor]:
    """Read the pictures to score: uint8 [V, F, 4, H, W] and their cameras [V, 4, 4].

    Frames are evenly spaced, the first and the last among them.
    """
    views, count = choose_views(clip.c2w, max_views), clip.pictures.shape[1]
    frames = list(range(count))
    if count > max_frames:
        frames = [round(k * (count - 1) / (max_frames - 1)) for k in range(max_frames)]
    return clip.pictures[views, frames], clip.c2w[views]


def measure(signed: Tensor, alpha: Tensor, c2w: Tensor, num_frames: int) -> Scores:
    """Score a clip.

    Args:
        signed: its ``signed_pictures`` [V, F, 4, h, w].
        alpha: uint8 [V, F, H, W] at full resolution.
        c2w: camera-to-world [V, 4, 4].
        num_frames: number of frames of the whole clip; F of them were read.
    """
    views, frames = signed.shape[:2]
    if signed.ndim != 5 or signed.shape[2] != 4 or alpha.shape[:2] != (views, frames) or c2w.shape != (views, 4, 4):
        shapes = f"{tuple(signed.shape)}, {tuple(alpha.shape)}, {tuple(c2w.shape)}"
        raise ValueError(f"signed, alpha, c2w are {shapes}: give [V, F, 4, h, w], [V, F, H, W] and [V, 4, 4]")
    differences = torch.stack([pair_differences(view) for view in signed])  # [V, F, F]
    small = adaptive_avg_pool2d(signed.flatten(0, 1), TURNING_SIDE).unflatten(0, (views, frames))
    aligned = signed[:, evenly(list(range(frames)), ALIGNED_FRAMES)]
    return Scores(
        num_frames=num_frames,
        pixel_motion=float(differences.amax(dim=(1, 2)).mean()),
        silhouette_motion=silhouette_motion(signed[:, :, 3]),
        articulation=float(aligned_residuals(aligned).mean(dim=0).max()),
        turning=turning(small, c2w),
        outside=outside(alpha),
        size=size_in_frame(alpha),
        flicker=flicker(signed),
        texture=texture_bits(signed),
        opacity=float((alpha > 127).float().mean()),
    )


def signed_pictures(rgba: Tensor, side: int = WORKING_SIDE) -> Tensor:
    """Return signed pictures [V, F, 4, side, side] of uint8 RGBA [V, F, 4, H, W], resized to squares."""
    views = []
    for view in rgba:
        picture = view.float() / 255
        picture[:, :3] -= 0.5
        picture[:, :3] *= picture[:, 3:]
        factor = picture.shape[-1] // side
        exact = picture.shape[-2:] == (factor * side, factor * side)
        views.append(avg_pool2d(picture, factor) if exact else adaptive_avg_pool2d(picture, side))
    return torch.stack(views)


def pair_differences(pictures: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the differences [N, M] of all pairs of signed pictures [N, 4, h, w] and [M, 4, h, w] (or themselves)."""
    others = pictures if others is None else others
    first, second = pictures.flatten(1), others.flatten(1)
    total = torch.cdist(first, second, p=1)
    first, second = pictures[:, 3].flatten(1), others[:, 3].flatten(1)
    union = (first.sum(1)[:, None] + second.sum(1)[None] + torch.cdist(first, second, p=1)) / 2
    return total / union.clamp(min=1)


def silhouette_motion(alpha: Tensor) -> float:
    """Return 1 - the smallest IoU of two frames of [V, F, h, w], mean over views."""
    values = []
    for view in alpha.flatten(2):
        apart = torch.cdist(view, view, p=1)
        area = view.sum(1)
        values.append((apart / ((area[:, None] + area[None] + apart) / 2).clamp(min=1)).max())
    return float(torch.stack(values).mean())


def turning(signed: Tensor, c2w: Tensor) -> float:
    """Return how well a rotation of all cameras about the vertical axis explains the motion, in [0, 1].

    If object or cameras rotate, a view at one time equals another view at another time, for all pairs of views with
    the same angle between them. Each frame j is compared with all frames i of the other views; its score is the
    smallest ratio of that difference to the difference of j and i in the same view. The result is the mean of the
    better half of the frames, since no frame matches until the rotation reaches the angle between two cameras.

    signed [V, F, 4, h, w], c2w [V, 4, 4]. 0 with fewer than 3 views.
    """
    views, frames = signed.shape[:2]
    azimuths, elevations = cameras.azimuth_deg(c2w), elevation_deg(c2w)
    between = pair_differences(signed.flatten(0, 1)).view(views, frames, views, frames)
    same = torch.stack([between[v, :, v] for v in range(views)]).mean(dim=0)  # [F, F]
    offsets: list[tuple[float, list[Tensor]]] = []
    for v in range(views):
        for u in range(views):
            if u == v or abs(float(elevations[u] - elevations[v])) > SAME_ELEVATION_DEG:
                continue
            angle = float(azimuths[u] - azimuths[v]) % 360
            group = next(
                (members for a, members in offsets if abs((a - angle + 180) % 360 - 180) < SAME_OFFSET_DEG), None
            )
            if group is None:
                offsets.append((angle, group := []))
            group.append(between[v, :, u])  # [F, F]: frame of v, frame of u
    groups = [torch.stack(members).mean(dim=0) for _, members in offsets if len(members) >= 3]
    if not groups:
        return 0.0
    ratio = torch.stack(groups).amin(dim=0) / same.clamp(min=NOISE)
    ratio = torch.where(same > 2 * NOISE, ratio, torch.ones(())).clamp(max=1)
    best = ratio.amin(dim=1).sort().values[: max(1, frames // 2)]
    return float(1 - best.mean())


def outside(alpha: Tensor) -> float:
    """Return the share of pictures, of uint8 alpha [V, F, H, W], in which the object is cut off or missing."""
    solid = alpha > 127
    ring = torch.cat([solid[..., 0, :], solid[..., -1, :], solid[..., 1:-1, 0], solid[..., 1:-1, -1]], dim=-1)
    cut = ring.float().mean(dim=-1) > RING_SHARE
    return float((cut | ~solid.flatten(2).any(dim=-1)).float().mean())


def size_in_frame(alpha: Tensor) -> float:
    """Return the longer side of the silhouette's box over the picture's side, mean over uint8 alpha [V, F, H, W]."""
    solid = alpha > 127
    extents = []
    for axis in (-1, -2):
        covered = solid.any(dim=axis)  # [V, F, n]
        place = torch.arange(covered.shape[-1])
        last = torch.where(covered, place, -1).amax(dim=-1)
        first = torch.where(covered, place, covered.shape[-1]).amin(dim=-1)
        extents.append((last - first + 1).clamp(min=0) / covered.shape[-1])
    return float(torch.stack(extents).amax(dim=0).mean())


def flicker(signed: Tensor) -> float:
    """Return the mean over frames of changes that are reverted in the next frame, over the silhouettes' union.

    For two successive changes of opposite sign, the smaller one counts, per pixel and channel.
    """
    if signed.shape[1] < 3:
        return 0.0
    step = signed.diff(dim=1)
    before, after = step[:, :-1], step[:, 1:]
    back = torch.where(before * after < 0, torch.minimum(before.abs(), after.abs()), torch.zeros(())).sum(dim=(2, 3, 4))
    alpha = signed[:, :, 3]
    union = torch.stack([alpha[:, :-2], alpha[:, 1:-1], alpha[:, 2:]]).amax(dim=0).sum(dim=(2, 3))
    return float((back / union.clamp(min=1)).mean())


def texture_bits(signed: Tensor) -> float:
    """Return the entropy in bits of the colors inside the silhouettes: four bins a channel, over all pictures."""
    alpha = signed[:, :, 3]
    inside = alpha > 0.9
    colors = (signed[:, :, :3] / alpha[:, :, None].clamp(min=0.5) + 0.5).movedim(2, -1)[inside]
    if not len(colors):
        return 0.0
    bins = (colors * 4).long().clamp(0, 3)
    counts = torch.bincount(bins @ torch.tensor([16, 4, 1]), minlength=64).float()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum()) + 0.0
