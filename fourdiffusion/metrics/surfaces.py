"""Distances of moving surfaces sampled as points, and the alignments of benchmarks.

Letters: T frames, P points of the prediction, Q of the truth.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn.functional import normalize

ALIGNMENTS = ("none", "similarity", "axis_scales")
COARSE_POINTS, COARSE_STEPS, FINE_STEPS = 500, 12, 40  # of the closest-point iterations


@dataclass(frozen=True)
class Alignment:
    """Affine map x -> x @ linear + shift, for rows x [..., 3]."""

    linear: np.ndarray  # [3, 3]
    shift: np.ndarray  # [3]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """[..., 3] -> [..., 3]"""
        return points @ self.linear + self.shift


IDENTITY = Alignment(np.eye(3), np.zeros(3))


# ---- distances ------------------------------------------------------------------------------------------------------


def chamfer_distance(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the SUM of the mean distances to the nearest point in both directions; points [P, 3] and [Q, 3].

    Distances, not their squares, as in ActionBench (actionbench/chamfer.py:44-52 @cbb4d00).
    """
    to_truth, to_prediction = _nearest_distances(prediction, truth)
    return float(to_truth.mean() + to_prediction.mean())


def f_score(prediction: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """Return the harmonic mean of precision and recall at a distance (Knapitsch et al. 2017), in 0..1."""
    if threshold <= 0:
        raise ValueError(f"threshold {threshold} of the F-score must be above 0")
    to_truth, to_prediction = _nearest_distances(prediction, truth)
    precision, recall = float((to_truth < threshold).mean()), float((to_prediction < threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def motion_distance(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the chamfer distance of trajectories: points are matched in frame 0 and tracked; [T, P, 3], [T, Q, 3].

    The sum of both directions' means over points and frames (actionbench/chamfer.py:75-89 @cbb4d00). Row p of
    every frame must be one point of the surface.
    """
    if prediction.ndim != 3 or truth.ndim != 3 or len(prediction) != len(truth):
        raise ValueError(
            f"trajectories {list(prediction.shape)} and {list(truth.shape)} must be [T, P, 3] and [T, Q, 3]"
        )
    _check(prediction[0], truth[0])
    nearest = KDTree(prediction[0]).query(truth[0])[1]
    back = KDTree(truth[0]).query(prediction[0])[1]
    to_prediction = np.linalg.norm(prediction[:, nearest] - truth, axis=-1).mean()
    return float(to_prediction + np.linalg.norm(truth[:, back] - prediction, axis=-1).mean())


def _nearest_distances(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _check(prediction, truth)
    return KDTree(truth).query(prediction)[0], KDTree(prediction).query(truth)[0]


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    for name, points in (("prediction", prediction), ("truth", truth)):
        if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
            raise ValueError(f"points of the {name} must be finite [N, 3], got {list(points.shape)}")


# ---- alignment ------------------------------------------------------------------------------------------------------


def align(prediction: np.ndarray, truth: np.ndarray, kind: str) -> Alignment:
    """Return the alignment of the prediction [P, 3] to the truth [Q, 3].

    Args:
        kind: "none"; "similarity": rotation, shift and ONE scale, closest points in both directions from 24 starts;
            "axis_scales": ActionBench's released code, which also stretches along the three axes.
    """
    _check(prediction, truth)
    if kind == "none":
        return IDENTITY
    if kind == "similarity":
        return _similarity(prediction.astype(np.float64), truth.astype(np.float64))
    if kind == "axis_scales":
        return _axis_scales(prediction, truth)
    raise ValueError(f"alignment {kind!r} is unknown: give {', '.join(ALIGNMENTS)}")


def rotations() -> np.ndarray:
    """Return the 24 rotations that map axes to axes, [24, 3, 3]."""
    found = []
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)):
        for signs in np.ndindex(2, 2, 2):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = 1 - 2 * np.array(signs)
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return np.stack(found)


def _similarity(prediction: np.ndarray, truth: np.ndarray) -> Alignment:
    """Run closest-point iterations: a coarse run from each of 24 rotations, then a fine one from the best."""
    generator = np.random.default_rng(0)
    few = [points[generator.permutation(len(points))[:COARSE_POINTS]] for points in (prediction, truth)]
    centers = prediction.mean(0), truth.mean(0)
    spreads = [
        np.sqrt(((points - center) ** 2).sum(1).mean())
        for points, center in zip((prediction, truth), centers, strict=True)
    ]
    best, least = IDENTITY, np.inf
    for rotation in rotations():
        linear = rotation * (spreads[1] / max(spreads[0], 1e-12))
        found = _iterate(few[0], few[1], Alignment(linear, centers[1] - centers[0] @ linear), COARSE_STEPS)
        error = _squared(found(few[0]), few[1])
        if error < least:
            best, least = found, error
    return _iterate(prediction, truth, best, FINE_STEPS)


def _iterate(prediction: np.ndarray, truth: np.ndarray, start: Alignment, steps: int) -> Alignment:
    tree, current, last = KDTree(truth), start, np.inf
    for _ in range(steps):
        moved = current(prediction)
        distances, ahead = tree.query(moved)
        behind_distances, behind = KDTree(moved).query(truth)
        # both directions have equal weight, whatever the numbers of points
        weights = np.concatenate([np.full(len(moved), 1 / len(moved)), np.full(len(truth), 1 / len(truth))])
        source = np.concatenate([prediction, prediction[behind]])
        target = np.concatenate([truth[ahead], truth])
        current = _umeyama(source, target, weights)
        error = float((distances**2).mean() + (behind_distances**2).mean())
        if last - error < 1e-9 * max(error, 1e-12):
            break
        last = error
    return current


def _umeyama(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> Alignment:
    """Return the least-squares similarity transform from source to target [N, 3] (Umeyama 1991)."""
    weights = weights[:, None] / weights.sum()
    a, b = (weights * source).sum(0), (weights * target).sum(0)
    x, y = source - a, target - b
    u, values, vt = np.linalg.svd((weights * x).T @ y)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    scale = float((values * signs).sum() / max(float((weights * x**2).sum()), 1e-24))
    linear = scale * (u * signs) @ vt
    return Alignment(linear, b - a @ linear)


def _squared(a: np.ndarray, b: np.ndarray) -> float:
    to_b, to_a = _nearest_distances(a, b)
    return float((to_b**2).mean() + (to_a**2).mean())


def _axis_scales(prediction: np.ndarray, truth: np.ndarray, steps: int = 200, rate: float = 0.01) -> Alignment:
    """Return the alignment of ActionBench's script (actionbench/icp.py:47-113 @cbb4d00).

    Adam on shift, rotation (6 numbers) and one scale per axis, on the squared chamfer distance, from 24 parallel
    starts. As there, the best step keeps its own rotation with the shift and scales AFTER that step's update.
    """
    points, goal = (torch.from_numpy(np.asarray(values, np.float32)) for values in (prediction, truth))
    starts = _actionbench_rotations()
    shift = torch.zeros(len(starts), 3, requires_grad=True)
    six = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]]).repeat(len(starts), 1).requires_grad_()
    scales = torch.ones(len(starts), 3, requires_grad=True)
    adam, tree, least = torch.optim.Adam([shift, six, scales], lr=rate), KDTree(goal.numpy()), np.inf
    best: tuple[Any, ...] = ()
    with torch.enable_grad():
        for _ in range(steps):
            adam.zero_grad()
            turned = starts @ _rotation_of_6(six)
            moved = scales[:, None] * points @ turned + shift[:, None]
            losses = torch.stack([_squared_chamfer(each, goal, tree) for each in moved])
            losses.mean().backward()
            adam.step()
            number = int(losses.argmin())
            if float(losses[number].detach()) < least:
                least = float(losses[number].detach())
                best = tuple(value[number].detach().double().numpy().copy() for value in (scales, turned, shift))
    return Alignment(best[0][:, None] * best[1], best[2])


def _squared_chamfer(points: Tensor, goal: Tensor, tree: KDTree) -> Tensor:
    """Return the mean squared distances to the nearest points, sum of both directions; the matches get no gradient."""
    ahead = torch.from_numpy(tree.query(points.detach().numpy())[1])
    behind = torch.from_numpy(KDTree(points.detach().numpy()).query(goal.numpy())[1])
    return (points - goal[ahead]).square().sum(-1).mean() + (points[behind] - goal).square().sum(-1).mean()


def _rotation_of_6(values: Tensor) -> Tensor:
    """[N, 6] -> [N, 3, 3]: two rows made orthogonal, the third their product (Zhou et al. 2019)."""
    first = normalize(values[:, :3], dim=-1)
    second = normalize(values[:, 3:] - (first * values[:, 3:]).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=1)


def _actionbench_rotations() -> Tensor:
    """Return the 24 starts of that script, Rx(azimuth) Ry(elevation) Rz(roll), [24, 3, 3]."""
    angles = [(azimuth, 0, roll) for azimuth in (0, 90, 180, 270) for roll in (0, 90, 180, 270)]
    angles += [(azimuth, elevation, roll) for azimuth in (0, 90) for elevation in (90, -90) for roll in (0, 90)]
    matrices = []
    for degrees in angles:
        x, y, z = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        one, zero = torch.ones(()).double(), torch.zeros(()).double()
        rx = torch.stack([one, zero, zero, zero, x.cos(), -x.sin(), zero, x.sin(), x.cos()]).view(3, 3)
        ry = torch.stack([y.cos(), zero, y.sin(), zero, one, zero, -y.sin(), zero, y.cos()]).view(3, 3)
        rz = torch.stack([z.cos(), -z.sin(), zero, z.sin(), z.cos(), zero, zero, zero, one]).view(3, 3)
        matrices.append(rx @ ry @ rz)
    return torch.stack(matrices).float()


# ---- sampling -------------------------------------------------------------------------------------------------------


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return face indices [count] and barycentric weights [count, 3] of points sampled uniformly on a mesh's area."""
    if not len(faces) or not np.isfinite(vertices).all():
        raise ValueError(f"a mesh of {len(vertices)} vertices and {len(faces)} faces has no finite surface")
    corners = vertices[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)
    if areas.sum() <= 0:
        raise ValueError("all faces of a mesh have no area")
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(faces), count, p=areas / areas.sum())
    root, other = np.sqrt(generator.random(count)), generator.random(count)
    return chosen, np.stack([1 - root, root * (1 - other), root * other], axis=-1)


def points_on(vertices: np.ndarray, faces: np.ndarray, sample: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the points [N, 3] of a sample on a mesh with the same faces."""
    chosen, weights = sample
    return (vertices[faces[chosen]] * weights[..., None]).sum(1)
