"""Training samples from clips: one input video and V evenly spaced views around it.

A sample is a function of (seed, step, index in the batch) only: it depends neither on the process that reads it nor on
earlier reads. A resumed run, or one on another number of processes, reads the same samples. An epoch takes every clip
once, in an order drawn from (seed, epoch).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import Clip, ClipFiles, list_clips, open_clip, read_caption
from fourdiffusion.datasets.curation.settings import check_test_sets
from fourdiffusion.datasets.curation.test_sets import TestObjectError, check_contamination
from fourdiffusion.datasets.pictures import on_white
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.datasets.shards.reader import CachedTensors, ShardSet
from fourdiffusion.datasets.shards.storage import is_remote
from fourdiffusion.errors import UserError
from fourdiffusion.randomness import stream

MAX_SKIPPED = 50  # unusable clips in a row before it is an error
KEPT_CLIPS = 1024  # of opened clips; the paths of a clip of 12 x 16 pictures take 70 kB


@dataclass
class Sample:
    """One input video and its target views on a white background, RGB in [0, 1].

    Pictures that are replaced by cached tensors are empty: H = W = 0.
    """

    target: Tensor  # [F, V, 3, H, W]
    input: Tensor  # [F, 3, H, W]
    c2w: Tensor  # [V, 4, 4], relative to an input camera at azimuth 0
    caption: str
    number: int  # of the sample in the global batch
    cached: dict[str, Tensor] = field(default_factory=dict)  # by the names of DiffusionObjective's arguments
    uid: str = ""  # of the clip
    skipped: list[str] = field(default_factory=list)  # unreadable clips that this sample replaces, each with the reason


@dataclass
class Batch:
    """B samples on a white background, RGB in [0, 1]."""

    target: Tensor  # [B, F, V, 3, H, W]
    input: Tensor  # [B, F, 3, H, W]
    c2w: Tensor  # [B, V, 4, 4], relative to an input camera at azimuth 0
    captions: list[str]
    samples: list[int]  # number of each sample in the global batch
    cached: dict[str, Tensor] = field(default_factory=dict)  # [B, ...] each
    uids: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples to a batch."""
    return Batch(
        torch.stack([sample.target for sample in samples]),
        torch.stack([sample.input for sample in samples]),
        torch.stack([sample.c2w for sample in samples]),
        [sample.caption for sample in samples],
        [sample.number for sample in samples],
        {name: torch.stack([sample.cached[name] for sample in samples]) for name in samples[0].cached},
        [sample.uid for sample in samples],
        [reason for sample in samples for reason in sample.skipped],
    )


class ClipFolders:
    """The clips in a folder, numbered by name; same interface as ShardSet."""

    def __init__(self, root: Path) -> None:
        self.folders = list_clips(root)
        self.names = [folder.name for folder in self.folders]
        self.encoders: dict[str, str] = {}  # folders hold no cached tensors

    def __len__(self) -> int:
        return len(self.folders)

    def open(self, number: int) -> ClipFiles:
        return open_clip(self.folders[number])

    def caption(self, number: int) -> str:
        return read_caption(self.folders[number])

    def cached(self, number: int) -> CachedTensors:
        raise UserError(f"{self.folders[number]}: a folder of clips holds no cached latents")


def open_clips(path: str) -> ClipFolders | ShardSet:
    """Return the clips of a folder of clips, or of a folder or an address of shards."""
    if is_remote(path) or Path(path).expanduser().joinpath("index.json").is_file():
        return ShardSet(path)
    return ClipFolders(Path(path))


