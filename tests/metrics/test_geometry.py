"""Silhouettes and depth maps with known overlap."""

import math

import pytest
import torch

from fourdiffusion.metrics.geometry import alpha_iou, depth_error


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
