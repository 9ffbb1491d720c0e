"""Thresholds of samples and cells at their exact values, and inconsistent shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fourdiffusion.scene.renderer import OccupancyGrid, due_times, render, visible_samples
from fourdiffusion.scene.settings import RendererConfig


def test_a_sample_at_the_threshold_is_kept() -> None:
    transmittance = torch.tensor([1.0, 1.0, 0.5, 0.25, 0.125])
    alpha = torch.tensor([0.0625, 0.03125, 0.0625, 0.0625, 0.5])
    config = RendererConfig(prune_alpha=0.0625)
    kept = visible_samples(alpha * transmittance, transmittance, config, 1.0)
    assert kept.tolist() == [True, False, True, True, True]
    kept = visible_samples(alpha * transmittance, transmittance, RendererConfig(early_stop=0.25), 1.0)
    assert kept.tolist() == [True, True, True, True, False]
    kept = visible_samples(alpha * transmittance, transmittance, RendererConfig(prune_weight=0.03125), 1.0)
    assert kept.tolist() == [True, True, True, False, True]


def test_thresholds_are_a_tenth_of_the_peak_at_most() -> None:
    transmittance, weights = torch.ones(3), torch.tensor([0.011, 0.009, 0.2])
    for config in (RendererConfig(prune_alpha=0.5), RendererConfig(prune_weight=0.5)):
        assert visible_samples(weights, transmittance, config, 0.1).tolist() == [True, False, True]
        assert visible_samples(weights, transmittance, config, 10.0).tolist() == [False, False, False]


def test_a_cell_is_remembered_by_its_largest_density_and_fades() -> None:
    """At centers of a 2^3 grid on [-1, 1]^3, densities by hand."""
    config = RendererConfig(num_samples=10, occupancy_resolution=2, occupancy_decay=0.5, radius=2.0)
    occupancy = OccupancyGrid(config)
    assert occupancy.occupied.all() and occupancy.peak_opacity() == 0

    def density(x: Tensor, t: Tensor) -> Tensor:
        assert x.abs().eq(1.0).all()  # the centers
        return torch.where((x > 0).all(-1), 4 * t, torch.zeros(()))

    occupancy.update(density, torch.tensor([1.0, 0.5]))
    assert float(occupancy.density[1, 1, 1]) == 4 and float(occupancy.density.sum()) == 4
    assert occupancy.occupied.sum() == 1 and occupancy.occupied[1, 1, 1]
    step = 2 * 2.0 / 10
    assert occupancy.peak_opacity() == pytest.approx(1 - 2.718281828 ** (-4 * step), rel=1e-5)
    occupancy.update(density, torch.tensor([0.1]))
    assert float(occupancy.density[1, 1, 1]) == 2
    occupancy.update(density, torch.tensor([0.1]), share=0.5)
    assert float(occupancy.density[1, 1, 1]) == pytest.approx(2 * 0.5**0.5)
    occupancy.update(density, torch.tensor([0.9]))
    assert float(occupancy.density[1, 1, 1]) == pytest.approx(3.6)


def test_random_points_lie_inside_their_cells() -> None:
    occupancy = OccupancyGrid(RendererConfig(occupancy_resolution=4))
    seen = []

    def density(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros(len(x))

    occupancy.update(density, torch.tensor([0.0, 1.0]), torch.Generator().manual_seed(0))
    cells = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), -1).flatten(0, 2)
    for x in seen:
        assert torch.equal(((x + 1) * 2).floor().long(), cells)
    assert not torch.equal(*seen)


@pytest.mark.parametrize("name", ["occupancy_resolution", "num_samples", "radius", "step_scale"])
def test_sizes_are_positive(name: str) -> None:
    kind = int if name in ("occupancy_resolution", "num_samples") else float
    with pytest.raises(ValueError, match="must be positive"):
        OccupancyGrid(RendererConfig(**{name: kind(0)}))  # type: ignore[arg-type]
    OccupancyGrid(RendererConfig(**{name: kind(1)}))  # type: ignore[arg-type]


def test_due_times_by_hand() -> None:
    times = torch.arange(4.0)
    assert due_times(times, 0, 3)[1] == 1.0 and torch.equal(due_times(times, 0, 3)[0], times)
    found = [(due_times(times, step, 3)[0].tolist(), due_times(times, step, 3)[1]) for step in (1, 2, 3, 4)]
    assert found == [([1.0], 0.25), ([2.0, 3.0], 0.5), ([0.0], 0.25), ([1.0], 0.25)]


def empty(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(x)), torch.zeros(len(x), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"origins": torch.zeros(2, 2)}, "do not fit together"),
        ({"directions": torch.zeros(3, 3)}, "do not fit together"),
        ({"times": torch.zeros(3)}, "do not fit together"),
        ({"background": torch.ones(4)}, "background must be"),
        ({"background": torch.ones(3, 3)}, "background must be"),
        ({"jitter": torch.zeros(3)}, "jitter must be"),
        ({"with_normals": True}, "need the density alone"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict, message: str) -> None:
    directions = torch.tensor([[0.0, 0.0, -1.0]]).expand(2, 3)
    values: dict[str, Any] = {
        "origins": torch.tensor([[0.0, 0.0, 2.0]]).expand(2, 3), "directions": directions, "times": torch.zeros(2),
        "background": torch.ones(3),
    }  # fmt: skip
    config = RendererConfig(num_samples=4)
    assert render(empty, None, **values, config=config).rgb.tolist() == [[1.0] * 3] * 2
    with pytest.raises(ValueError, match=message):
        render(empty, None, **values | changes, config=config)
