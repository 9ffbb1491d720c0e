"""Surfaces of a scene whose shape is known: a ball that rises, half red and half blue, beside a speck."""

import numpy as np
import pytest
import torch
from scene.shapes import RADIUS, ball_center, ball_scene, iou, silhouette

from fourdiffusion.cameras import FOVY_DEG, orbit
from fourdiffusion.errors import UserError
from fourdiffusion.scene.export.surface import (
    DensityGrid,
    Mesh,
    best_threshold,
    choose_iso_level,
    extract_meshes,
    largest_along_rays,
    remove_floaters,
    sample_density,
    smooth,
)
from fourdiffusion.scene.scene import Scene, render_views

pytestmark = pytest.mark.slow

TIMES = torch.linspace(0, 1, 3)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return ball_scene(TIMES)


@pytest.fixture(scope="module")
def grid(scene: Scene) -> DensityGrid:
    return sample_density(scene, TIMES, 48)


@pytest.fixture(scope="module")
def meshes(scene: Scene, grid: DensityGrid) -> list[Mesh]:
    kept = DensityGrid(remove_floaters(grid.values, 40.0, 0.05), grid.origin, grid.spacing)
    return extract_meshes(scene, TIMES, kept, 40.0)


def test_the_grid_holds_the_densities_of_its_points(scene: Scene, grid: DensityGrid) -> None:
    index = np.argwhere(grid.values[1] > 0)[::500]
    points = torch.from_numpy(index * grid.spacing + grid.origin).float()
    found = torch.from_numpy(grid.values[1][tuple(index.T)])
    torch.testing.assert_close(
        found, scene.field.density(points, torch.full((len(points),), 0.5)), atol=1e-2, rtol=1e-3
    )
    assert max(grid.values.shape[1:]) == 48 + 2
    assert not any(np.take(grid.values, [0, -1], axis=axis).any() for axis in (1, 2, 3))


def test_the_surface_is_the_ball_at_every_time(meshes: list[Mesh]) -> None:
    for mesh, center in zip(meshes, ball_center(TIMES).numpy(), strict=True):
        distances = np.linalg.norm(mesh.vertices - center, axis=1)
        assert abs(distances - RADIUS).max() < 0.02  # the speck is gone
        outward = (mesh.vertices - center) / distances[:, None]
        assert (mesh.normals * outward).sum(axis=1).min() > 0.8
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces.astype(int)], 1, 0)
        volume = (np.cross(a, b) * c).sum() / 6  # of a closed surface, counterclockwise from outside
        assert volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.05)


def test_vertices_have_the_colors_of_the_field(meshes: list[Mesh]) -> None:
    for mesh, center in zip(meshes, ball_center(TIMES).numpy(), strict=True):
        above = mesh.vertices[:, 2] - center[2]
        np.testing.assert_allclose(mesh.colors[above > 0.05], [[1, 0, 0]] * (above > 0.05).sum(), atol=0.01)
        np.testing.assert_allclose(mesh.colors[above < -0.05], [[0, 0, 1]] * (above < -0.05).sum(), atol=0.01)


def test_smoothing_blurs_space_and_not_time() -> None:
    values = np.zeros((3, 21, 21, 21), dtype=np.float32)
    values[1, 10, 10, 10] = 1
    found = smooth(DensityGrid(values, np.zeros(3), 0.1), 0.15).values
    assert found[1].sum() == pytest.approx(1, abs=1e-3) and not found[[0, 2]].any()
    offsets = (np.arange(21) - 10) * 0.1
    assert (found[1].sum(axis=(1, 2)) * offsets**2).sum() == pytest.approx(0.15**2, rel=0.02)


def test_the_level_by_rule_gives_the_renderers_silhouettes(scene: Scene, grid: DensityGrid) -> None:
    level = choose_iso_level(scene, TIMES, grid)
    meshes = extract_meshes(scene, TIMES, grid, level)
    c2w = orbit(torch.arange(0, 360, 45))
    for mesh, time in zip(meshes, TIMES, strict=True):
        _, alpha = render_views(scene, c2w, FOVY_DEG, time.expand(8), 64)
        scores = [iou(silhouette(mesh, c, 64), a[0].numpy() > 0.5) for c, a in zip(c2w, alpha, strict=True)]
        assert np.mean(scores) > 0.93


def test_best_threshold_separates_what_can_be_separated() -> None:
    values, truth = torch.tensor([0.0, 5.0, 3.0, 9.0, 4.0]), torch.tensor([False, True, False, True, False])
    assert best_threshold(values, truth) == 4.5
    with pytest.raises(UserError, match="iso_level="):
        best_threshold(values, torch.zeros(5, dtype=torch.bool))


def test_largest_along_rays_finds_a_point_of_the_grid() -> None:
    values = torch.zeros(5, 6, 7)
    values[1, 4, 2] = 3.0
    grid = DensityGrid(values[None].numpy(), np.array([-0.2, 0.1, 0.0], dtype=np.float32), 0.1)
    point = torch.tensor([-0.1, 0.5, 0.2])
    directions = torch.nn.functional.normalize(torch.tensor([[0.3, -1.0, 0.2], [0.0, 0.0, 1.0]]), dim=1)
    found = largest_along_rays(values, grid, point - 0.9 * directions, directions)
    assert (found > 2.5).all()
    assert (
        float(largest_along_rays(values, grid, point - 0.9 * directions, -directions).max()) == 0
    )  # behind the camera


def test_a_part_that_comes_loose_stays_and_a_speck_goes() -> None:
    values = np.zeros((3, 12, 12, 12), dtype=np.float32)
    values[:, 1:6, 1:6, 1:6] = 1
    values[:2, 6, 3, 3] = 1
    values[2, 7:9, 3, 3] = 1  # touches nothing in its own frame, nor in its place the frame before
    values[1:, 8, 3, 3] = 1
    values[1, 7, 3, 3] = 1
    values[:, 10, 10, 10] = 1
    kept = remove_floaters(values, 0.5, 0.1)
    assert kept[2, 7:9, 3, 3].all() and kept[0].sum() == 126
    assert not kept[:, 10, 10, 10].any()
    assert remove_floaters(values, 0.5, 0.0)[:, 10, 10, 10].all()


def test_a_level_without_a_surface_is_named(scene: Scene, grid: DensityGrid) -> None:
    with pytest.raises(UserError, match="iso_level=81 leaves no surface at time 0.000.*lower iso_level="):
        extract_meshes(scene, TIMES, grid, 81.0)


def test_an_empty_scene_is_named() -> None:
    scene = ball_scene(TIMES)
    scene.occupancy.occupied.zero_()
    with pytest.raises(UserError, match="no occupied cell"):
        sample_density(scene, TIMES, 16)
