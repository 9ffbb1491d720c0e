"""Random access to the clips, pictures and cached tensors of a set of shards."""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.pictures import MemberFrame, PictureGrid, Place
from fourdiffusion.datasets.shards.storage import Member, location, read_json, read_members
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable

FORMAT = "fourdiffusion-shards-1"
INDEX = "index.json"
BLOCK = 512  # bytes of a tar header, and of the padding of its members
KEPT_TABLES = 16  # shard tables in memory; the table of 100 clips of 32 x 32 pictures takes about 10 MB
DTYPES = {"F16": (torch.float16, 2), "F32": (torch.float32, 4)}


@dataclass(frozen=True)
class CachedTensors:
    """The tensors of one clip that were computed when it was packed; read by rows."""

    url: str
    table: dict[str, dict[str, Any]]  # {name: {dtype, shape, offset in the shard}}

    def rows(self, name: str, places: list[tuple[int, ...]]) -> Tensor:
        """Return ``tensor[index]`` for some leading indices, stacked, float32."""
        entry = self.table[name]
        shape = entry["shape"]
        dtype, width = DTYPES[entry["dtype"]]
        depth = len(places[0])
        inner = shape[depth:]
        size = width * int(np.prod(inner, dtype=np.int64))
        members = []
        for place in places:
            flat = int(np.ravel_multi_index(place, shape[:depth])) if depth else 0
            members.append(Member(self.url, entry["offset"] + flat * size, size, name))
        parts = [torch.frombuffer(bytearray(part), dtype=dtype).view(inner) for part in read_members(members)]
        rows = torch.stack(parts).float()
        if not bool(rows.isfinite().all()):
            raise UserError(f"{printable(self.url)}: cached {name} are not finite: pack the clips again")
        return rows


class ShardSet:
    """The clips of a folder or an address that ``data pack`` wrote, numbered in the order of the index."""

    def __init__(self, path: str) -> None:
        self.root = location(path)
        self.index = read_json(f"{self.root}/{INDEX}")
        if self.index.get("format") != FORMAT:
            raise UserError(f"{printable(self.root)}/{INDEX}: its format is not {FORMAT}: pack the clips again")
        try:
            self.shards: list[str] = [str(shard["name"]) for shard in self.index["shards"]]
            self.names: list[str] = [str(uid) for shard in self.index["shards"] for uid in shard["clips"]]
            self.starts = [0, *accumulate(len(shard["clips"]) for shard in self.index["shards"])]
            self.encoders: dict[str, str] = dict(self.index["encoders"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{printable(self.root)}/{INDEX}: damaged ({error}): pack the clips again") from error
        if not self.names:
            raise UserError(f"{printable(self.root)}: its shards hold no clip: pack others")
        self.tables: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> ClipFiles:
        """Return one clip; its pictures are read on access. UserError if its shard or its entry is damaged."""
        entry, url = self._entry(number), self._url(number)
        try:
            return ClipFiles(
                uid=entry["uid"],
                pictures=_grid(entry, url, self.index["frames"]),
                c2w=torch.tensor(entry["c2w"], dtype=torch.float32),
                fovy_deg=float(entry["fovy_deg"]),
                times=torch.tensor(entry["times"], dtype=torch.float32),
                caption=entry["caption"],
                license=entry["license"],
                source=entry["source"],
                author=entry["author"],
                depths=None,
                depth_unit=0.0,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{printable(url)}: the entry of {self.names[number]} is damaged ({error})") from error

    def cached(self, number: int) -> CachedTensors:
        """Return the cached tensors of one clip."""
        return CachedTensors(self._url(number), self._entry(number)["tensors"])

    def caption(self, number: int) -> str:
        """Return the caption of one clip."""
        return str(self._entry(number).get("caption", ""))

    def _shard(self, number: int) -> int:
        return int(np.searchsorted(self.starts, number, side="right")) - 1

    def _url(self, number: int) -> str:
        return f"{self.root}/{self.shards[self._shard(number)]}"

    def _entry(self, number: int) -> dict[str, Any]:
        shard = self._shard(number)
        if shard not in self.tables:
            self.tables[shard] = read_json(f"{self.root}/{table_name(self.shards[shard])}").get("clips", [])
        self.tables.move_to_end(shard)
        while len(self.tables) > KEPT_TABLES:
            self.tables.popitem(last=False)
        try:
            return self.tables[shard][number - self.starts[shard]]
        except (IndexError, KeyError, TypeError) as error:
            raise UserError(
                f"{printable(self.root)}/{table_name(self.shards[shard])}: does not list {self.names[number]}: pack "
                "the clips again"
            ) from error


def table_name(shard: str) -> str:
    """Return the name of the table of a shard: shard-00000.tar -> shard-00000.json."""
    return shard.removesuffix(".tar") + ".json"


def member_name(key: str, frames: str, view: int, frame: int) -> str:
    """Return the name of a picture's file in a shard, or of the video of a view."""
    return f"{key}.v{view:02d}.mp4" if frames == "mp4" else f"{key}.v{view:02d}_f{frame:02d}.{frames}"


def padded(size: int) -> int:
    """Return the padded size in bytes of a tar member, without its header."""
    return -(-size // BLOCK) * BLOCK


def _grid(entry: dict[str, Any], url: str, frames: str) -> PictureGrid:
    """Return the pictures: consecutive members, each after a header."""
    views, num_frames = len(entry["c2w"]), len(entry["times"])
    sizes = entry["sizes"]
    if len(sizes) != (views if frames == "mp4" else views * num_frames):
        raise ValueError(f"{len(sizes)} members for {views} x {num_frames} pictures")
    offsets = accumulate((padded(size) + BLOCK for size in sizes[:-1]), initial=entry["offset"])
    members = []
    for k, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        view, frame = (k, 0) if frames == "mp4" else divmod(k, num_frames)
        members.append(Member(url, offset, size, member_name(entry["key"], frames, view, frame)))
    rows: list[list[Place]]
    if frames == "mp4":
        rows = [[MemberFrame(member, f) for f in range(num_frames)] for member in members]
    else:
        rows = [[*members[v * num_frames : (v + 1) * num_frames]] for v in range(views)]
    return PictureGrid(rows, (int(entry["w"]), int(entry["h"])))