class ClipSamples(Dataset[Sample]):
    """Item (step, number) is one sample of the global batch of a training step.

    Only the pictures of the sample are read; up to ``cache_mib`` MiB of them are cached, composited on white. A clip
    that cannot be read is replaced by the next one of the epoch's order, and the sample lists what was skipped.

    Args:
        config: which clips, and how samples are taken from them.
        num_frames: F.
        seed: of the draws.
        batch_size: samples of a step, over all processes: an epoch then takes every clip once. None draws clips with
            replacement.
        with_embeddings: of ``config.latents``: also image tokens and text states, in place of the input's pictures;
            False for a stage that trains the towers: only latents.
    """

    def __init__(
        self,
        config: DataConfig,
        num_frames: int,
        seed: int,
        batch_size: int | None = None,
        with_embeddings: bool = True,
    ) -> None:
        for name in ("num_views", "num_frames", "frame_stride"):
            if getattr(config, name) < 1:
                raise UserError(f"data.{name}={getattr(config, name)}: give at least 1")
        self.config, self.num_frames, self.seed, self.batch_size = config, num_frames, seed, batch_size
        self.with_embeddings = with_embeddings
        self.source = open_clips(config.path)
        check_test_sets(config.allow_test_sets)
        self._check_contamination(self.source.names)
        if config.latents and not self.source.encoders:
            raise UserError(
                f"data.latents=true, but {config.path} holds no cached latents: make them with "
                "`fourdiffusion data pack latents=true model.path=MODEL`"
            )
        if config.latents and config.augment:
            raise UserError(
                "data.augment=true changes pictures, and data.latents=true reads what was made of them before: set one "
                "of them to false"
            )
        self.clips: OrderedDict[int, ClipFiles] = OrderedDict()
        self.cache: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()
        self.cached_bytes = 0

    @cached_property
    def picture_size(self) -> tuple[int, int]:
        """Return height and width of the first readable clip's pictures; clips of another size are skipped."""
        reason = ""
        for number in range(min(len(self.source), MAX_SKIPPED)):
            try:
                height, width = self.source.open(number).pictures.shape[-2:]
                return height, width
            except UserError as error:
                reason = reason or f"{self.source.names[number]}: {error}"
        raise UserError(f"data.path={self.config.path}: none of its first clips can be opened; the first is {reason}")

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        step, number = index
        skipped: list[str] = []
        for attempt in range(min(len(self.source), MAX_SKIPPED)):
            generator = stream(self.seed, number, step)
            clip_number = self._draw_clip(generator, step, number, attempt)
            try:
                sample = self._sample(clip_number, number, generator)
            except TestObjectError:
                raise  # not an error of one clip, which another could replace
            except UserError as error:
                skipped.append(f"{self.source.names[clip_number]}: {error}")
                continue
            sample.skipped = skipped
            return sample
        raise UserError(
            f"data.path={self.config.path}: {len(skipped)} of {len(self.source)} clips in a row cannot be used; the "
            f"first is {skipped[0]}"
        )

    def first_clip(self, step: int, number: int) -> str:
        """Return the name of the clip that an item is cut out of, where it can be read."""
        return self.source.names[self._draw_clip(stream(self.seed, number, step), step, number, 0)]

    def _draw_clip(self, generator: torch.Generator, step: int, number: int, attempt: int) -> int:
        """Return the number of a sample's clip; a later attempt moves on from one that cannot be read."""
        count = len(self.source)
        if self.batch_size is None:
            return (int(torch.randint(count, (), generator=generator)) + attempt) % count
        epoch, position = divmod(step * self.batch_size + number, count)
        return int(epoch_order(self.seed, epoch, count)[(position + attempt) % count])

    def _sample(self, clip_number: int, number: int, generator: torch.Generator) -> Sample:
        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        clip = self._open(clip_number)
        num_views, num_frames = clip.pictures.shape[:2]
        if clip.pictures.shape[-2:] != self.picture_size:
            found, first = clip.pictures.shape[-2:], self.picture_size
            raise UserError(
                f"its pictures are {found[1]} x {found[0]}, those of the first clip {first[1]} x {first[0]}"
            )
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
        c2w = cameras.turn(clip.c2w[views], -cameras.azimuth_deg(clip.c2w[source]))
        caption = clip.caption
        if self.config.latents:
            cached = self._cached(self.source.cached(clip_number), views, source, frames)
            target = torch.empty(len(frames), len(views), 3, 0, 0)
            given = torch.empty(len(frames), 3, 0, 0)
            if not self.with_embeddings:
                given = self._read(clip_number, clip, source, frames).float() / 255
            return Sample(target, given, c2w, caption, number, cached, clip.uid)
        seen = {view: self._read(clip_number, clip, view, frames) for view in dict.fromkeys([*views, source])}
        target = torch.stack([seen[view] for view in views], dim=1).float() / 255
        given = seen[source].float() / 255
        if self.config.augment and draw(2):
            target, given, c2w = target.flip(-1), given.flip(-1), cameras.mirror(c2w)
        if self.config.augment and draw(2):
            order = torch.randperm(3, generator=generator)
            target, given, caption = target[..., order, :, :], given[..., order, :, :], ""
        return Sample(target, given, c2w, caption, number, uid=clip.uid)

    def _cached(self, tensors: CachedTensors, views: list[int], source: int, frames: range) -> dict[str, Tensor]:
        """Return a sample's cached tensors by the names of the objective's arguments."""
        latents = tensors.rows("latents", [(v, f) for f in frames for v in [*views, source]])
        latents = latents.unflatten(0, (len(frames), len(views) + 1))
        found = {"latents": latents[:, :-1], "given_latents": latents[:, -1]}
        if self.with_embeddings:
            found["image_tokens"] = tensors.rows("image_tokens", [(source, f) for f in frames])
            found["text"] = torch.cat([tensors.rows(name, [()]) for name in ("text", "empty_text")])
        return found

    def _open(self, number: int) -> ClipFiles:
        if number not in self.clips:
            clip = self.source.open(number)
            self._check_contamination([clip.source])
            self.clips[number] = clip
        self.clips.move_to_end(number)
        while len(self.clips) > KEPT_CLIPS:
            self.clips.popitem(last=False)
        return self.clips[number]

    def _check_contamination(self, names: Iterable[str]) -> None:
        check_contamination(names, self.config.allow_test_sets, "data.allow_test_sets")

    def _read(self, number: int, clip: ClipFiles, view: int, frames: range) -> Tensor:
        """Return pictures of one view composited on white: uint8 [F, 3, H, W]."""
        found = {f: self.cache[number, view, f] for f in frames if (number, view, f) in self.cache}
        missing = [f for f in frames if f not in found]
        if missing:
            found |= dict(zip(missing, on_white(clip.pictures[view, missing]), strict=True))
        for f in frames:
            self._keep((number, view, f), found[f])
        return torch.stack([found[f] for f in frames])

    def _keep(self, key: tuple[int, int, int], picture: Tensor) -> None:
        """Add a picture to the cache and evict the oldest ones."""
        if key in self.cache:
            self.cache.move_to_end(key)
            return
        self.cache[key] = picture.clone()  # a view would keep its whole tensor in memory
        self.cached_bytes += picture.nbytes
        while self.cached_bytes > self.config.cache_mib * 2**20 and self.cache:
            self.cached_bytes -= self.cache.popitem(last=False)[1].nbytes


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the clips' numbers [count] in the order of an epoch."""
    return torch.randperm(count, generator=stream(seed, 2**31, epoch))


def even_rigs(clip: Clip | ClipFiles, num_views: int) -> list[list[int]]:
    """Return all sets of ``num_views`` evenly spaced cameras of a clip, each in order of azimuth.

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
    """Return the view of ``level`` nearest to an azimuth, None if all are half a degree or more away."""
    best = min(level, key=lambda i: _gap(azimuths[i], wanted))
    return best if _gap(azimuths[best], wanted) < 0.5 else None


def _gap(a: float, b: float) -> float:
    """Return the smallest angle between two azimuths, degrees."""
    return abs((a - b + 180) % 360 - 180)
