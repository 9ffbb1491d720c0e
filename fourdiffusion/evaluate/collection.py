"""Find the videos that lie in a folder: objects, their views, their numbered frames.

Layouts, told apart by what is there:

    <object>/<view>/<frame>.png     Consistent4D (eval_0/0.png) and anybody's (view_0/000.png)
    <object>/<view>.mp4             one video a view
    <object>.mp4                    one video an object (V2M4)
    <object>/transforms.json        clips of this project
    and each of them without <object>, where the folder is one object itself

A view is named by the number at the end of its name (eval_2, view_2 and 2 are one), or by its name where it has none.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fourdiffusion.datasets.clips import Clip, open_clip, read_clip
from fourdiffusion.errors import UserError
from fourdiffusion.media.picture import SUFFIXES, read_picture
from fourdiffusion.media.read import video_frames

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
VIEW_NAME = re.compile(r"(eval|view|v|cam|camera)?_?\d+", re.IGNORECASE)
MAX_VIDEO_FRAMES = 4096


@dataclass(frozen=True)
class Video:
    """One view of one object."""

    path: Path  # what messages name
    frames: tuple[int, ...] | None  # numbers of the frames, rising; None: a video file, counted when it is read
    read: Callable[[], np.ndarray]  # all frames, uint8 [F, H, W, 4], straight alpha
    motion: Tensor | None = None  # [F, 2, H, W], pixels to the next frame, where the clip holds motion vectors
    caption: str = ""


@dataclass(frozen=True)
class Collection:
    """All videos in a folder: {object: {view: video}}, in natural order."""

    folder: Path
    objects: dict[str, dict[str, Video]]
    single: bool  # the folder is one object itself, its name says nothing


def find_videos(folder: Path) -> Collection:
    """Return the videos in a folder. UserError where it holds none, or two for one view."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of objects, a clip folder or a run folder")
    if views := _views(folder):
        return Collection(folder, {folder.resolve().name: views}, single=True)
    objects = {path.name: views for path in _folders(folder) if (views := _views(path) or _frames_only(path))}
    for path in _videos(folder):
        if path.stem in objects:
            raise UserError(f"{folder} holds object {path.stem} twice, as a folder and as {path.name}: remove one")
        objects[path.stem] = {"0": _file_video(path)}
    if not objects:
        raise UserError(
            f"{folder} holds no videos: give object/view_0/000.png, object/view_0.mp4, object.mp4 or a clip folder"
        )
    return Collection(folder, objects, single=False)


def view_name(name: str) -> str:
    """Return "2" for eval_2, view_02 and 2, and the name itself where it does not end in a number."""
    match = re.search(r"(\d+)$", name)
    return str(int(match.group(1))) if match else name


def _views(folder: Path) -> dict[str, Video]:
    """The views of one object; empty where the folder is not laid out as one."""
    if (folder / "transforms.json").is_file():
        return _clip_videos(folder)
    found = [path for path in _folders(folder) if VIEW_NAME.fullmatch(path.name) and _pictures(path)]
    found += [path for path in _videos(folder) if VIEW_NAME.fullmatch(path.stem)]
    views: dict[str, Video] = {}
    for path in found:
        name = view_name(path.stem if path.is_file() else path.name)
        if name in views:
            raise UserError(f"{folder} holds view {name} twice, in {views[name].path.name} and {path.name}: remove one")
        views[name] = _file_video(path) if path.is_file() else _folder_video(path)
    return dict(sorted(views.items(), key=lambda item: int(item[0])))


def _frames_only(folder: Path) -> dict[str, Video]:
    """An object whose folder holds the frames of its only view, or views of any other names."""
    if _pictures(folder):
        return {"0": _folder_video(folder)}
    views = {path.name: _folder_video(path) for path in _folders(folder) if _pictures(path)}
    return views | {path.stem: _file_video(path) for path in _videos(folder)}


def _folder_video(folder: Path) -> Video:
    numbered: dict[int, Path] = {}
    for path in _pictures(folder):
        match = re.search(r"(\d+)\D*$", path.stem)
        if match is None:
            raise UserError(f"{path}: its name holds no number; number the frames of {folder}")
        if (number := int(match.group(1))) in numbered:
            raise UserError(f"{folder} holds frame {number} twice, {numbered[number].name} and {path.name}: remove one")
        numbered[number] = path
    files = dict(sorted(numbered.items()))
    return Video(folder, tuple(files), lambda: _stack(folder, [read_picture(path) for path in files.values()]))


def _file_video(path: Path) -> Video:
    def read() -> np.ndarray:
        if path.suffix.lower() == ".gif":
            with Image.open(path) as image:
                frames = []
                for number in range(getattr(image, "n_frames", 1)):
                    image.seek(number)
                    frames.append(np.asarray(image.convert("RGBA")))
        else:
            frames = [frame for frame in video_frames(path, set(range(MAX_VIDEO_FRAMES))) if frame is not None]
        if not frames:
            raise UserError(f"{path} holds no frame: export it again")
        return _stack(path, frames)

    return Video(path, None, read)


def _clip_videos(folder: Path) -> dict[str, Video]:
    """Views of a clip of this project."""
    num_views, num_frames = _clip(folder).rgba.shape[:2]
    motion, caption = read_motion(folder), _clip(folder).caption

    def reader(view: int) -> Callable[[], np.ndarray]:
        return lambda: _clip(folder).rgba[view].permute(0, 2, 3, 1).contiguous().numpy()

    frames = tuple(range(num_frames))
    return {
        str(view): Video(
            folder / f"view {view}", frames, reader(view), None if motion is None else motion[view], caption
        )
        for view in range(num_views)
    }


def read_motion(folder: Path) -> Tensor | None:
    """Return a clip's motion vectors [V, F, 2, H, W], pixels right and down to the next frame; None without them.

    They are the .npy files [H, W, 2] that `data render motion_vectors=true` names ``motion_file_path``. UserError where
    one is missing or no such array.
    """
    clip = open_clip(folder)
    entries = json.loads((folder / "transforms.json").read_text(encoding="utf-8"))["frames"]
    if not all("motion_file_path" in entry for entry in entries):
        return None
    views, frames, _, height, width = clip.pictures.shape
    motion = torch.zeros(views, frames, 2, height, width)
    for entry in entries:
        path = folder / entry["motion_file_path"]
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no array that numpy can read ({error}): render the clip again") from error
        if values.shape != (height, width, 2) or not np.isfinite(values).all():
            raise UserError(f"{path} is {list(values.shape)}: expected finite [{height}, {width}, 2], render it again")
        motion[entry["view"], entry["frame"]] = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)
    return motion


@lru_cache(maxsize=2)  # the views of a clip are read together, one clip a side at a time
def _clip(folder: Path) -> Clip:
    return read_clip(folder)


def _stack(path: Path, frames: list[np.ndarray]) -> np.ndarray:
    for number, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise UserError(
                f"{path}: frame {number} is {frame.shape[1]} x {frame.shape[0]} pixels, the first "
                f"{frames[0].shape[1]} x {frames[0].shape[0]}: all frames of a view must have one size"
            )
    return np.stack(frames)


def _natural(path: Path) -> list[tuple[int, str]]:
    """frame_2 before frame_10"""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _folders(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=_natural)


def _pictures(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]


def _videos(folder: Path) -> list[Path]:
    found = [p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith(".")]
    return sorted(found, key=_natural)
