"""Silhouettes and depth maps with known overlap."""

import math

import pytest
import torch

from fourdiffusion.cameras import orbit, rays
from fourdiffusion.metrics.geometry import alpha_iou, cross_view_error, depth_error


def test_iou_of_shifted_squares() -> None:
    a, b = torch.zeros(2, 16, 16), torch.zeros(2, 16, 16)
    a[0, 4:8, 4:8], b[0, 4:8, 6:10] = 1, 0.9
    torch.testing.assert_close(alpha_iou(a, b), torch.tensor([8 / 24, 1.0]))
    with pytest.raises(ValueError, match="alpha must be in"):
        alpha_iou(a * 255, b)
    with pytest.raises(ValueError, match="must have one"):
        alpha_iou(a, b[:, :8])


def test_depth_counts_only_shared_surface() -> None:
    truth = torch.full((2, 4, 4), math.inf)
    truth[0, :2] = 1.0
    prediction = truth.clone()
    prediction[0, 0], prediction[0, 3] = 1.5, 7.0
    error = depth_error(prediction, truth)
    assert error[0].item() == pytest.approx(0.25) and math.isnan(error[1])


def box_views(shade: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures [4, 1, 3, 48, 48], depth and cameras of a ball whose color is its place, seen from four sides."""
    c2w = orbit(torch.tensor([0.0, 30.0, 60.0, 90.0]))
    origins, directions = rays(c2w, 45.0, 48, 48)
    along = (origins * directions).sum(-1)
    root = along.square() - origins.square().sum(-1) + 0.3**2
    distance = -along - root.clamp(min=0).sqrt()
    hit = root > 0
    points = origins + distance[..., None] * directions
    color = 0.5 + points
    if shade:
        color = color * torch.tensor([1.0, 0.9, 1.0, 0.9])[:, None, None, None]
    pictures = torch.where(hit[..., None], color, torch.ones(())).permute(0, 3, 1, 2).clamp(0, 1)
    depth = distance.where(hit, torch.tensor(math.inf))
    return pictures[:, None], depth[:, None], c2w


def test_views_of_one_surface_agree_and_others_do_not() -> None:
    pictures, depth, c2w = box_views()
    agree = cross_view_error(pictures, depth, c2w, 45.0)
    assert agree.shape == (4,) and float(agree.max()) < 0.012  # resampling, near the rim
    shaded = cross_view_error(box_views(True)[0], depth, c2w, 45.0)
    assert float(shaded.min()) > 0.02  # a tenth of colors around a half, against some of the views
    exchanged = cross_view_error(pictures[[1, 0, 3, 2]], depth, c2w, 45.0)
    assert float(exchanged.min()) > 3 * float(agree.max())
    turned = cross_view_error(pictures.flip(-1), depth, c2w, 45.0)
    assert float(turned.min()) > 3 * float(agree.max())
    far = cross_view_error(pictures[[0, 0]], depth[[0, 0]], orbit(torch.tensor([0.0, 180.0])), 45.0)
    assert bool(far.isnan().all())  # opposite views share nothing
    with pytest.raises(ValueError, match="do not fit"):
        cross_view_error(pictures, depth[:2], c2w, 45.0)
