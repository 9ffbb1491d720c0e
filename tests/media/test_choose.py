"""Which frames are chosen: evenly in time, a part, a rate, a stride, and the warnings."""

import math
from typing import Any

import numpy as np
import pytest

from fourdiffusion.errors import UserError
from fourdiffusion.media.choose import check_choice, choose_frames, normalized
from fourdiffusion.media.settings import InputVideo


def choose(count: int, span_s: float, **settings: Any) -> list[int]:
    """The choice from frames evenly spaced in time."""
    return choose_frames(np.arange(count) * span_s / count, span_s, InputVideo(**settings)).indices


@pytest.mark.parametrize(
    "count, wanted, expected",
    [
        (32, 8, [0, 4, 8, 12, 16, 20, 24, 28]),
        (8, 8, list(range(8))),
        (30, 8, [0, 3, 7, 11, 15, 18, 22, 26]),  # int(n / F * i), method.md section 1
        (4, 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (2, 3, [0, 0, 1]),
        (5, 1, [0]),
    ],
)
@pytest.mark.parametrize("rate", [1.0, 24.0, 30000 / 1001])
def test_frames_of_an_even_rate_are_chosen_by_number(count: int, wanted: int, expected: list[int], rate: float) -> None:
    assert choose(count, count / rate, num_frames=wanted) == expected


def test_the_frame_on_screen_at_each_moment_is_chosen() -> None:
    starts = np.array([0.0, 0.1, 0.2, 1.0, 1.9])
    choice = choose_frames(starts, 2.0, InputVideo(num_frames=4))  # at 0, 0.5, 1.0 and 1.5 s
    assert choice.indices == [0, 2, 3, 3]
    assert choice.times_s == [0.0, 0.2, 1.0, 1.5]  # when it appears; chosen again, the moment it is chosen for
    assert normalized(choice.times_s) == pytest.approx([0, 0.2 / 1.5, 1 / 1.5, 1])


def test_times_always_rise() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        starts = np.concatenate([[0.0], random.exponential(1, random.integers(1, 30)).cumsum()])
        span = float(starts[-1]) + random.exponential()
        part = sorted(random.uniform(0, span, 2))
        settings = InputVideo(num_frames=int(random.integers(1, 20)), start=part[0], end=part[1])
        choice = choose_frames(starts, span, settings)
        assert all(b > a for a, b in zip(choice.times_s, choice.times_s[1:], strict=False))
        assert all(starts[i] <= t < [*starts, span][i + 1] for i, t in zip(choice.indices, choice.times_s, strict=True))
        times = normalized(choice.times_s)
        assert times[0] == 0 and times[-1] in (0, 1)


def test_a_rate_and_a_stride() -> None:
    assert choose(100, 10, num_frames=4, fps=2) == [0, 5, 10, 15]
    assert choose(100, 10, num_frames=4, fps=2, start=1.0) == [10, 15, 20, 25]
    assert choose(100, 10, num_frames=4, stride=7, start=0.5) == [5, 12, 19, 26]
    assert choose(10, 1, num_frames=4, stride=3) == [0, 3, 6, 9]
    longer: tuple[dict[str, Any], ...] = ({"stride": 4}, {"stride": 3, "end": 0.8}, {"fps": 2.9})
    for settings in longer:
        with pytest.raises(UserError, match="num_frames=4 (with stride|at fps)=.* need .* there are .* from 0.00 s to"):
            choose(10, 1, num_frames=4, **settings)


def test_warnings_have_the_figures() -> None:
    def warnings(count: int, span_s: float, **settings: Any) -> list[str]:
        return choose_frames(np.arange(count) * span_s / count, span_s, InputVideo(**settings)).warnings

    assert warnings(1440, 60, num_frames=64) == []
    (far,) = warnings(1440, 60, num_frames=8)
    assert "8 chosen frames are up to 7.5 s apart (over 60.0 s of video)" in far and "start=" in far
    assert warnings(1440, 60, num_frames=8, fps=2) == []
    (again,) = warnings(4, 0.5, num_frames=8)
    assert "4 of the 8 chosen frames repeat" in again and "4 different frames in 0.50 s" in again


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_frames": 0}, "num_frames=0: give 1 or more"),
        ({"stride": 0}, "stride=0: give 1 or more"),
        ({"start": -1.0}, "start=-1.0"),
        ({"start": math.nan}, "start=nan: give a finite number"),
        ({"end": math.inf}, "end=inf: give a finite number"),
        ({"start": 2.0, "end": 2.0}, "end=2.0 does not come after start=2.0"),
        ({"fps": 0.0}, "fps=0.0: give more than 0"),
        ({"fps": math.nan}, "fps=nan"),
        ({"source_fps": -24.0}, "source_fps=-24.0"),
        ({"fps": 2.0, "stride": 2}, "fps=2.0 and stride=2"),
    ],
)
def test_settings_that_no_video_could_fulfill(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_choice(InputVideo(**settings))
    check_choice(InputVideo())
