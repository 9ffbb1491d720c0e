"""Score a folder of clips: each clip once, with one line per result in `scores.jsonl`.

A line holds `uid`, `folder`, `stamp`, the fields of scores.Scores, `look` and `motion` (hashing.py), `caption`,
`license`, `author`, `source`; or `error` instead of the scores if the clip cannot be read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fourdiffusion.datasets.clips import open_clip
from fourdiffusion.datasets.curation import scores
from fourdiffusion.datasets.curation.hashing import look_and_motion
from fourdiffusion.datasets.curation.settings import CurateConfig
from fourdiffusion.datasets.curation.thumbnails import write_thumbnail
from fourdiffusion.datasets.processes import run_jobs
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import require_own_file

LOG, THUMBNAILS = "scores.jsonl", "thumbnails"
VERSION = 1  # of the scores: increase it when their values change


def score_all(folders: list[Path], output: Path, config: CurateConfig) -> list[dict[str, Any]]:
    """Return the line of every clip, in the order of ``folders``; read only clips without a valid line.

    A clip is scored again if its transforms.json or the settings of reading have changed.
    """
    log = output / LOG
    known = _read_log(log)
    stamps = {folder.name: _stamp(folder, config) for folder in folders}
    _check_unique(folders)
    jobs = [
        (folder, output / THUMBNAILS / f"{folder.name}.webp", stamps[folder.name], config.max_views, config.max_frames)
        for folder in folders
        if known.get(folder.name, {}).get("stamp") != stamps[folder.name]
        or not (output / THUMBNAILS / f"{folder.name}.webp").exists()
        and "error" not in known[folder.name]
    ]
    with tqdm(total=len(folders), initial=len(folders) - len(jobs), unit="clip", desc="curate") as bar:
        with log.open("a", encoding="utf-8") as file:
            for line in run_jobs(score_one, jobs, config.num_workers):
                file.write(json.dumps(line) + "\n")
                file.flush()
                known[line["uid"]] = line
                bar.update()
    return [known[folder.name] | {"folder": str(folder)} for folder in folders]


def score_one(job: tuple[Path, Path, list[Any], int, int]) -> dict[str, Any]:
    """Return the line of one clip and write its thumbnail."""
    folder, thumbnail, stamp, max_views, max_frames = job
    line: dict[str, Any] = {"uid": folder.name, "stamp": stamp}
    try:
        clip = open_clip(folder)
        rgba, c2w = scores.read_for_scores(clip, max_views, max_frames)
    except UserError as error:
        return line | {"error": str(error)}
    signed = scores.signed_pictures(rgba)
    line |= asdict(scores.measure(signed, rgba[:, :, 3], c2w, clip.pictures.shape[1]))
    look, motion = look_and_motion(signed)
    texts = {"caption": clip.caption, "license": clip.license, "author": clip.author, "source": clip.source}
    write_thumbnail(thumbnail, [rgba[0], rgba[len(rgba) // 4]] if len(rgba) > 3 else [rgba[0]])
    return line | {"look": look, "motion": motion} | texts


def _stamp(folder: Path, config: CurateConfig) -> list[Any]:
    """Return the key of a clip's scores: they are valid while it is unchanged."""
    state = (folder / "transforms.json").stat()
    return [VERSION, state.st_size, state.st_mtime_ns, config.max_views, config.max_frames]


def _read_log(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last line of each clip; drop an incomplete last line of a killed run."""
    require_own_file(path)
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        path.write_bytes(data)
    lines = {}
    for number, text in enumerate(data.splitlines(), 1):
        try:
            line = json.loads(text)
            lines[line["uid"]] = line
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a line of a score log; delete the line") from error
    return lines


def _check_unique(folders: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for folder in folders:
        if folder.name in seen:
            raise UserError(f"clips {seen[folder.name]} and {folder} have one name; rename one of the folders")
        seen[folder.name] = folder
