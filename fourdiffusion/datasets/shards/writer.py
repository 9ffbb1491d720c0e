"""Write one shard: a WebDataset tar, and the table of the positions of its pictures and tensors.

Tars are written with the standard library: random access and resuming need the byte offset of each member and the same
bytes for the same clips, and webdataset's TarWriter gives neither.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.shards.reader import member_name, padded, table_name
from fourdiffusion.files import write_atomic

KEY_LENGTH = 60  # a member's name must fit into the 100 bytes of a tar header


@dataclass(frozen=True)
class PackedClip:
    """One encoded clip."""

    clip: ClipFiles
    pictures: list[bytes]  # V x F files, view by view; V for mp4
    tensors: dict[str, Tensor]  # cached latents and embeddings; empty: none


def write_shard(
    folder: Path, name: str, frames: str, clips: Iterable[PackedClip], skipped: list[dict[str, str]]
) -> dict[str, Any]:
    """Write ``folder/name`` and its table; return the table. Both are written atomically, the table last.

    Args:
        folder: of the shards.
        name: of the shard, shard-00000.tar.
        frames: the kind of the pictures' files: png, webp or mp4.
        clips: consumed one by one.
        skipped: recorded in the table; ``clips`` may extend it while it is consumed.
    """
    table: dict[str, Any] = {"name": name, "clips": [], "skipped": skipped}

    def write(partial: Path) -> None:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for packed in clips:
                table["clips"].append(_add(tar, packed, frames))

    write_atomic(folder / name, write)
    table["bytes"] = (folder / name).stat().st_size
    table["sha256"] = file_sha256(folder / name)
    text = json.dumps(table, separators=(",", ":")) + "\n"
    write_atomic(folder / table_name(name), lambda partial: partial.write_text(text, encoding="utf-8"))
    return table


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_key(uid: str) -> str:
    """Return a WebDataset key (ends at the first dot): letters, digits, - and _, plus a hash if the name changes."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", uid)
    if plain == uid and len(uid) <= KEY_LENGTH:
        return uid
    return f"{plain[: KEY_LENGTH - 9]}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def _add(tar: tarfile.TarFile, packed: PackedClip, frames: str) -> dict[str, Any]:
    """Append one sample; return its table entry."""
    clip = packed.clip
    views, num_frames, _, height, width = clip.pictures.shape
    key = sample_key(clip.uid)
    meta: dict[str, Any] = {"uid": clip.uid, "caption": clip.caption, "license": clip.license, "author": clip.author}
    meta |= {"source": clip.source, "c2w": clip.c2w.tolist(), "fovy_deg": clip.fovy_deg, "times": clip.times.tolist()}
    meta |= {"w": width, "h": height}
    _append(tar, f"{key}.json", json.dumps(meta).encode())
    places = [(v, f) for v in range(views) for f in range(1 if frames == "mp4" else num_frames)]
    offsets = [
        _append(tar, member_name(key, frames, v, f), content)
        for (v, f), content in zip(places, packed.pictures, strict=True)
    ]
    entry: dict[str, Any] = {"key": key, **meta, "offset": offsets[0], "sizes": [len(p) for p in packed.pictures]}
    entry["tensors"] = {}
    if packed.tensors:
        content = save({name: tensor.contiguous() for name, tensor in packed.tensors.items()})
        start = _append(tar, f"{key}.tensors.safetensors", content)
        entry["tensors"] = _tensor_table(content, start)
    return entry


def _append(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file; return the offset of its content."""
    info = tarfile.TarInfo(name)  # time and owner are 0: the same clips give the same bytes
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
    return tar.offset - padded(len(content))


def _tensor_table(content: bytes, start: int) -> dict[str, Any]:
    """Return {name: dtype, shape, offset in the shard} of the tensors in a safetensors file at ``start``."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: {"dtype": item["dtype"], "shape": item["shape"], "offset": start + 8 + length + item["data_offsets"][0]}
        for name, item in header.items()
    }
