"""Find the files of a video setting: a video, an animated picture, or a series of frames with or without masks."""

import glob
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable, require_file, user_path
from fourdiffusion.media.picture import SUFFIXES

MASK_WORDS = {"mask", "masks", "alpha", "matte", "seg", "segmentation", "silhouette"}
OTHER_WORDS = {"depth", "disparity", "disp", "normal", "normals", "flow", "uv"}


@dataclass(frozen=True)
class Source:
    """Source of frames: one file (a video or an animated picture), or pictures in order."""

    name: str  # as given by the user, printable
    path: Path
    files: list[Path] = field(default_factory=list)  # empty: ``path`` is one file
    masks: list[Path] = field(default_factory=list)  # as many as files, or none
    warnings: list[str] = field(default_factory=list)


def find_source(text: str, setting: str = "video") -> Source:
    """Return the source that the setting names; UserError if it does not exist, or is not one series of frames."""
    path, name = user_path(text, setting), printable(text)
    try:
        if path.is_dir():
            return _series(sorted(_pictures_in(path, name), key=_natural_order), name, path)
        if path.exists():
            require_file(path, "give a video file, a folder of frames or a glob such as 'run/*.png'")
            return Source(name, path)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): give another {setting}") from error
    remedy = "give a video file, a folder of frames or a glob such as 'run/*.png'"
    if not glob.has_magic(text):
        raise UserError(f"{name} does not exist: {remedy}")
    matches = [Path(found) for found in glob.glob(_pattern(path)) if Path(found).is_file()]
    if not matches:
        raise UserError(f"{name} does not exist, and as a glob it matches no file: {remedy}")
    return _series(sorted(matches, key=_natural_order), name, path)


def _pattern(path: Path) -> str:
    """Return the glob, with its leading folders escaped if they exist literally (``run[1]/*.png``)."""
    parts = list(path.parts)
    for k in range(len(parts) - 1, 0, -1):
        if (prefix := Path(*parts[:k])).is_dir():
            return os.path.join(glob.escape(str(prefix)), *parts[k:])
    return str(path)


def _pictures_in(folder: Path, name: str) -> list[Path]:
    """Return the pictures directly in a folder; UserError if there is none, or if it is a clip or contains clips."""
    if (folder / "transforms.json").is_file():
        raise UserError(f"{name} holds a clip of several views: give one, for example {name}/rgba/v00_*.png")
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if files:
        return files
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if clips := [p.name for p in below if (p / "transforms.json").is_file()]:
        view = f"{name}/{printable(clips[0])}/rgba/v00_*.png"
        raise UserError(f"{name} is a folder of {len(clips)} clips of several views: give one view, for example {view}")
    hint = f" (its folders: {', '.join(printable(p.name) for p in below[:4])})" if below else ""
    raise UserError(f"{name} holds no image{hint}: frames are files that end in {', '.join(SUFFIXES)}")


def _series(files: list[Path], name: str, path: Path) -> Source:
    """Return the one series of frames among the files, paired with its masks; UserError if there are several."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        groups[re.sub(r"\d+", "#", file.stem)].append(file)
    kinds = MASK_WORDS | OTHER_WORDS
    if all(len(group) == 1 and not _words(key) & kinds for key, group in groups.items()):  # names without numbers
        groups = {"": files}
    for key in list(groups):
        numbers = [re.findall(r"\d+", file.stem) for file in groups[key]]
        if key and len(set(map(tuple, numbers))) < len(numbers):  # 0.png beside 0.jpg
            for file in groups.pop(key):
                groups[key + file.suffix].append(file)
    frames = {key: group for key, group in groups.items() if not _words(key) & kinds}
    if not frames and len(groups) == 1:  # only masks or depth: these are the requested pictures
        frames = groups
    if len(frames) != 1:
        shown = ", ".join(f"{len(group)} files such as {printable(group[0].name)}" for group in groups.values())
        first = printable(_glob_of(next(iter(groups.values()))))
        raise UserError(f"{name} holds several series of pictures ({shown}): give one as a glob, for example '{first}'")
    key, chosen = next(iter(frames.items()))
    _refuse_grid(chosen, name)
    others = {k: group for k, group in groups.items() if k != key}
    masks = [group for k, group in others.items() if _words(k) & MASK_WORDS]
    warnings = [
        f"left out: {len(group)} files such as {printable(group[0].name)}"
        for k, group in others.items()
        if not _words(k) & MASK_WORDS
    ]
    if len(masks) > 1 or (masks and _numbers(masks[0]) != _numbers(chosen)):
        count = sum(map(len, masks))
        raise UserError(
            f"{name} holds {len(chosen)} frames and {count} masks whose numbers do not pair: "
            f"give the frames as a glob, and their masks with mask="
        )
    return Source(name, path, chosen, masks[0] if masks else [], warnings)


def _refuse_grid(files: list[Path], name: str) -> None:
    """Raise UserError if the names have two independent numbers: views and frames, not one video."""
    numbers = [re.findall(r"\d+", file.stem) for file in files]
    width = min(map(len, numbers))
    varying = [k for k in range(width) if len({row[k] for row in numbers}) > 1]
    sizes = [len({row[k] for row in numbers}) for k in varying]
    if len(varying) == 2 and sizes[0] * sizes[1] == len(files):
        pattern = re.sub(r"\d+$", "*", files[0].stem) + files[0].suffix
        raise UserError(
            f"{name} holds {sizes[0]} x {sizes[1]} pictures, several views of a clip it seems: give one as a glob, for "
            f"example '{printable(files[0].with_name(pattern))}'"
        )


def _words(key: str) -> set[str]:
    return set(re.split(r"[^a-z]+", key.lower()))


def _numbers(files: list[Path]) -> list[list[str]]:
    return [re.findall(r"\d+", file.stem) for file in files]


def _glob_of(files: list[Path]) -> str:
    return str(files[0].with_name(re.sub(r"\d+", "*", files[0].stem, count=1) + files[0].suffix))


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a sort key with frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
