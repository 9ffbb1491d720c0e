"""Optical flow of patterns whose motion is known."""

import pytest
import torch

from fourdiffusion.metrics.flow import carry, estimate_flow, visible_along
from fourdiffusion.metrics.video import warped_temporal_error


def moving(frames: int = 3, right: int = 2, down: int = 1) -> torch.Tensor:
    """A smooth pattern that moves right and down, [F, 3, 40, 40]."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    pattern = torch.stack([0.5 + 0.4 * (x / (4 + c)).sin() * (y / 5 - c).cos() for c in range(3)])
    return torch.stack(
        [pattern[:, 10 - i * down : 50 - i * down, 10 - i * right : 50 - i * right] for i in range(frames)]
    )


def test_a_shift_is_found_with_its_direction() -> None:
    video = moving()
    flow, visible = estimate_flow(video)
    assert flow.shape == (2, 2, 40, 40) and visible.shape == (2, 40, 40)
    inner = flow[:, :, 8:-8, 8:-8]
    torch.testing.assert_close(inner.mean(dim=(0, 2, 3)), torch.tensor([2.0, 1.0]), atol=0.15, rtol=0)
    assert float(visible[:, 8:-8, 8:-8].float().mean()) > 0.9
    assert float(warped_temporal_error(video, flow, visible)) < 0.01
    flicker = video * torch.tensor([1.0, 0.8, 1.0])[:, None, None, None]
    assert float(warped_temporal_error(flicker, flow, visible)) > 0.05
    with pytest.raises(ValueError, match="at least 2 frames"):
        estimate_flow(video[:1])


def test_covered_pixels_are_not_visible_along_a_true_flow() -> None:
    video, flow = moving(2), torch.tensor([2.0, 1.0])[None, :, None, None].expand(1, 2, 40, 40)
    assert bool(visible_along(video, flow)[0, 1:38, 1:37].all()) and not bool(
        visible_along(video, flow)[0, :, 38:].any()
    )
    covered = video.clone()
    covered[1, :, 10:20, 10:20] = 1 - covered[1, :, 10:20, 10:20].round()
    hidden = visible_along(covered, flow)[0]
    assert not bool(hidden[10:18, 9:17].any()) and bool(hidden[22:38, 1:37].all())
    torch.testing.assert_close(carry(video[1:], flow)[0, :, 1:37, 1:37], video[0, :, 1:37, 1:37])


def test_what_a_moving_square_covers_is_not_visible_along_an_estimated_flow() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    ground = torch.stack([0.5 + 0.3 * (x / 4 + c).sin() * (y / 3).cos() for c in range(3)])
    square = torch.stack([0.5 + 0.5 * (x / 2).cos() * (y / 2 + c).sin() for c in range(3)])[:, :16, :16]
    video = ground[None].repeat(2, 1, 1, 1)
    video[0, :, 16:32, 12:28] = video[1, :, 16:32, 16:32] = square  # 4 pixels right
    _, visible = estimate_flow(video)
    assert float(visible[0, 18:30, 28:32].float().mean()) < 0.5
    assert float(visible[0, :10].float().mean()) > 0.95
