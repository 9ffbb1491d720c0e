"""Scores of clips whose faults are known: what moves, what turns as a whole, what leaves the picture."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.datasets.curation import scores
from fourdiffusion.datasets.curation.alignment import aligned_residuals, warp
from fourdiffusion.datasets.curation.decide import reasons_of_scores
from fourdiffusion.datasets.curation.hashing import look_and_motion, originals
from fourdiffusion.datasets.curation.scores import measure, signed_pictures
from fourdiffusion.datasets.curation.settings import Thresholds

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "dev"))
from check_curation import LABELS, found_label, synthetic_clip  # noqa: E402

RING = cameras.orbit(torch.arange(8) * 45.0)


def blob(x: Tensor, y: Tensor, radius: float = 0.3, side: int = 48) -> Tensor:
    """Return uint8 RGBA pictures [N, 4, side, side] of a striped disk at x, y [N] in [-1, 1], y down."""
    place = (torch.arange(side) + 0.5) / side * 2 - 1
    dx, dy = place[None, None] - x[:, None, None], place[None, :, None] - y[:, None, None]
    alpha = (dx**2 + dy**2 < radius**2).float()
    stripes = (torch.sin(dx * 9) * torch.cos(dy * 7) > 0).float().expand_as(alpha)
    return (torch.stack([stripes, 1 - stripes, 0.5 * stripes, alpha], dim=1) * 255).to(torch.uint8)


def scored(rgba: Tensor, c2w: Tensor = RING) -> scores.Scores:
    return measure(signed_pictures(rgba), rgba[:, :, 3], c2w, rgba.shape[1])


def reasons(rgba: Tensor, c2w: Tensor = RING) -> list[str]:
    return reasons_of_scores(vars(scored(rgba, c2w)), Thresholds())


def everywhere(frames: Tensor) -> Tensor:
    """[F, 4, H, W] -> the same in eight views."""
    return frames.expand(8, *frames.shape)


@pytest.mark.slow
def test_labels_of_the_synthetic_world_are_found() -> None:
    wrong = []
    for number in range(3):
        for label in LABELS:
            found, why = found_label(*synthetic_clip(label, number, 32, 12, 8))
            wrong += [(label, number, why)] if found != label else []
    assert not wrong


def test_a_disk_that_flies_is_rigid_and_one_that_opens_its_mouth_is_not() -> None:
    way = torch.linspace(-0.5, 0.5, 10)
    flying = everywhere(blob(way, way * 0.5))
    assert reasons(flying) == ["rigid"]
    assert scored(flying).articulation < 0.25 * scored(flying).pixel_motion
    chewing = blob(torch.zeros(10), torch.zeros(10))
    for k in range(10):
        chewing[k, 3, 24 - k : 24 + k, 24:] = 0
    assert reasons(everywhere(chewing)) == []
    both = blob(way, way * 0.5)
    for k in range(10):
        center = int((float(way[k]) + 1) * 24)
        both[k, 3, :, center : center + k] = 0
    assert reasons(everywhere(both)) == []


def test_alignment_undoes_a_similarity_transform() -> None:
    disk = signed_pictures(blob(torch.zeros(1), torch.zeros(1), 0.4, 64)[None])[0]
    angle, scale = math.radians(10), 1.1
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    moved = warp(disk, torch.tensor([[[a, -b, 0.1], [b, a, -0.05]]]))
    plain = scores.pair_differences(disk, moved)[0, 0]
    assert plain > 0.5 and aligned_residuals(torch.stack([disk[0], moved[0]])[None])[0, 1] < 0.35 * plain


def test_a_turn_shows_itself_where_views_repeat_each_other() -> None:
    """Eight different pictures in a ring: turning, they pass from view to view; standing, they only change."""
    torch.manual_seed(0)
    shapes = torch.stack([blob(0.3 * torch.randn(1), 0.3 * torch.randn(1))[0] for _ in range(8)])
    forward = torch.stack([shapes[[(v + f) % 8 for f in range(8)]] for v in range(8)])
    assert scored(forward).turning > 0.99 and "turning" in reasons(forward)
    shuffled = torch.stack([blob(0.3 * torch.randn(8), 0.3 * torch.randn(8)) for _ in range(8)])
    assert scored(shuffled).turning < 0.5
    still = shapes[:, None].expand(-1, 8, -1, -1, -1)
    assert scored(still).turning == 0 and reasons(still) == ["static"]


def test_what_leaves_the_picture_is_out_of_frame() -> None:
    frames = everywhere(blob(torch.linspace(0, 1.6, 10), torch.zeros(10)))
    assert scored(frames).outside == pytest.approx(0.6, abs=0.1) and "out_of_frame" in reasons(frames)
    assert scored(everywhere(blob(torch.linspace(-0.6, 0.6, 10), torch.zeros(10)))).outside == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rgba: rgba[:, :7], "short"),
        (lambda rgba: torch.cat([rgba[:, :, :3], torch.full_like(rgba[:, :, 3:], 255)], dim=2), "no_background"),
        (lambda rgba: torch.cat([rgba[:, :, :3] * 0 + 200, rgba[:, :, 3:]], dim=2), "plain"),
        (lambda rgba: rgba * (torch.arange(10) % 2)[:, None, None, None], "flicker"),
        (lambda rgba: torch.nn.functional.pad(rgba, (200, 200, 200, 200)), "small"),
    ],
    ids=["short", "no_background", "plain", "flicker", "small"],
)
def test_other_reasons(change, reason: str) -> None:  # type: ignore[no-untyped-def]
    growing = torch.cat([blob(torch.zeros(1), torch.zeros(1), 0.3 + 0.02 * k) for k in range(10)])
    assert reason not in reasons(everywhere(growing))
    assert reason in reasons(change(everywhere(growing)))


def test_size_is_the_longer_side_of_the_box() -> None:
    alpha = torch.zeros(1, 1, 20, 40, dtype=torch.uint8)
    alpha[..., 3:5, 10:30] = 255
    assert scores.size_in_frame(alpha) == pytest.approx(0.5)
    assert scores.size_in_frame(alpha * 0) == 0


def test_views_are_of_the_elevation_that_most_share() -> None:
    level, high = (
        cameras.orbit(torch.tensor([200.0, 20.0, 110.0, 290.0])),
        cameras.orbit(torch.tensor([0.0, 9.0]), 20.0),
    )
    assert scores.choose_views(torch.cat([high, level]), 8) == [3, 4, 2, 5]
    assert scores.choose_views(RING, 4) == [0, 2, 4, 6]


def test_near_duplicates() -> None:
    def hashes(rgba: Tensor) -> tuple[str, str]:
        return look_and_motion(signed_pictures(rgba))

    frames = torch.cat([blob(torch.zeros(1), torch.zeros(1), 0.3 + 0.02 * k) for k in range(10)])
    noisy = (frames.float() + 4 * torch.randn(frames.shape)).clamp(0, 255).to(torch.uint8)
    noisy[:, 3] = frames[:, 3]
    moved = torch.cat([blob(torch.zeros(1), torch.zeros(1) + 0.03 * k, 0.3) for k in range(10)])
    other = blob(torch.linspace(-0.4, 0.4, 10), torch.zeros(10), 0.5)
    found = [hashes(everywhere(each)) for each in (frames, noisy, moved, other)]
    assert originals([look for look, _ in found], [motion for _, motion in found], 10, 6) == [None, 0, None, None]
    assert originals([], [], 10, 6) == []
    assert originals(["ff" * 24] * 3, ["00" * 8] * 3, 0, 0) == [None, 0, 0]


def test_wrong_shapes_are_named() -> None:
    rgba = everywhere(blob(torch.zeros(8), torch.zeros(8)))
    with pytest.raises(ValueError, match=r"\(7, 4, 4\)"):
        measure(signed_pictures(rgba), rgba[:, :, 3], RING[:7], 8)
