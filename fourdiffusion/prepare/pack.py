"""Verb `data pack`: pack clips into WebDataset shards, optionally with cached latents and embeddings."""

import dataclasses
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.curation.manifest import read_manifest
from fourdiffusion.datasets.pictures import on_white
from fourdiffusion.datasets.readers import open_views
from fourdiffusion.datasets.shards.reader import FORMAT, INDEX, ShardSet, table_name
from fourdiffusion.datasets.shards.storage import read_json
from fourdiffusion.datasets.shards.writer import PackedClip, file_sha256, write_shard
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion import precompute
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.media.paths import printable, refuse_foreign_files, require_file, user_path
from fourdiffusion.media.write import write_video
from fourdiffusion.prepare.settings import FRAMES, PackConfig
from fourdiffusion.runs import lock_folder, terminable

NOTE = "pack.json"  # settings that the shards depend on
DTYPES = {"float16": torch.float16, "float32": torch.float32}
TOLERANCE = {"float16": 2e-3, "float32": 1e-4}  # of cached values against live ones, relative to the largest


def pack(config: PackConfig) -> None:
    """Write the missing shards, then the index. Unreadable clips are skipped and listed."""
    _validate(config)
    clips, output = _clips(config), Path(config.output)
    parts = [clips[k : k + config.clips_per_shard] for k in range(0, len(clips), config.clips_per_shard)]
    if len(parts) < config.num_readers:
        raise UserError(
            f"clips_per_shard={config.clips_per_shard} makes {len(parts)} shards of {len(clips)} clips for "
            f"num_readers={config.num_readers}; each reader needs a shard: set clips_per_shard="
            f"{max(1, len(clips) // config.num_readers)} or fewer readers, and another output where this one has shards"
        )
    pipeline = _pipeline(config) if config.latents else None
    with terminable(), lock_folder(output, keep=NOTE):
        encoders = precompute.encoder_digests(pipeline) if pipeline is not None else {}
        _claim(output, config, clips, encoders)
        tables = []
        bar = tqdm(total=len(clips), desc="data pack", unit="clip")
        for k, part in enumerate(parts):
            name = f"shard-{k:05d}.tar"
            table = finished_shard(output, name)
            if table is None:
                skipped: list[dict[str, str]] = []
                packed = _packed_clips(config, part, pipeline, skipped, bar)
                table = write_shard(output, name, config.frames, packed, skipped)
            else:
                bar.update(len(part))
            tables.append(table)
        bar.close()
        _finish(output, config, tables, encoders)


