"""Distances and alignments of point sets whose answers are known."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from fourdiffusion.metrics.surfaces import (
    _umeyama,
    align,
    chamfer_distance,
    f_score,
    motion_distance,
    points_on,
    rotations,
    sample_surface,
)


def cloud(count: int = 300, seed: int = 0) -> np.ndarray:
    """Points of a lopsided shape: no rotation carries it onto itself."""
    points = np.random.default_rng(seed).normal(size=(count, 3)) * [0.5, 0.3, 0.15]
    points[: count // 3] += [0.6, 0.4, 0.2]
    return points


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return points @ matrix @ rotations()[7]


def test_distances_equal_all_pairs() -> None:
    a, b = cloud(80, 1), cloud(120, 2)
    pairs = cdist(a, b)
    assert chamfer_distance(a, b) == pytest.approx(pairs.min(0).mean() + pairs.min(1).mean())
    precision, recall = (pairs.min(1) < 0.1).mean(), (pairs.min(0) < 0.1).mean()
    assert precision != recall
    assert f_score(a, b, 0.1) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f_score(a, a, 1e-6) == 1 and f_score(a, a + 50, 0.1) == 0 and chamfer_distance(a, a) == 0
    shifted = np.array([[0.0, 0, 0]]), np.array([[3.0, 4, 0]])
    assert chamfer_distance(*shifted) == 10  # distances, not squares, and both directions added
    with pytest.raises(ValueError, match="finite"):
        chamfer_distance(a * np.nan, b)
    with pytest.raises(ValueError, match="above 0"):
        f_score(a, b, 0)


def test_motion_follows_points_that_are_matched_in_the_first_frame() -> None:
    start = np.array([[0.0, 0, 0], [1, 0, 0]])
    truth = np.stack([start, start, start + [0, 1, 0]])
    exchanged = np.stack([start, start, (start + [0, 1, 0])[::-1]])
    assert motion_distance(truth, truth) == 0
    assert motion_distance(exchanged, truth) == pytest.approx(2 / 3)  # a third of the frames off by 1, both directions
    assert chamfer_distance(exchanged[2], truth[2]) == 0  # as sets the frames are equal
    with pytest.raises(ValueError, match="must be"):
        motion_distance(truth[:1], truth)


@pytest.mark.parametrize("degrees", [0, 20, 40])
def test_a_similarity_is_found_again(degrees: float) -> None:
    truth = cloud()
    moved = 1.7 * turned(truth, degrees) + [3, -2, 1]
    found = align(moved, truth, "similarity")
    assert chamfer_distance(found(moved), truth) < 1e-6
    scales = np.linalg.svd(found.linear, compute_uv=False)
    np.testing.assert_allclose(scales, 1 / 1.7, rtol=1e-6)
    assert np.linalg.det(found.linear) > 0  # never mirrored
    assert chamfer_distance(align(moved, truth, "none")(moved), truth) > 1


def test_a_mirrored_shape_is_not_mirrored_back() -> None:
    mirrored = cloud() * [1, 1, -1]
    found = align(mirrored, cloud(), "similarity")
    assert np.linalg.det(found.linear) > 0 and chamfer_distance(found(mirrored), cloud()) > 0.02
    step = _umeyama(mirrored, cloud(), np.ones(len(mirrored)))  # points known to belong together
    assert np.linalg.det(step.linear) > 0


def test_a_stretched_shape_is_excused_by_the_released_alignment_alone() -> None:
    """ActionBench's script says "rigid + scale" and fits a scale an axis: wrong proportions become right."""
    truth = cloud(60)
    stretched = truth * [1.4, 1.0, 0.7]
    one_scale = align(stretched, truth, "similarity")
    three_scales = align(stretched, truth, "axis_scales")
    assert chamfer_distance(three_scales(stretched), truth) < 0.02 < chamfer_distance(one_scale(stretched), truth)
    with pytest.raises(ValueError, match="unknown"):
        align(truth, truth, "rigid")


def test_points_are_spread_by_area_and_follow_the_mesh() -> None:
    vertices = np.array([[0.0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 1]])
    faces = np.array([[0, 1, 2], [0, 1, 3]])  # areas 3 and 1.5
    sample = sample_surface(vertices, faces, 6000, 0)
    assert (sample[0] == 0).mean() == pytest.approx(2 / 3, abs=0.02)
    points = points_on(vertices, faces, sample)
    on_first = points[sample[0] == 0]
    np.testing.assert_allclose(on_first.mean(0), [1, 2 / 3, 0], atol=0.03)
    np.testing.assert_allclose(points_on(vertices + [0, 0, 5], faces, sample), points + [0, 0, 5])
    with pytest.raises(ValueError, match="no area"):
        sample_surface(vertices, faces[:, [0, 0, 1]], 10, 0)
