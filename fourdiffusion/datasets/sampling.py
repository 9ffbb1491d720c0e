"""Training samples out of clips: one input video and V evenly spaced views around it.

A sample is a function of (seed, sample, step) and of nothing else: neither of the process that reads it nor of what
was read before. A resumed run, or one on another number of processes, sees the same samples.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import Clip, ClipFiles, list_clips, open_clip
from fourdiffusion.datasets.curation.settings import check_test_sets
from fourdiffusion.datasets.curation.test_sets import check_contamination
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.errors import UserError
from fourdiffusion.randomness import stream


@dataclass
class Sample:
    """One input video and its target views on a white background, RGB in [0, 1]."""

    target: Tensor  # [F, V, 3, H, W]
    input: Tensor  # [F, 3, H, W]
    c2w: Tensor  # [V, 4, 4], relative to an input camera at azimuth 0
    caption: str
    number: int  # of the sample in the global batch


@dataclass
class Batch:
    """B samples on a white background, RGB in [0, 1]."""

    target: Tensor  # [B, F, V, 3, H, W]
    input: Tensor  # [B, F, 3, H, W]
    c2w: Tensor  # [B, V, 4, 4], relative to an input camera at azimuth 0
    captions: list[str]
    samples: list[int]  # number of each sample in the global batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples to a batch."""
    return Batch(
        torch.stack([sample.target for sample in samples]),
        torch.stack([sample.input for sample in samples]),
        torch.stack([sample.c2w for sample in samples]),
        [sample.caption for sample in samples],
        [sample.number for sample in samples],
    )


class ClipSamples(Dataset[Sample]):
    """Item (step, sample) is one sample of the global batch of a training step.

    Only the pictures of the sample are read. They are kept, composited on white, up to ``cache_mib`` MiB.

    Args:
        config: which clips, and how samples are cut out of them.
        num_frames: F.
        seed: of the draws.
    """

    def __init__(self, config: DataConfig, num_frames: int, seed: int) -> None:
        for name in ("num_views", "num_frames", "frame_stride"):
            if getattr(config, name) < 1:
                raise UserError(f"data.{name}={getattr(config, name)}: give at least 1")
        self.config, self.num_frames, self.seed = config, num_frames, seed
        self.folders = list_clips(Path(config.path))
        check_test_sets(config.allow_test_sets)
        self._check_contamination(folder.name for folder in self.folders)
        self.clips: dict[Path, ClipFiles] = {}
        self.cache: OrderedDict[tuple[Path, int, int], Tensor] = OrderedDict()
        self.cached_bytes = 0

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        step, number = index
        generator = stream(self.seed, number, step)

        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        clip = self._open(self.folders[draw(len(self.folders))])
        num_views, num_frames = clip.pictures.shape[:2]
        rigs = even_rigs(clip, self.config.num_views)
        views = rigs[draw(len(rigs))]
        source = draw(num_views)
        last = (self.num_frames - 1) * self.config.frame_stride
        if last >= num_frames:
            raise UserError(
                f"clip {clip.uid} has {num_frames} frames; {self.num_frames} at stride {self.config.frame_stride} "
                f"need {last + 1}: lower data.num_frames or data.frame_stride"
            )
        start = draw(num_frames - last)
        frames = range(start, start + last + 1, self.config.frame_stride)
        target = torch.stack([torch.stack([self._read(clip, v, f) for v in views]) for f in frames]).float() / 255
        given = torch.stack([self._read(clip, source, f) for f in frames]).float() / 255
        c2w = cameras.turn(clip.c2w[views], -cameras.azimuth_deg(clip.c2w[source]))
        caption = clip.caption
        if self.config.augment and draw(2):
            target, given, c2w = target.flip(-1), given.flip(-1), cameras.mirror(c2w)
        if self.config.augment and draw(2):
            order = torch.randperm(3, generator=generator)
            target, given, caption = target[..., order, :, :], given[..., order, :, :], ""
        return Sample(target, given, c2w, caption, number)

    def _open(self, folder: Path) -> ClipFiles:
        if folder not in self.clips:
            clip = open_clip(folder)
            self._check_contamination([clip.source])
            self.clips[folder] = clip
        return self.clips[folder]

    def _check_contamination(self, names: Iterable[str]) -> None:
        check_contamination(names, self.config.allow_test_sets, "data.allow_test_sets")

    def _read(self, clip: ClipFiles, view: int, frame: int) -> Tensor:
        """Return one picture composited on white: uint8 [3, H, W]."""
        key = (clip.pictures.files[view][frame], view, frame)
        if key in self.cache:
            self.cache.move_to_end(key)
            return self.cache[key]
        rgba = clip.pictures[view, frame]
        color, alpha = rgba[:3].float(), rgba[3:].float() / 255
        picture = (color * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
        self.cache[key] = picture
        self.cached_bytes += picture.nbytes
        while self.cached_bytes > self.config.cache_mib * 2**20 and self.cache:
            self.cached_bytes -= self.cache.popitem(last=False)[1].nbytes
        return picture


def even_rigs(clip: Clip | ClipFiles, num_views: int) -> list[list[int]]:
    """Return all sets of ``num_views`` cameras of a clip that stand evenly spaced, each in order of azimuth.

    The cameras of a set share their elevation.
    """
    azimuths = [round(float(a), 2) % 360 for a in cameras.azimuth_deg(clip.c2w)]
    heights = [float(camera[2, 3]) for camera in clip.c2w]
    rigs: list[list[int]] = []
    for first, azimuth in enumerate(azimuths):
        level = [i for i, height in enumerate(heights) if abs(height - heights[first]) < 1e-3]
        found = [_nearest(azimuths, level, azimuth + k * 360 / num_views) for k in range(num_views)]
        rig = sorted({i for i in found if i is not None}, key=azimuths.__getitem__)
        if len(rig) == num_views and rig not in rigs:
            rigs.append(rig)
    if not rigs:
        raise UserError(
            f"clip {clip.uid} has no {num_views} evenly spaced views among azimuths {azimuths}: "
            "set data.num_views to what the clips hold"
        )
    return rigs


def _nearest(azimuths: list[float], level: list[int], wanted: float) -> int | None:
    """Return the view of ``level`` nearest to an azimuth, None where all are half a degree or more away."""
    best = min(level, key=lambda i: _gap(azimuths[i], wanted))
    return best if _gap(azimuths[best], wanted) < 0.5 else None


def _gap(a: float, b: float) -> float:
    """Return the smallest angle between two azimuths, degrees."""
    return abs((a - b + 180) % 360 - 180)
