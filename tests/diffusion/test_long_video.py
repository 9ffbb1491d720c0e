"""Groups of frames of long videos, written out."""

import pytest

from fourdiffusion.diffusion.long_video import frame_groups, interleaved, windows
from fourdiffusion.errors import UserError


def listed(groups: object, step: int = 0) -> list[list[int]]:
    assert callable(groups)
    return [group.tolist() for group in groups(step)]


@pytest.mark.parametrize(
    ("num_frames", "length", "expected"),
    [
        (10, 4, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]]),
        (9, 4, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [5, 6, 7, 8]]),
        (5, 4, [[0, 1, 2, 3], [1, 2, 3, 4]]),
        (4, 4, [[0, 1, 2, 3]]),
        (3, 4, [[0, 1, 2]]),
        (3, 1, [[0], [1], [2]]),
    ],
)
def test_windows_overlap_by_half_and_the_last_one_ends_with_the_video(
    num_frames: int, length: int, expected: list[list[int]]
) -> None:
    for step in (0, 1, 5):
        assert listed(windows(num_frames, length), step) == expected


def test_interleaved_groups_alternate_with_runs_that_move_by_half() -> None:
    groups = interleaved(10, 4)
    spread = [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert [listed(groups, step) for step in (0, 2, 4)] == [spread] * 3
    assert [listed(groups, step) for step in (1, 5)] == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]] * 2
    assert [listed(groups, step) for step in (3, 7)] == [[[0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]] * 2
    assert listed(interleaved(8, 4)) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert listed(interleaved(2, 1), 3) == [[0], [1]]


def test_only_a_longer_video_is_divided_and_the_table_bounds_the_length() -> None:
    assert frame_groups("windows", 8, 8, 8) is None
    assert listed(frame_groups("windows", 9, 8, 8)) == listed(windows(9, 8))
    assert listed(frame_groups("interleaved", 9, 1, 8)) == listed(interleaved(9, 1))
    for length in (0, 9):
        with pytest.raises(UserError, match=f"model.window={length}: the motion layers support 1 to 8 frames"):
            frame_groups("windows", 9, length, 8)
    with pytest.raises(UserError, match="model.long_video=other is not one of windows, interleaved"):
        frame_groups("other", 1, 8, 8)