def finished_shard(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the table of a shard that matches its hash; None if the shard must be written (again)."""
    if not (folder / name).is_file() or not (folder / table_name(name)).is_file():
        return None
    try:
        table = read_json(str(folder / table_name(name)))
    except UserError:
        return None
    whole = table.get("sha256") == file_sha256(folder / name)
    return table if whole else None


def _finish(output: Path, config: PackConfig, tables: list[dict[str, Any]], encoders: dict[str, str]) -> None:
    """Write the index and print what was packed and skipped."""
    skipped = [each for table in tables for each in table["skipped"]]
    shards = [
        {"name": table["name"], "bytes": table["bytes"], "sha256": table["sha256"], "count": len(table["clips"])}
        | {"clips": [entry["uid"] for entry in table["clips"]]}
        for table in tables
    ]
    count = sum(shard["count"] for shard in shards)
    index = {"format": FORMAT, "frames": config.frames, "num_clips": count, "shards": shards}
    index |= {"bytes": sum(shard["bytes"] for shard in shards), "encoders": encoders, "skipped": skipped}
    if not count:
        raise UserError(f"clips={config.clips}: none of {len(skipped)} clips can be read; first {skipped[0]['reason']}")
    _write_json(output / INDEX, index)
    ShardSet(str(output)).open(0)
    print(f"{output}: {count} clips in {len(shards)} shards, {index['bytes'] / 2**20:.1f} MiB")
    if skipped:
        print(f"left out: {len(skipped)} clips, named in {output / INDEX}; the first: {skipped[0]['reason']}")


# ---- which clips ----------------------------------------------------------------------------------------------------


def _clips(config: PackConfig) -> list[Path]:
    """Return the clips in ``clips`` and in its folders of sweep jobs, by name; with ``ids`` only the listed ones."""
    root = user_path(config.clips, "clips")
    if not root.is_dir():
        raise UserError(f"clips={printable(root)}: no such folder; make clips with `fourdiffusion data render`")
    found: dict[str, Path] = {}
    for folder in _folders(root):
        jobs = not (folder / "transforms.json").is_file() and any(folder.glob("*/transforms.json"))  # of a sweep
        for clip in _folders(folder) if jobs else [folder]:
            if clip.name in found:
                raise UserError(
                    f"clips={printable(root)}: {printable(clip)} and {printable(found[clip.name])} share a name"
                )
            found[clip.name] = clip
    found = dict(sorted(found.items()))
    if config.ids is not None or config.manifest is not None:
        setting, given = ("ids", config.ids) if config.ids is not None else ("manifest", config.manifest)
        file = user_path(str(given), setting)
        if setting == "manifest":
            names = dict.fromkeys(_kept_captions(config))
        else:
            require_file(file, "give a text file with one clip's name a line")
            lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
            names = dict.fromkeys(line for line in lines if line and not line.startswith("#"))
        if missing := [name for name in names if name not in found]:
            raise UserError(
                f"{setting}={printable(file)}: {len(missing)} of its {len(names)} clips are not in {printable(root)}, "
                f"the first is {printable(missing[0])}: correct the list"
            )
        found = {name: found[name] for name in sorted(names)}
    if not found:
        raise UserError(f"clips={printable(root)}: holds no clip; make clips with `fourdiffusion data render`")
    return list(found.values())


def _kept_captions(config: PackConfig) -> dict[str, str]:
    """Return {clip: caption} of the manifest's kept clips; {} without a manifest."""
    if config.manifest is None:
        return {}
    rows = read_manifest(user_path(config.manifest, "manifest"))
    captions = {row["uid"]: row["caption"] or "" for row in rows if row["keep"]}
    if not captions:
        raise UserError(f"manifest={config.manifest}: keeps no clip; lower the thresholds of `data curate`")
    return captions


def _folders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and p.suffix != ".partial" and p.name[0] != "."]


