"""One mesh for all frames: tracked through surfaces whose shape is known at every time."""

from collections.abc import Callable

import numpy as np
import pytest
from pygltflib import GLTF2
from scene.test_export_files import accessor
from skimage.measure import marching_cubes

from fourdiffusion.scene.export.glb import TO_GLTF, build_morph_glb
from fourdiffusion.scene.export.morph import Morph, measure, relaxed, track
from fourdiffusion.scene.export.surface import Mesh, vertex_normals

AXES = np.array([0.45, 0.2, 0.15])
TOLERANCE = 1 / 32
TIMES = np.linspace(0, 1, 5)


def mesh_of(implicit: Callable[[np.ndarray], np.ndarray]) -> Mesh:
    """The surface of an implicit function, positive inside, with its own topology."""
    axis = np.linspace(-0.9, 0.9, 48)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    vertices, faces, _, _ = marching_cubes(implicit(grid), 0.0, gradient_direction="ascent")
    vertices = (vertices * (axis[1] - axis[0]) - 0.9).astype(np.float32)
    return Mesh(vertices, faces.astype(np.uint32), vertex_normals(vertices, faces), np.zeros_like(vertices))


def stretch_and_bend(time: float) -> tuple[float, float]:
    return 0.8 + 0.4 * time, 1.2 * (time - 0.3)


def bent(time: float) -> Callable[[np.ndarray], np.ndarray]:
    """An ellipsoid whose points (x, y, z) are at (s x, y / sqrt(s), z / sqrt(s) + k (s x)^2)."""
    s, k = stretch_and_bend(time)

    def implicit(x: np.ndarray) -> np.ndarray:
        material = [x[..., 0] / s, x[..., 1] * s**0.5, (x[..., 2] - k * x[..., 0] ** 2) * s**0.5]
        return 1 - np.linalg.norm(np.stack(material, axis=-1) / AXES, axis=-1)

    return implicit


def balls(time: float) -> Callable[[np.ndarray], np.ndarray]:
    """One ball that parts into two."""
    offset = np.array([0.35 * time, 0, 0])
    return lambda x: 0.2 - np.minimum(np.linalg.norm(x - offset, axis=-1), np.linalg.norm(x + offset, axis=-1))


@pytest.fixture(scope="module")
def tracked() -> Morph:
    found, words = track([mesh_of(bent(time)) for time in TIMES], TOLERANCE)
    assert found is not None and "tracked from frame 2" in words
    return found


def test_a_bending_stretching_body_is_one_mesh_that_moves(tracked: Morph) -> None:
    assert tracked.reference == 2 and len(tracked.positions) == len(tracked.fits) == 5
    np.testing.assert_array_equal(tracked.positions[2], tracked.mesh.vertices)
    left, right = tracked.mesh.vertices[:, 0].argmin(), tracked.mesh.vertices[:, 0].argmax()
    for time, positions, fit in zip(TIMES, tracked.positions, tracked.fits, strict=True):
        assert abs(bent(time)(positions)).max() < 0.04  # of the half axes: a sixth of the grid
        s, k = stretch_and_bend(time)
        for vertex, sign in ((left, -1), (right, 1)):  # the tips stay the tips
            tip = np.array([sign * s * AXES[0], 0, k * (s * AXES[0]) ** 2])
            assert np.linalg.norm(positions[vertex] - tip) < 0.06
        assert fit.accepted and fit.distance < 0.05 and fit.far == 0 and fit.flipped == 0
    moved = np.linalg.norm(tracked.positions[4] - tracked.positions[0], axis=1)
    assert moved.max() > 0.2


def test_the_faces_keep_their_shape(tracked: Morph) -> None:
    faces = tracked.mesh.faces.astype(int)
    for positions in tracked.positions:
        a, b, c = np.moveaxis(positions[faces], 1, 0)
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        assert area.min() > 0.02 * np.median(area)


def test_a_body_that_parts_has_no_mesh_for_all_frames() -> None:
    found, words = track([mesh_of(balls(time)) for time in TIMES], TOLERANCE)
    assert found is None and words.startswith("frame ") and "does not follow from its neighbor" in words
    found, _ = track([mesh_of(balls(time)) for time in TIMES[::-1]], TOLERANCE)
    assert found is None


def test_what_is_measured() -> None:
    mesh = mesh_of(bent(0.3))
    same = measure(mesh.vertices, mesh.faces, mesh, TOLERANCE)
    assert same.accepted and same.distance < 0.05 and same.flipped == 0
    inside_out = measure(mesh.vertices, mesh.faces[:, ::-1], mesh, TOLERANCE)
    assert not inside_out.accepted and inside_out.flipped > 0.99
    half = mesh.faces[(mesh.vertices[mesh.faces.astype(int)].mean(axis=1)[:, 0]) > 0]
    missing = measure(mesh.vertices, half, mesh, TOLERANCE)  # all of it lies on the surface, half of which it lacks
    assert not missing.accepted and 0.15 < missing.far < 0.25
    shifted = measure(mesh.vertices + [0, 0, np.float32(0.5 * TOLERANCE)], mesh.faces, mesh, TOLERANCE)
    assert 0.2 < shifted.distance < 0.5


def test_relaxing_evens_out_the_faces_and_stays_on_the_surface() -> None:
    mesh = mesh_of(bent(0.3))
    even = relaxed(mesh)

    def smallest(vertices: np.ndarray) -> float:
        a, b, c = np.moveaxis(vertices[mesh.faces.astype(int)], 1, 0)
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        return float(np.quantile(area, 0.05) / np.median(area))

    assert smallest(even.vertices) > 2 * smallest(mesh.vertices)
    assert abs(bent(0.3)(even.vertices)).max() < 0.03


def test_a_glb_with_morph_targets(tracked: Morph) -> None:
    gltf = GLTF2.load_from_bytes(build_morph_glb(tracked, 4.0, 2.0, "Ann", {"prompt": "a worm"}))
    (mesh,), (channel,), (sampler,) = gltf.meshes, gltf.animations[0].channels, gltf.animations[0].samplers
    assert channel.target.path == "weights" and sampler.interpolation == "LINEAR"
    times, weights = accessor(gltf, sampler.input)[:, 0], accessor(gltf, sampler.output).reshape(5, 4)
    np.testing.assert_allclose(times, np.arange(5) / 4)
    base = accessor(gltf, mesh.primitives[0].attributes.POSITION)
    targets = [accessor(gltf, target["POSITION"]) for target in mesh.primitives[0].targets]
    for frame, weight in enumerate(weights):
        shown = base + sum(w * target for w, target in zip(weight, targets, strict=True))
        np.testing.assert_allclose(shown, 2 * tracked.positions[frame] @ TO_GLTF.T, atol=1e-5)
    assert mesh.weights == weights[0].tolist() and gltf.asset.copyright == "Ann"
    assert mesh.extras["targetNames"] == ["frame_0000", "frame_0001", "frame_0003", "frame_0004"]


@pytest.mark.parametrize("change", [{"fps": 0.0}, {"scale": -1.0}])
def test_a_morph_of_nothing_is_refused(tracked: Morph, change: dict) -> None:
    with pytest.raises(ValueError, match="morph targets need"):
        build_morph_glb(tracked, **({"fps": 8.0} | change))
