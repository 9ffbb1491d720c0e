"""Metrics of whole clips, and the summary for all result tables of the project."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourdiffusion.metrics.flow import carry
from fourdiffusion.metrics.image import check_pair, gmsd, psnr, ssim


def temporal_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the mean absolute error of frame-to-frame differences: flicker and missing motion both raise it.

    [..., F, C, H, W] -> [...], F at least 2. The score of a still prediction is the truth's own mean change.
    """
    check_pair(prediction, truth)
    if prediction.ndim < 4 or prediction.shape[-4] < 2:
        raise ValueError(f"temporal_error needs [..., F, C, H, W] with at least 2 frames, got {list(prediction.shape)}")
    change = prediction.diff(dim=-4) - truth.diff(dim=-4)
    return change.abs().flatten(-4).mean(-1)


def warped_temporal_error(prediction: Tensor, flow: Tensor, visible: Tensor) -> Tensor:
    """Return the mean absolute change of a video along the true motion: flicker raises it, correct motion does not.

    Frame i + 1 is sampled bilinearly at the flow's target of each pixel of frame i, and compared with frame i.

    Args:
        prediction: [F, C, H, W] in [0, 1], F at least 2.
        flow: [F - 1, 2, H, W], from frame i to frame i + 1 in pixels, x to the right, then y down.
        visible: [F - 1, H, W], bool: the pixel of frame i is also visible in frame i + 1.

    Returns:
        A number; NaN where no pixel is visible.
    """
    check_pair(prediction, prediction)
    frames, _, height, width = prediction.shape
    if frames < 2 or flow.shape != (frames - 1, 2, height, width) or visible.shape != (frames - 1, height, width):
        raise ValueError(
            f"flow {list(flow.shape)} and visible {list(visible.shape)} do not fit a video {list(prediction.shape)}: "
            "give [F - 1, 2, H, W] and [F - 1, H, W]"
        )
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target_x, target_y = x + flow[:, 0], y + flow[:, 1]
    inside = (target_x >= 0) & (target_x <= width - 1) & (target_y >= 0) & (target_y <= height - 1) & visible
    change = (carry(prediction[1:], flow) - prediction[:-1]).abs().mean(dim=1).double()
    return (change * inside).sum() / inside.sum()


def copied_input(video: Tensor, num_views: int) -> Tensor:
    """Return the copied-input baseline: the input frame at every view. [F, ...] -> [V, F, ...]"""
    return video[None].expand(num_views, *video.shape)


@torch.no_grad()
def evaluate_views(
    prediction: Tensor, truth: Tensor, lpips: Callable[[Tensor, Tensor], Tensor] | None = None
) -> dict[str, Any]:
    """Compare clips view by view and frame by frame.

    Args:
        prediction, truth: [V, F, 3, H, W] float in [0, 1], composited on the same background.
        lpips: the result of ``metrics.lpips.load_lpips``; None omits that metric.

    Returns:
        "mean": {metric: float}; "per_view": {metric: [V]}; "per_frame": {metric: V lists of F}. Means are over
        the pictures' values (PSNR is averaged in dB). "temporal_error" is per view, not per frame, and needs F >= 2.
    """
    if prediction.ndim != 5:
        raise ValueError(f"evaluate_views needs [V, F, 3, H, W], got {list(prediction.shape)}")
    per_frame = {name: measure(prediction, truth) for name, measure in (("psnr", psnr), ("ssim", ssim), ("gmsd", gmsd))}
    if lpips is not None:
        per_frame["lpips"] = torch.stack([lpips(a, b) for a, b in zip(prediction, truth, strict=True)])
    per_view = {name: values.mean(dim=1) for name, values in per_frame.items()}
    if prediction.shape[1] > 1:
        per_view["temporal_error"] = temporal_error(prediction, truth)
    return {
        "mean": {name: float(values.mean()) for name, values in per_view.items()},
        "per_view": {name: values.tolist() for name, values in per_view.items()},
        "per_frame": {name: values.tolist() for name, values in per_frame.items()},
    }


def group_means(result: dict[str, Any], roles: list[str]) -> dict[str, dict[str, float]]:
    """Return means of an ``evaluate_views`` result over the views of each role: {role: {metric: float}}.

    Args:
        roles: one name per view, for example "input", "generated" and "novel".
    """
    means: dict[str, dict[str, float]] = {role: {} for role in dict.fromkeys(roles)}
    for name, values in result["per_view"].items():
        if len(values) != len(roles):
            raise ValueError(f"{len(roles)} roles for {len(values)} views: give one each")
        for role in means:
            chosen = [value for value, its_role in zip(values, roles, strict=True) if its_role == role]
            means[role][name] = sum(chosen) / len(chosen)
    return means