def _claim(output: Path, config: PackConfig, clips: list[Path], encoders: dict[str, str]) -> None:
    """Record the settings in pack.json, so that a second run cannot add other clips."""
    wanted: dict[str, Any] = {"frames": config.frames, "quality": config.quality}
    wanted |= {"clips_per_shard": config.clips_per_shard, "latents": config.latents}
    wanted |= {"latents_dtype": config.latents_dtype, "encoders": encoders}
    names = "\n".join(clip.name for clip in clips)
    captions = json.dumps(_kept_captions(config), sort_keys=True)
    wanted |= {"captions_sha256": hashlib.sha256(captions.encode()).hexdigest()} if config.manifest else {}
    wanted |= {"num_clips": len(clips), "clips_sha256": hashlib.sha256(names.encode()).hexdigest()}
    if (output / NOTE).is_file():
        found = read_json(str(output / NOTE))
        if differs := [key for key in wanted if found.get(key) != wanted[key]]:
            shown = ", ".join(f"{key}={found.get(key)}"[:80] for key in differs)
            raise UserError(f"output={output} holds shards made with {shown}; use that or another folder")
    refuse_foreign_files(output, NOTE)
    _write_json(output / NOTE, wanted)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, separators=(",", ":")) + "\n"
    write_atomic(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _validate(config: PackConfig) -> None:
    if config.frames not in FRAMES:
        raise UserError(f"frames={config.frames} is unknown; choose one of {', '.join(FRAMES)}")
    if config.quality is not None and config.frames != "webp":
        raise UserError(f"quality={config.quality} is of frames=webp, and frames={config.frames}: leave it out")
    if config.ids is not None and config.manifest is not None:
        raise UserError(f"manifest={config.manifest} names the clips, as ids={config.ids} does: give one of them")
    if config.latents_dtype not in DTYPES:
        raise UserError(f"latents_dtype={config.latents_dtype} is not one of {', '.join(DTYPES)}")
    if config.latents and config.model.path is None:
        raise UserError("latents=true needs the model that makes them: set model.path to its pipeline folder")


# ---- one clip -------------------------------------------------------------------------------------------------------


def _packed_clips(
    config: PackConfig,
    folders: list[Path],
    pipeline: FourDiffusionPipeline | None,
    skipped: list[dict[str, str]],
    bar: tqdm,
) -> Iterator[PackedClip]:
    """Yield the readable clips; record the others with their reasons."""
    captions = _kept_captions(config)
    for folder in folders:
        try:
            clip = open_views(folder)
            clip = dataclasses.replace(clip, caption=captions.get(folder.name, clip.caption))
            yield _packed(config, clip, pipeline)
        except UserError as error:
            skipped.append({"clip": folder.name, "reason": str(error)})
            tqdm.write(f"left out: {error}")
        bar.update()


def _packed(config: PackConfig, clip: ClipFiles, pipeline: FourDiffusionPipeline | None) -> PackedClip:
    """Encode one clip view by view: only one view at a time is in memory uncompressed."""
    views, _, _, height, width = clip.pictures.shape
    if config.frames == "mp4" and (height % 2 or width % 2):
        raise UserError(f"{clip.uid}: has {width} x {height} pixels, frames=mp4 needs even sizes: use png or webp")
    pictures: list[bytes] = []
    tensors: list[dict[str, Tensor]] = []
    for v in range(views):
        rgba = clip.pictures[v, :]  # [F, 4, H, W]
        pictures += _encode_view(rgba, config)
        if pipeline is not None:
            images = on_white(rgba).float() / 255
            tensors.append(_checked(config, pipeline, images, clip.uid))
    cached: dict[str, Tensor] = {}
    if pipeline is not None:
        cached = {name: torch.stack([each[name] for each in tensors]) for name in tensors[0]}
        text = precompute.encode_captions(pipeline, [clip.caption, ""]).to(DTYPES[config.latents_dtype])
        cached |= {precompute.TEXT: text[0], precompute.EMPTY_TEXT: text[1]}
    return PackedClip(clip, pictures, cached)


def _encode_view(rgba: Tensor, config: PackConfig) -> list[bytes]:
    """Return the files of the frames of one view [F, 4, H, W]; one file for mp4."""
    if config.frames == "mp4":
        with tempfile.TemporaryDirectory() as folder:  # FFmpeg writes files
            path = Path(folder, "view.mp4")
            write_video(path, on_white(rgba).float() / 255, min_side=1)
            return [path.read_bytes()]
    files = []
    for frame in rgba:
        file = io.BytesIO()
        image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        if config.frames == "png":
            image.save(file, "PNG", compress_level=6)
        elif config.quality is None:
            image.save(file, "WEBP", lossless=True, exact=True)  # exact: also the colors where alpha is 0
        else:
            image.save(file, "WEBP", quality=config.quality)
        files.append(file.getvalue())
    return files


def _checked(config: PackConfig, pipeline: FourDiffusionPipeline, images: Tensor, uid: str) -> dict[str, Tensor]:
    """Return the encoded frames of one view in the cache's dtype; the last one is checked against a live encoding."""
    dtype = DTYPES[config.latents_dtype]
    found = {k: v.to(dtype) for k, v in precompute.encode_pictures(pipeline, images, config.encode_batch).items()}
    live = precompute.encode_pictures(pipeline, images[-1:], 1)
    for name, value in found.items():
        error = float((value[-1].float() - live[name][0]).abs().max() / live[name].abs().max().clamp(min=1e-6))
        if not error <= TOLERANCE[config.latents_dtype]:
            raise UserError(
                f"{uid}: cached {name} differ from live ones by {error:.1e} of the largest: set latents_dtype=float32"
            )
    return found


def _pipeline(config: PackConfig) -> FourDiffusionPipeline:
    pipeline = load_pipeline(config.model.path)
    pipeline.to(resolve_device(config.device))
    return pipeline
