"""Choose frames of a video by their times."""

import math
from dataclasses import dataclass

import numpy as np

from fourdiffusion.errors import UserError
from fourdiffusion.media.settings import InputVideo

FAR_APART_S = 1.0  # with a larger distance the motion between frames is lost


@dataclass(frozen=True)
class Choice:
    """The chosen frames."""

    indices: list[int]  # [F] indices of the frames in the source
    times_s: list[float]  # [F] rising, in seconds from the source's first frame
    warnings: list[str]


def check_choice(video: InputVideo) -> None:
    """Raise UserError for settings that are invalid for every video."""
    numbers = {"start": video.start, "end": video.end, "fps": video.fps, "source_fps": video.source_fps}
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"{name}={value}: give a finite number")
    for name, low in (("num_frames", 1), ("stride", 1)):
        if (value := getattr(video, name)) is not None and value < low:
            raise UserError(f"{name}={value}: give {low} or more")
    for name in ("fps", "source_fps"):
        if (value := getattr(video, name)) is not None and not 0 < value <= 1000:
            raise UserError(f"{name}={value}: give more than 0 and at most 1000 frames per second")
    if video.start < 0:
        raise UserError(f"start={video.start}: give seconds from the first frame, 0 or more")
    if video.end is not None and video.end <= video.start:
        raise UserError(f"end={video.end} does not come after start={video.start}: give seconds")
    if video.fps is not None and video.stride is not None:
        raise UserError(
            f"fps={video.fps} and stride={video.stride} both say how far apart frames are: give one of them"
        )


def choose_frames(starts_s: np.ndarray, span_s: float, video: InputVideo) -> Choice:
    """Choose F of n frames. Frame i is shown from ``starts_s`` [n] (rising from 0), the last one until ``span_s``.

    Frame i is the one on screen at start + i (end - start) / F, or at start + i / fps; with ``stride`` every stride-th.
    A frame's time is its start; for a repeated frame it is the requested time, so that times always rise.
    UserError if the part is empty or too short.
    """
    end_s = span_s if video.end is None else min(video.end, span_s)
    if video.start >= span_s:
        raise UserError(f"start={video.start} is after the end of the video, which lasts {span_s:.2f} s")
    count = video.num_frames
    if video.stride is not None:
        first, behind = _on_screen(starts_s, video.start), int(np.searchsorted(starts_s, end_s - 1e-6))
        if first + (count - 1) * video.stride >= behind:
            raise UserError(
                f"num_frames={count} with stride={video.stride} need {(count - 1) * video.stride + 1} frames, and "
                f"there are {behind - first} from {video.start:.2f} s to {end_s:.2f} s: give less of either"
            )
        indices = [first + i * video.stride for i in range(count)]
        moments = [float(starts_s[i]) for i in indices]
    else:
        step = (end_s - video.start) / count if video.fps is None else 1 / video.fps
        moments = [video.start + i * step for i in range(count)]
        if video.fps is not None and moments[-1] >= end_s:
            raise UserError(
                f"num_frames={count} at fps={video.fps} need {moments[-1] - video.start:.2f} s, and there are "
                f"{end_s - video.start:.2f} s from {video.start:.2f} s to {end_s:.2f} s: give fewer frames or a "
                "higher fps"
            )
        indices = [_on_screen(starts_s, moment) for moment in moments]
    again = [i > 0 and indices[i] == indices[i - 1] for i in range(count)]
    times = [moment if a else float(starts_s[k]) for k, moment, a in zip(indices, moments, again, strict=True)]
    return Choice(indices, times, _warnings(indices, times, sum(again), end_s - video.start))


def normalized(times_s: list[float]) -> list[float]:
    """Return the times with the first at 0 and the last at 1; [0.0] of a single one."""
    span = times_s[-1] - times_s[0]
    return [(time - times_s[0]) / span if span > 0 else 0.0 for time in times_s]


def _on_screen(starts_s: np.ndarray, moment: float) -> int:
    return max(0, int(np.searchsorted(starts_s, moment + 1e-6, side="right")) - 1)


def _warnings(indices: list[int], times_s: list[float], repeats: int, part_s: float) -> list[str]:
    found = []
    gap = max((b - a for a, b in zip(times_s, times_s[1:], strict=False)), default=0.0)
    if gap > FAR_APART_S:
        found.append(
            f"the {len(indices)} chosen frames are up to {gap:.1f} s apart (over {part_s:.1f} s of video): the "
            "motion between them is lost; choose a part with start= and end= in seconds, or a distance with fps= or "
            "stride="
        )
    if repeats:
        found.append(
            f"{repeats} of the {len(indices)} chosen frames repeat the frame before them: there are "
            f"{len(set(indices))} different frames in {part_s:.2f} s; ask for fewer with num_frames="
        )
    return found
