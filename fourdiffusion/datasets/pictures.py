"""Locations of the pictures of a clip, and the one function that reads them.

A location is a picture file, a picture file with a separate mask, a frame of a video, or a part of a shard. Files are
opened only when their pixels are read.
"""

import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.datasets.shards.storage import Member, read_members
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable
from fourdiffusion.media.picture import read_picture
from fourdiffusion.media.read import read_frames
from fourdiffusion.media.series import Source

MAX_BYTES = 2**33  # of pictures read at once


@dataclass(frozen=True)
class MaskedPicture:
    """A picture file with its alpha in a separate file: gray, white is the object."""

    path: Path
    mask: Path


@dataclass(frozen=True)
class VideoFrame:
    """Frame number ``index`` of a video file."""

    path: Path
    index: int


@dataclass(frozen=True)
class MemberFrame:
    """Frame number ``index`` of a video in a shard."""

    member: Member
    index: int


Place = Path | MaskedPicture | VideoFrame | Member | MemberFrame


@dataclass(frozen=True)
class PictureGrid:
    """Pictures of V views x F frames that are read when they are indexed: ``grid[view, frame]``.

    Either index is an integer, a slice or a sequence of integers: [4, H, W], [F', 4, H, W], [V', F', 4, H, W], uint8,
    straight alpha; a picture without alpha is opaque. UserError if one is missing, damaged, or of another size.
    """

    files: list[list[Place]]  # V rows of F
    size: tuple[int, int]  # width, height

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the whole tensor, (V, F, 4, H, W)."""
        return len(self.files), len(self.files[0]), 4, self.size[1], self.size[0]

    def __getitem__(self, place: tuple[int | slice | Sequence[int], int | slice | Sequence[int]]) -> Tensor:
        view, frame = place
        views, frames = _choose(view, self.shape[0]), _choose(frame, self.shape[1])
        if len(views) * len(frames) * math.prod(self.shape[2:]) > MAX_BYTES:
            count = f"{len(views)} x {len(frames)} pictures of {self.size[0]} x {self.size[1]}"
            name = printable(path_of(self.files[0][0]).parent)
            raise UserError(f"{name}: {count} do not fit into memory; use a smaller clip")
        pictures = torch.stack([self._read([self.files[v][f] for f in frames]) for v in views])
        if isinstance(frame, int):
            pictures = pictures[:, 0]
        return pictures[0] if isinstance(view, int) else pictures

    def _read(self, places: list[Place]) -> Tensor:
        """Read some frames of one view: uint8 [F', 4, H, W]."""
        found = read_places(places)
        for place, pixels in zip(places, found, strict=True):
            check_size(path_of(place), pixels, self.size)
        return torch.stack([torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous() for pixels in found])


def path_of(place: Place) -> Path:
    """Return the file of a picture, for messages; shard/member for a member of a shard."""
    if isinstance(place, MemberFrame):
        return path_of(place.member)
    if isinstance(place, Member):
        return Path(place.url) / place.name
    return place if isinstance(place, Path) else place.path


def read_places(places: Sequence[Place]) -> list[np.ndarray]:
    """Return the pictures at some locations, uint8 [H, W, 4] each; a video is decoded once for all its frames."""
    found: dict[Place, np.ndarray] = {}
    members = list(dict.fromkeys(place for place in places if isinstance(place, Member)))
    for member, content in zip(members, read_members(members), strict=True):
        found[member] = read_picture(path_of(member), content)
    videos: dict[Path | Member, list[int]] = defaultdict(list)
    for place in places:
        if isinstance(place, VideoFrame | MemberFrame):
            videos[place.path if isinstance(place, VideoFrame) else place.member].append(place.index)
    for video, indices in videos.items():
        for index, pixels in zip(indices, _read_video(video, indices), strict=True):
            found[VideoFrame(video, index) if isinstance(video, Path) else MemberFrame(video, index)] = pixels
    for place in places:
        if isinstance(place, Path | MaskedPicture):
            found[place] = _read_file(place)
    return [found[place] for place in places]


def _read_video(video: Path | Member, indices: list[int]) -> np.ndarray:
    if isinstance(video, Path):
        return read_frames(Source(printable(video), video), indices)
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:  # FFmpeg opens files
        file.write(read_members([video])[0])
        file.flush()
        return read_frames(Source(printable(path_of(video)), Path(file.name)), indices)


def _read_file(place: Path | MaskedPicture) -> np.ndarray:
    if isinstance(place, Path):
        return read_picture(place)
    pixels, mask = read_picture(place.path).copy(), read_picture(place.mask)
    check_size(place.mask, mask, (pixels.shape[1], pixels.shape[0]))
    pixels[..., 3] = mask[..., 3] if (mask[..., 3] < 255).any() else mask[..., 0]
    return pixels


def on_white(rgba: Tensor) -> Tensor:
    """Return pictures composited on white, as for training: uint8 [..., 4, H, W] -> uint8 [..., 3, H, W]."""
    color, alpha = rgba[..., :3, :, :].float(), rgba[..., 3:, :, :].float() / 255
    return (color * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def check_size(path: Path, pixels: np.ndarray, size: tuple[int, int]) -> None:
    """Raise UserError unless a picture has the width and height of its clip."""
    if pixels.shape[1::-1] != size:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise UserError(f"{printable(path)}: is {found}, transforms.json (or the first) says {size[0]} x {size[1]}")


def _choose(index: int | slice | Sequence[int], count: int) -> list[int]:
    if isinstance(index, slice):
        return list(range(count))[index]
    chosen = [index] if isinstance(index, int) else [int(i) for i in index]
    if any(not -count <= i < count for i in chosen):
        raise IndexError(f"index {index} lies outside 0..{count - 1}")
    return chosen
