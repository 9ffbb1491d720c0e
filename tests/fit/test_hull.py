"""The visual hull of three balls."""

import torch
from small_problem import FRAMES, TIMES, small_config, small_problem
from tiny_model import balls

from fourdiffusion.fit.hull import hull
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.settings import RendererConfig

GRID = 16


def cells() -> torch.Tensor:
    middles = (torch.arange(GRID) + 0.5) * 2 / GRID - 1
    return torch.stack(torch.meshgrid(middles, middles, middles, indexing="ij"), -1)


def test_the_hull_holds_the_object_at_all_times_and_leaves_the_rest() -> None:
    target = small_problem(small_config()).target
    possible = hull(target, GRID, 1.0)
    for centers in balls(0, TIMES):
        for center in centers:
            index = ((center + 1) * GRID / 2).long()
            assert possible[tuple(index)]
    near = cells().norm(dim=-1) < 0.4
    assert not possible[near].all() and possible.float().mean() < 0.9
    # Where every picture shows the cell, at most one silhouette may miss it.
    target.empty[:] = True
    none = hull(target, GRID, 1.0)
    assert none[near].float().mean() < 0.05
    target.empty[1:] = False
    target.rgba = torch.ones_like(target.rgba)
    assert hull(target, GRID, 1.0).all()  # one view is outvoted
    target.empty[2:3] = True
    two = hull(target, GRID, 1.0)
    assert not two.all()


def test_cells_that_are_not_possible_stay_empty_and_the_limit_is_not_saved() -> None:
    occupancy = OccupancyGrid(RendererConfig(occupancy_resolution=4))
    possible = torch.zeros(4, 4, 4, dtype=torch.bool)
    possible[1] = True
    occupancy.limit(possible)
    occupancy.update(lambda x, t: torch.full_like(t, 50.0), torch.linspace(0, 1, FRAMES))
    assert torch.equal(occupancy.occupied, possible)
    assert set(occupancy.state_dict()) == {"density", "occupied"}
