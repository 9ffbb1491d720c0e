"""Find one mesh that all frames share, by tracking a surface through the frames' own meshes.

The mesh of the middle frame is moved onto the surface of the next frame, that result onto the one after it, and so on
to both ends of the clip: nonrigid registration to the nearest surface, point to plane, kept as rigid as possible
(Sorkine and Alexa 2007; Li et al. 2008). What comes out is measured, and refused where it does not cover the frames'
surfaces.

Letters: F frames, N vertices, M faces, E directed edges.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.scene.export.surface import Mesh, surface_colors, vertex_normals
from fourdiffusion.scene.scene import Scene

STIFFNESS = (64.0, 16.0, 4.0, 1.0, 0.3)  # weights of rigidity, one after the other; a pair of points has weight 1
ROUNDS = 4  # of pairing and solving at each stiffness
TANGENTIAL = 0.02  # weight of a pair's distance along the surface, against that across it
FACING = 0.5  # smallest cosine between the normals of a pair
RELAXATIONS = 8  # of the first mesh, which evens out the slivers of marching cubes
UNFOLDINGS, FOLD_RINGS, FOLD_ROUNDS = 3, 4, 50  # times, and rings around a fold that are drawn smooth so often
POINTS_A_FACE = 3  # on which the result is measured
FAR = 2.0  # tolerances
MAX_DISTANCE, MAX_FAR, MAX_FLIPPED = 0.5, 0.005, 0.01  # limits of Fit


@dataclass
class Fit:
    """How near a tracked mesh is to the mesh of a frame."""

    distance: float  # mean of the distances from each to the other, in tolerances
    far: float  # share of both surfaces that is more than FAR tolerances from the other
    flipped: float  # share of the tracked surface whose normal points against that of the nearest surface

    @property
    def accepted(self) -> bool:
        return self.distance <= MAX_DISTANCE and self.far <= MAX_FAR and self.flipped <= MAX_FLIPPED

    def __str__(self) -> str:
        return (
            f"mean distance {self.distance:.2f} tolerances (at most {MAX_DISTANCE:g}), {self.far:.1%} of the surface "
            f"beyond {FAR:g} (at most {MAX_FAR:.1%}), {self.flipped:.1%} flipped (at most {MAX_FLIPPED:.1%})"
        )


@dataclass
class Morph:
    """One topology for all frames."""

    mesh: Mesh  # of the frame ``reference``
    positions: np.ndarray  # float32 [F, N, 3], scene units; those of ``reference`` are the mesh's own
    reference: int
    fits: list[Fit]  # one a frame


def morph_targets(
    scene: Scene, meshes: list[Mesh], times: Tensor, label: str | None = None
) -> tuple[Morph | None, str]:
    """Return what ``track`` finds, a step of the renderer being the tolerance, with mean colors over time.

    Args:
        meshes, times: one a frame [F].
        label: shows a progress bar of this name.
    """
    found, words = track(meshes, scene.renderer.step, label)
    if found is not None:
        colors = np.zeros_like(found.mesh.vertices)
        for positions, time in zip(found.positions, times, strict=True):
            normals = torch.from_numpy(vertex_normals(positions, found.mesh.faces))
            colors += surface_colors(scene, torch.from_numpy(positions), normals, time) / len(times)
        found.mesh.colors = colors
    return found, words


def track(meshes: list[Mesh], tolerance: float, label: str | None = None) -> tuple[Morph | None, str]:
    """Return the middle frame's mesh and its positions in every frame, and what was found in one line.

    None in place of the mesh where a frame's ``Fit`` is not accepted; what is beyond that frame is not tried.

    Args:
        meshes: one a frame, each closed, with a topology of its own.
        tolerance: scene units that do not matter, a step of the renderer.
        label: shows a progress bar of this name.
    """
    reference = len(meshes) // 2
    base = relaxed(meshes[reference])
    edges = _edges(base.faces)
    positions, fits = (
        {reference: base.vertices},
        {reference: measure(base.vertices, base.faces, meshes[reference], tolerance)},
    )
    order = [*range(reference + 1, len(meshes)), *range(reference - 1, -1, -1)]
    for frame in tqdm([reference, *order], desc=label, disable=label is None, leave=False):
        if frame != reference:
            before = positions[frame - 1 if frame > reference else frame + 1]
            positions[frame] = register(before, base.faces, edges, meshes[frame])
            fits[frame] = measure(positions[frame], base.faces, meshes[frame], tolerance)
        if not fits[frame].accepted:
            return None, f"frame {frame} does not follow from its neighbor: {fits[frame]}"
    ordered = [fits[frame] for frame in range(len(meshes))]
    worst = max(ordered, key=lambda fit: fit.distance)
    found = Morph(base, np.stack([positions[frame] for frame in range(len(meshes))]), reference, ordered)
    return found, f"tracked from frame {reference}; farthest: {worst}"


def register(start: np.ndarray, faces: np.ndarray, edges: np.ndarray, target: Mesh) -> np.ndarray:
    """Return the vertices [N, 3] moved onto the surface of ``target``, as rigidly as the surface allows.

    Args:
        start: [N, 3], near the target.
        edges: [E, 2], see ``_edges``.
    """
    points, normals = _samples(target)
    tree = cKDTree(points)
    laplacian = _laplacian(edges, len(start))
    rest = start.astype(np.float64)
    moved = rest
    for stiffness in np.repeat(STIFFNESS, ROUNDS):
        matrix, right = _pairs(moved, faces, points, normals, tree)
        moved = _solve(matrix, laplacian, stiffness, right + stiffness * _pull(rest, moved, edges), moved)
    for _ in range(UNFOLDINGS):
        unfolded = _unfolded(moved, faces, edges, normals, tree)
        if unfolded is None:
            break
        rest = moved = unfolded
        for _ in range(ROUNDS):
            matrix, right = _pairs(moved, faces, points, normals, tree)
            moved = _solve(matrix, laplacian, 1.0, right + _pull(rest, moved, edges), moved)
    return moved.astype(np.float32)


def _pull(rest: np.ndarray, moved: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the right side [N, 3] of rigidity: sum over edges of |(v_i - v_j) - (R_i + R_j) / 2 (p_i - p_j)|^2."""
    rotations = _rotations(rest, moved, edges)
    mean = (rotations[edges[:, 0]] + rotations[edges[:, 1]]) / 2
    return _sum_at(edges[:, 0], np.einsum("eij,ej->ei", mean, rest[edges[:, 0]] - rest[edges[:, 1]]), len(rest))


