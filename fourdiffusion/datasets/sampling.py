"""Training samples out of clips: one input video and V evenly spaced views around it.

A batch is a function of (seed, rank, step) and nothing else, so a run that resumes sees what an uninterrupted one sees.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import Clip, list_clips, read_clip
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.errors import UserError
from fourdiffusion.randomness import stream


@dataclass
class Batch:
    """B samples on a white background, RGB in [0, 1]."""

    target: Tensor  # [B, F, V, 3, H, W]
    input: Tensor  # [B, F, 3, H, W]
    c2w: Tensor  # [B, V, 4, 4], relative to an input camera at azimuth 0
    captions: list[str]


class ClipBatches(Dataset[Batch]):
    """Item ``step`` is the batch that one process sees at that training step."""

    def __init__(self, config: DataConfig, num_frames: int, batch_size: int, seed: int, rank: int, steps: int) -> None:
        for name in ("num_views", "num_frames", "frame_stride"):
            if getattr(config, name) < 1:
                raise UserError(f"data.{name}={getattr(config, name)}: give at least 1")
        self.config, self.num_frames, self.batch_size = config, num_frames, batch_size
        self.seed, self.rank, self.steps = seed, rank, steps
        self.folders = list_clips(Path(config.path))
        self.cache: OrderedDict[Path, Clip] = OrderedDict()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        generator = stream(self.seed, self.rank, step)
        samples = [self._sample(generator) for _ in range(self.batch_size)]
        target, given, c2w, captions = zip(*samples, strict=True)
        return Batch(torch.stack(target), torch.stack(given), torch.stack(c2w), list(captions))

    def _sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, str]:
        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        clip = self._read(self.folders[draw(len(self.folders))])
        rigs = even_rigs(clip, self.config.num_views)
        views = rigs[draw(len(rigs))]
        source = draw(clip.rgba.shape[0])
        last = (self.num_frames - 1) * self.config.frame_stride
        if last >= clip.rgba.shape[1]:
            raise UserError(
                f"clip {clip.uid} has {clip.rgba.shape[1]} frames; {self.num_frames} at stride "
                f"{self.config.frame_stride} need {last + 1}: lower data.num_frames or data.frame_stride"
            )
        start = draw(clip.rgba.shape[1] - last)
        frames = slice(start, start + last + 1, self.config.frame_stride)
        target = clip.rgba[views][:, frames].transpose(0, 1).float() / 255  # [F, V, 3, H, W], composited on reading
        given = clip.rgba[source, frames].float() / 255
        c2w = cameras.turn(clip.c2w[views], -cameras.azimuth_deg(clip.c2w[source]))
        caption = clip.caption
        if self.config.augment and draw(2):
            target, given, c2w = target.flip(-1), given.flip(-1), cameras.mirror(c2w)
        if self.config.augment and draw(2):
            order = torch.randperm(3, generator=generator)
            target, given, caption = target[..., order, :, :], given[..., order, :, :], ""
        return target, given, c2w, caption

    def _read(self, folder: Path) -> Clip:
        """The clip, its pixels composited on white: uint8 [V, F, 3, H, W]."""
        if folder in self.cache:
            self.cache.move_to_end(folder)
            return self.cache[folder]
        clip = read_clip(folder)
        colour, alpha = clip.rgba[:, :, :3].float(), clip.rgba[:, :, 3:].float() / 255
        clip.rgba = (colour * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
        self.cache[folder] = clip
        if len(self.cache) > self.config.cache_clips:
            self.cache.popitem(last=False)
        return clip


def even_rigs(clip: Clip, num_views: int) -> list[list[int]]:
    """All sets of ``num_views`` cameras of a clip that stand evenly spaced around it, each in order of azimuth."""
    azimuths = [round(float(a), 2) % 360 for a in cameras.azimuth_deg(clip.c2w)]
    rigs: list[list[int]] = []
    for azimuth in azimuths:
        found = [_nearest(azimuths, azimuth + k * 360 / num_views) for k in range(num_views)]
        rig = sorted({i for i in found if i is not None}, key=azimuths.__getitem__)
        if len(rig) == num_views and rig not in rigs:
            rigs.append(rig)
    if not rigs:
        raise UserError(
            f"clip {clip.uid} has no {num_views} evenly spaced views among azimuths {azimuths}: "
            "set data.num_views to what the clips hold"
        )
    return rigs


def _nearest(azimuths: list[float], wanted: float) -> int | None:
    """Number of the azimuth nearest to the wanted one, None where all are half a degree or more away."""
    best = min(range(len(azimuths)), key=lambda i: _gap(azimuths[i], wanted))
    return best if _gap(azimuths[best], wanted) < 0.5 else None


def _gap(a: float, b: float) -> float:
    """Smallest angle between two azimuths, degrees."""
    return abs((a - b + 180) % 360 - 180)
