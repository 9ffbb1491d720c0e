"""Clip measures and the summary of a comparison."""

import pytest
import torch

from fourdiffusion.metrics.image import gmsd, psnr, ssim
from fourdiffusion.metrics.video import copied_input, evaluate_views, group_means, temporal_error, warped_temporal_error


def clips(seed: int) -> torch.Tensor:  # [V, F, 3, H, W]
    return torch.rand(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_temporal_error_sees_changes_only() -> None:
    truth = 0.5 * clips(0)
    assert temporal_error(truth + 0.25, truth).max() < 1e-6  # a constant offset is no temporal error
    still = truth[:, :1].expand_as(truth)
    torch.testing.assert_close(temporal_error(still, truth), truth.diff(dim=1).abs().mean(dim=(1, 2, 3, 4)))


def test_temporal_error_of_flicker() -> None:
    truth = torch.full((4, 3, 8, 8), 0.5)
    flicker = truth + torch.tensor([0.1, -0.1, 0.1, -0.1])[:, None, None, None]
    assert temporal_error(flicker, truth).item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="at least 2 frames"):
        temporal_error(truth[:1], truth[:1])


def test_copied_input_is_the_video_at_every_view() -> None:
    video = clips(0)[0]
    baseline = copied_input(video, 5)
    assert baseline.shape == (5, *video.shape)
    assert all(torch.equal(view, video) for view in baseline)


def test_evaluate_views_agrees_with_the_measures() -> None:
    truth, prediction = clips(0), clips(1)
    result = evaluate_views(prediction, truth)
    for name, measure in (("psnr", psnr), ("ssim", ssim), ("gmsd", gmsd)):
        values = measure(prediction, truth)
        torch.testing.assert_close(torch.tensor(result["per_frame"][name]), values)
        torch.testing.assert_close(torch.tensor(result["per_view"][name]), values.mean(1))
        assert result["mean"][name] == pytest.approx(values.mean().item(), rel=1e-5)
    assert len(result["per_view"]["temporal_error"]) == 3


def test_evaluate_views_of_single_frames_has_no_temporal_error() -> None:
    result = evaluate_views(clips(0)[:, :1], clips(1)[:, :1])
    assert set(result["mean"]) == {"psnr", "ssim", "gmsd"}
    with pytest.raises(ValueError, match="V, F, 3, H, W"):
        evaluate_views(clips(0)[0], clips(1)[0])


def test_group_means_part_the_views_by_role() -> None:
    result = evaluate_views(clips(1), clips(0))
    means = group_means(result, ["input", "novel", "novel"])
    assert list(means) == ["input", "novel"]
    for name, values in result["per_view"].items():
        assert means["input"][name] == pytest.approx(values[0])
        assert means["novel"][name] == pytest.approx((values[1] + values[2]) / 2)
    assert group_means(result, ["all"] * 3)["all"] == pytest.approx(result["mean"], rel=1e-6)
    with pytest.raises(ValueError, match="2 roles for 3 views"):
        group_means(result, ["input", "novel"])


def test_warped_error_forgives_motion_and_sees_flicker() -> None:
    """A pattern moves 2 pixels right and 1 down a frame."""
    pattern = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    video = torch.stack([pattern[:, 10 - i : 30 - i, 10 - 2 * i : 30 - 2 * i] for i in range(4)])
    flow = torch.tensor([2.0, 1.0])[None, :, None, None].expand(3, 2, 20, 20)
    visible = torch.ones(3, 20, 20, dtype=torch.bool)
    assert warped_temporal_error(video, flow, visible).item() < 1e-5
    assert warped_temporal_error(video, -flow, visible).item() > 0.1
    flicker = (video * 0.8 + torch.tensor([0.0, 0.1, 0.0, 0.1])[:, None, None, None]).clamp(0, 1)
    assert warped_temporal_error(flicker, flow, visible).item() == pytest.approx(0.1, abs=1e-5)
    broken = video.clone()
    broken[1, :, 5:9, 5:9] = 0
    hidden = visible.clone()
    hidden[0, 3:10, 2:9] = hidden[1, 4:10, 4:10] = False
    assert warped_temporal_error(broken, flow, hidden).item() < 1e-5 < warped_temporal_error(broken, flow, visible)
    with pytest.raises(ValueError, match="do not fit"):
        warped_temporal_error(video, flow[:2], visible)