def _unfolded(
    moved: np.ndarray, faces: np.ndarray, edges: np.ndarray, normals: np.ndarray, tree: cKDTree
) -> np.ndarray | None:
    """Return the vertices with folds, and what is around them, drawn smooth like a membrane; None without folds."""
    corners = faces.astype(np.int64)
    cross = _cross(moved, faces)
    _, nearest = tree.query(moved[corners].mean(axis=1))
    folded = np.zeros(len(moved), bool)
    folded[corners[(cross * normals[nearest]).sum(axis=1) < 0].ravel()] = True
    if not folded.any():
        return None
    for _ in range(FOLD_RINGS):
        folded[edges[folded[edges[:, 0]], 1]] = True
    degree = np.maximum(np.bincount(edges[:, 0], minlength=len(moved)), 1)[:, None]
    smooth = moved.copy()
    for _ in range(FOLD_ROUNDS):
        smooth[folded] = (_sum_at(edges[:, 0], smooth[edges[:, 1]], len(moved)) / degree)[folded]
    return smooth


def measure(vertices: np.ndarray, faces: np.ndarray, target: Mesh, tolerance: float) -> Fit:
    """Return how near a mesh is to a frame's, both ways, sampled evenly over both surfaces."""
    own = Mesh(vertices, faces, vertex_normals(vertices, faces), np.empty(0))
    (points, normals), (others, other_normals) = _scattered(own), _scattered(target)
    there, nearest = _distances(points, others, other_normals, tolerance)
    back, _ = _distances(others, points, normals, tolerance)
    far = (np.mean(there > FAR * tolerance) + np.mean(back > FAR * tolerance)) / 2
    flipped = np.mean((normals * other_normals[nearest]).sum(axis=1) < 0)
    return Fit(float((there.mean() + back.mean()) / 2 / tolerance), float(far), float(flipped))


def relaxed(mesh: Mesh) -> Mesh:
    """Return the mesh with its vertices spread evenly along its own surface."""
    edges, vertices = _edges(mesh.faces), mesh.vertices.astype(np.float64)
    points, normals = _samples(mesh)
    tree = cKDTree(points)
    degree = np.bincount(edges[:, 0], minlength=len(vertices))[:, None]
    for _ in range(RELAXATIONS):
        centered = _sum_at(edges[:, 0], vertices[edges[:, 1]], len(vertices)) / np.maximum(degree, 1)
        vertices = vertices + (np.where(degree > 0, centered, vertices) - vertices) / 2
        _, nearest = tree.query(vertices)
        height = ((vertices - points[nearest]) * normals[nearest]).sum(axis=1, keepdims=True)
        vertices = vertices - height * normals[nearest]
    vertices = vertices.astype(np.float32)
    return Mesh(vertices, mesh.faces, vertex_normals(vertices, mesh.faces), mesh.colors)


def _pairs(
    moved: np.ndarray, faces: np.ndarray, points: np.ndarray, normals: np.ndarray, tree: cKDTree
) -> tuple[np.ndarray, np.ndarray]:
    """Return blocks [N, 3, 3] and right sides [N, 3] of the quadratic energy of pairs of points, both ways.

    Each vertex is paired with the nearest sample of the target, and each sample with the nearest vertex: the first
    brings the mesh onto the surface, the second brings it to where the surface has grown. Pairs whose normals disagree
    are left out.
    """
    own = vertex_normals(moved, faces)
    _, nearest = tree.query(moved)
    _, vertex = cKDTree(moved).query(points)
    vertices = np.concatenate([np.arange(len(moved)), vertex])
    samples = np.concatenate([nearest, np.arange(len(points))])
    # each way counts for one pair a vertex
    weights = np.concatenate([np.ones(len(moved)), np.full(len(points), len(moved) / len(points))])
    kept = (own[vertices] * normals[samples]).sum(axis=1) > FACING
    vertices, samples, weights = vertices[kept], samples[kept], weights[kept]
    plane = normals[samples][:, :, None] * normals[samples][:, None] + TANGENTIAL * np.eye(3)
    plane *= weights[:, None, None]
    matrix = _sum_at(vertices, plane.reshape(-1, 9), len(moved)).reshape(-1, 3, 3)
    return matrix, _sum_at(vertices, np.einsum("nij,nj->ni", plane, points[samples]), len(moved))


def _solve(
    blocks: np.ndarray, laplacian: sparse.csr_matrix, stiffness: float, right: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Solve (blocks + stiffness * laplacian) v = right for v [N, 3] by conjugate gradients, Jacobi preconditioned."""
    count = len(start)

    def product(flat: np.ndarray) -> np.ndarray:
        v = flat.reshape(count, 3)
        return (np.einsum("nij,nj->ni", blocks, v) + stiffness * (laplacian @ v)).ravel()

    diagonal = (np.einsum("nii->ni", blocks) + stiffness * laplacian.diagonal()[:, None]).ravel()
    shape = (3 * count, 3 * count)
    scaled = LinearOperator(shape, matvec=lambda flat: flat.ravel() / np.maximum(diagonal, 1e-9), dtype=np.float64)
    system = LinearOperator(shape, matvec=product, dtype=np.float64)
    found, _ = cg(system, right.ravel(), x0=start.ravel(), rtol=1e-5, maxiter=200, M=scaled)
    return found.reshape(count, 3)


def _rotations(rest: np.ndarray, moved: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return for each vertex the rotation [N, 3, 3] that takes its edges at rest nearest to those moved (Kabsch)."""
    before, after = rest[edges[:, 0]] - rest[edges[:, 1]], moved[edges[:, 0]] - moved[edges[:, 1]]
    covariance = _sum_at(edges[:, 0], (after[:, :, None] * before[:, None]).reshape(-1, 9), len(rest))
    left, _, right = np.linalg.svd(covariance.reshape(-1, 3, 3))
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    return left @ right


def _samples(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Return points [N + M, 3] of a surface, its vertices and the middles of its faces, and their unit normals."""
    vertices, faces = mesh.vertices.astype(np.float64), mesh.faces.astype(np.int64)
    cross = _cross(vertices, faces)
    length = np.linalg.norm(cross, axis=1, keepdims=True)
    kept = length[:, 0] > 1e-12  # marching cubes leaves faces without an area
    points = np.concatenate([vertices, vertices[faces].mean(axis=1)[kept]])
    return points, np.concatenate([mesh.normals, cross[kept] / length[kept]])


def _scattered(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Return random points spread evenly over a surface, POINTS_A_FACE times its faces, and their faces' normals."""
    corners = mesh.vertices[mesh.faces.astype(np.int64)].astype(np.float64)
    cross = _cross(mesh.vertices.astype(np.float64), mesh.faces)
    area = np.linalg.norm(cross, axis=1)
    generator = np.random.default_rng(0)
    face = generator.choice(len(area), POINTS_A_FACE * len(area), p=area / area.sum())
    u, v = generator.random((2, len(face), 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = np.moveaxis(corners[face], 1, 0)
    return a + u * (b - a) + v * (c - a), cross[face] / area[face][:, None]


def _distances(
    points: np.ndarray, others: np.ndarray, normals: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of points from a sampled surface, across it within ``reach``, and the nearest samples."""
    plain, nearest = cKDTree(others).query(points)
    across = abs(((points - others[nearest]) * normals[nearest]).sum(axis=1))
    return np.where(plain < reach, across, plain), nearest


def _cross(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = np.moveaxis(vertices[faces.astype(np.int64)], 1, 0)
    return np.cross(b - a, c - a)


def _edges(faces: np.ndarray) -> np.ndarray:
    """Return every edge of the faces in both directions, once: int64 [E, 2]."""
    corners = faces.astype(np.int64)
    both = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    return np.unique(np.concatenate([both, both[:, ::-1]]), axis=0)


def _laplacian(edges: np.ndarray, count: int) -> sparse.csr_matrix:
    """Return degree - adjacency [N, N]."""
    adjacency = sparse.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return sparse.diags(np.asarray(adjacency.sum(axis=1)).ravel()).tocsr() - adjacency


def _sum_at(index: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Return the sums [count, C] of rows of values [K, C] by their index [K]."""
    return np.stack([np.bincount(index, column, minlength=count) for column in values.T], axis=1)
