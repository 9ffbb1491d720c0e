"""The renderer on analytic fields."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.ops.volume_rendering import march
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import (
    OccupancyGrid,
    analytic_normals,
    due_times,
    finite_difference_normals,
    render,
    render_image,
)
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

CONFIG = RendererConfig(num_samples=64, occupancy_resolution=16)
WHITE = torch.ones(3)
TIMES = torch.tensor([0.0, 0.5, 1.0])


def ball_density(x: Tensor, t: Tensor) -> Tensor:
    """A ball of radius 0.25 that moves from y = -0.1 to y = 0.1."""
    centre = torch.stack([torch.zeros_like(t), 0.2 * t - 0.1, torch.zeros_like(t)], dim=-1)
    return 60 * torch.sigmoid((0.25 - (x - centre).norm(dim=-1)) * 60)


def ball(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return ball_density(x, t), 0.5 + 0.5 * torch.sin(4 * x)


def view(size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Rays of one picture at each of the three times: [3 * size * size, ...]."""
    origins, directions = cameras.rays(cameras.orbit(torch.tensor([0.0, 90.0, 30.0])), 45.0, size, size)
    return origins.reshape(-1, 3), directions.reshape(-1, 3), TIMES.repeat_interleave(size * size)


def grid_of(config: RendererConfig = CONFIG) -> OccupancyGrid:
    """As after a while of training: many random looks, so that cells which the ball only touches count too."""
    occupancy, generator = OccupancyGrid(config), torch.Generator().manual_seed(0)
    for _ in range(20):
        occupancy.update(ball_density, TIMES, generator)
    return occupancy


def lumpy_field() -> DynamicField:
    """Some solid matter in the middle, thinning out, with color."""
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    scene = DynamicField(
        FieldConfig(space=grid, spacetime=grid, hidden_width=8, blob_scale=20.0, blob_std=0.25), seed=2
    )
    for part in (scene.space, scene.spacetime):
        part.params.data *= 1e4
    scene.density_mlp.output.data *= 4
    scene.density_mlp.hidden.data *= 4
    return scene


def jitter(num_rays: int) -> Tensor:
    return torch.rand(num_rays, generator=torch.Generator().manual_seed(0))


def test_constant_density_gives_beer_lambert() -> None:
    origins, directions, times = view(4)
    out = render(lambda x, t: (torch.full_like(t, 0.8), x.abs()), None, origins, directions, times, WHITE, CONFIG)
    middle = (origins * directions).sum(-1)
    chord = 2 * (1 - origins.square().sum(-1) + middle.square()).clamp(min=0).sqrt()
    torch.testing.assert_close(out.opacity, 1 - torch.exp(-0.8 * chord))


def test_a_full_grid_equals_no_grid() -> None:
    origins, directions, times = view(8)
    shift = jitter(len(times))
    without = render(ball, None, origins, directions, times, WHITE, CONFIG, shift)
    full = render(ball, OccupancyGrid(CONFIG), origins, directions, times, WHITE, CONFIG, shift)
    assert torch.equal(without.rgb, full.rgb) and torch.equal(without.weights, full.weights)


def test_skipping_keeps_the_picture_and_drops_most_samples() -> None:
    origins, directions, times = view()
    without = render(ball, None, origins, directions, times, WHITE, CONFIG)
    skipped = render(ball, grid_of(), origins, directions, times, WHITE, CONFIG)
    assert (skipped.rgb - without.rgb).square().mean() < 1e-5  # a dropped cell may hold the threshold's 1 % a step
    assert len(skipped.weights) < 0.3 * len(without.weights)


def test_the_near_hides_the_far_and_the_background_shows_through() -> None:
    """A slab of red before a slab of green before blue: closed forms of each one's share."""

    def slabs(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        near, far = (x[:, 0] - 0.5).abs() < 0.25, (x[:, 0] + 0.5).abs() < 0.25
        return 2.0 * near + 3.0 * far, torch.stack([near, far, torch.zeros_like(near)], dim=-1).float()

    origins, directions = torch.tensor([[1.5, 0.0, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0]])
    blue = torch.tensor([0.0, 0.0, 1.0])
    out = render(slabs, None, origins, directions, torch.zeros(1), blue, CONFIG)
    near, far = math.exp(-2.0 * 0.5), math.exp(-3.0 * 0.5)
    expected = torch.tensor([1 - near, near * (1 - far), near * far])
    torch.testing.assert_close(out.rgb[0], expected, rtol=0, atol=1e-5)
    assert out.opacity[0] == pytest.approx(1 - near * far, abs=1e-5)
    depth = ((1 - near) * 1.0 + near * (1 - far) * 2.0) / (1 - near * far)
    assert out.depth[0] == pytest.approx(depth, abs=0.1)


@pytest.mark.parametrize(
    "settings",
    [{"prune_alpha": 0.05}, {"early_stop": 0.02}, {"prune_weight": 0.01}, {"prune_alpha": 0.02, "early_stop": 0.1}],
    ids=str,
)
def test_pruning_keeps_what_a_loop_over_samples_keeps(settings: dict[str, Any]) -> None:
    origins, directions, times = view(8)
    occupancy = grid_of()
    whole = render(ball, occupancy, origins, directions, times, WHITE, CONFIG)
    pruning = dataclasses.replace(CONFIG, **settings)
    pruned = render(ball, occupancy, origins, directions, times, WHITE, pruning, density=ball_density)
    _, start, end = march(origins, directions, CONFIG.step, 1.0, None, occupancy.occupied)
    sigma = ball_density(whole.positions, times[whole.ray_index]).tolist()
    kept, light, last = [], 1.0, -1
    for n, ray in enumerate(whole.ray_index.tolist()):
        light = light if ray == last else 1.0
        alpha, last = 1 - math.exp(-sigma[n] * float(end[n] - start[n])), ray
        if alpha >= pruning.prune_alpha and light >= pruning.early_stop and alpha * light >= pruning.prune_weight:
            kept.append(n)
        light *= 1 - alpha
    assert 0 < len(kept) < 0.75 * len(whole.weights)
    assert torch.equal(pruned.ray_index, whole.ray_index[kept])
    assert torch.equal(pruned.distances, whole.distances[kept])
    mse = (pruned.rgb - whole.rgb).square().mean()
    assert mse < 10**-3.0 and pruned.opacity.max() > 0.9


def test_pruning_keeps_the_picture_and_its_gradient() -> None:
    """A field of soft matter: the gradient to 1e-3 where little is dropped, the picture to 45 dB where half is."""
    scene = lumpy_field()
    origins, directions, times = view(24)
    occupancy = OccupancyGrid(CONFIG)
    for _ in range(3):
        occupancy.update(scene.density, TIMES, torch.Generator().manual_seed(0))
    target = torch.rand(len(times), 3, generator=torch.Generator().manual_seed(1))
    results = []
    for weight in (0.0, 5e-5, 0.01):
        scene.zero_grad()
        config = dataclasses.replace(CONFIG, prune_weight=weight)
        out = render(scene, occupancy, origins, directions, times, WHITE, config, density=scene.density)
        (out.rgb - target).square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in scene.parameters() if p.grad is not None])
        results.append((out.rgb.detach(), gradient, len(out.weights)))
    (whole, gradient, count), (near, near_gradient, near_count), (pruned, _, pruned_count) = results
    assert near_count < 0.9 * count and pruned_count < 0.5 * count
    assert (near_gradient - gradient).norm() < 1e-3 * gradient.norm()
    assert -10 * (pruned - whole).square().mean().log10() > 45


def test_pruning_leaves_a_thin_scene_alone() -> None:
    """Before the first look at it nothing may be dropped; then only what is ten times thinner than the densest cell."""
    origins, directions, times = view(8)

    def fog(x: Tensor, t: Tensor) -> Tensor:
        return 0.05 * (1 + (x[:, 0] > 0))

    occupancy = OccupancyGrid(CONFIG)
    strict = dataclasses.replace(CONFIG, prune_alpha=0.5, prune_weight=0.5)
    for _ in range(2):
        out, whole = (
            render(lambda x, t: (fog(x, t), x.abs()), occupancy, origins, directions, times, WHITE, config, None, fog)
            for config in (strict, CONFIG)
        )
        assert torch.equal(out.weights, whole.weights) and len(out.weights) > 1000
        occupancy.update(fog, TIMES)


def test_a_cube_reaches_beyond_the_ball() -> None:
    origins, directions, times = view(8)
    cube = dataclasses.replace(CONFIG, bounds="cube", step_scale=3**0.5)
    assert cube.step == pytest.approx(3**0.5 * 2 / 64)
    out = render(lambda x, t: (torch.full_like(t, 0.8), x.abs()), None, origins, directions, times, WHITE, cube)
    # The chord by many points: how much of the ray ahead lies inside.
    ahead = torch.linspace(0, 4, 8001)
    inside = ((origins[:, None] + ahead[:, None] * directions[:, None]).abs() <= 1).all(-1).float().mean(1) * 4
    torch.testing.assert_close(out.opacity, 1 - torch.exp(-0.8 * inside), rtol=0, atol=1e-3)
    assert (out.positions.norm(dim=-1) > 1.1).any() and out.positions.abs().max() <= 1
    full = render(
        lambda x, t: (torch.full_like(t, 0.8), x.abs()), OccupancyGrid(cube), origins, directions, times, WHITE, cube
    )
    assert torch.equal(full.rgb, out.rgb)


def test_chunks_do_not_show_in_picture_or_gradient() -> None:
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    scene = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8))
    origins, directions, times = view(6)
    shift, background = jitter(len(times)), torch.rand(len(times), 3, generator=torch.Generator().manual_seed(1))
    gradients = []
    for chunk in (len(times), 17):
        scene.zero_grad()
        rows = []
        for part in torch.arange(len(times)).split(chunk):
            out = render(
                scene, None, origins[part], directions[part], times[part], background[part], CONFIG, shift[part]
            )
            (out.rgb.square().sum() + out.opacity.sum()).backward()
            rows.append(out.rgb.detach())
        gradients.append([torch.cat(rows), *(p.grad.clone() for p in scene.parameters() if p.grad is not None)])
    assert len(gradients[0]) == 7
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)


def test_depth_and_background() -> None:
    origins, directions = cameras.rays(cameras.orbit(0.0), 45.0, 15, 15)
    background = torch.tensor([0.1, 0.2, 0.3])
    out = render(
        ball, None, origins[[7, 0], [7, 0]], directions[[7, 0], [7, 0]], torch.full((2,), 0.5), background,
        RendererConfig(num_samples=256),
    )  # fmt: skip
    assert out.depth[0] == pytest.approx(1.1 - 0.25, abs=0.03) and out.opacity[0] > 0.99
    assert out.opacity[1] < 1e-3
    torch.testing.assert_close(out.rgb[1], background, rtol=0, atol=1e-3)


def test_normals_of_a_sphere_point_outwards() -> None:
    generator = torch.Generator().manual_seed(0)
    outwards = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=-1)
    normals = finite_difference_normals(ball_density, 0.25 * outwards, torch.full((50,), 0.5), 0.005)
    assert (normals * outwards).sum(-1).min() > 0.99
    origins, directions, times = view(8)
    out = render(ball, grid_of(), origins, directions, times, WHITE, CONFIG, density=ball_density, with_normals=True)
    assert out.normals is not None and out.normals.shape == out.positions.shape
    facing = (out.normals * directions[out.ray_index]).sum(-1)[out.weights > 0.2]
    assert len(facing) and facing.max() < 0.3


def test_analytic_normals_are_those_of_the_differences_and_teach_the_field() -> None:
    generator = torch.Generator().manual_seed(0)
    outwards = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=-1)
    normals = analytic_normals(ball_density, 0.25 * outwards, torch.full((50,), 0.5))
    assert (normals * outwards).sum(-1).min() > 0.999
    scene, (origins, directions, times) = lumpy_field(), view(6)
    config = dataclasses.replace(CONFIG, normals="analytic")
    out = render(scene, None, origins, directions, times, WHITE, config, density=scene.density, with_normals=True)
    assert out.normals is not None
    out.normals[:, 0].sum().backward()
    assert scene.space.params.grad is not None and scene.space.params.grad.isfinite().all()
    assert scene.space.params.grad.any()
    with torch.no_grad():
        again = render(scene, None, origins, directions, times, WHITE, config, density=scene.density, with_normals=True)
    assert again.normals is not None and not again.normals.requires_grad
    torch.testing.assert_close(again.normals, out.normals.detach())


def test_occupancy_forgets_as_much_in_parts_of_a_round_as_in_one() -> None:
    generator = torch.Generator().manual_seed(0)
    whole, parts = OccupancyGrid(CONFIG), OccupancyGrid(CONFIG)
    for occupancy in (whole, parts):
        occupancy.update(ball_density, TIMES)
    before = whole.density.clone()
    assert before.max() > 50
    whole.update(lambda x, t: torch.zeros_like(t), TIMES, generator)
    torch.testing.assert_close(whole.density, CONFIG.occupancy_decay * before)
    for step in range(1, 7):
        times, share = due_times(TIMES, step, 6)
        parts.update(lambda x, t: torch.zeros_like(t), times, generator, share)
    torch.testing.assert_close(parts.density, whole.density)
    parts.update(lambda x, t: torch.full_like(t, 1e3), TIMES[:1], generator, 1 / 3)
    assert (parts.density == 1e3).all()  # what is seen now counts in full


@pytest.mark.parametrize(("frames", "every"), [(8, 16), (8, 3), (1, 5), (5, 5), (24, 1)])
def test_each_time_is_due_once_in_a_round(frames: int, every: int) -> None:
    times = torch.linspace(0, 1, frames)
    assert torch.equal(due_times(times, 0, every)[0], times) and due_times(times, 0, every)[1] == 1
    for first in (every, 4 * every):
        rounds = [due_times(times, step, every) for step in range(first, first + every)]
        assert torch.equal(torch.cat([due for due, _ in rounds]).sort().values, times)
        assert sum(share for _, share in rounds) == pytest.approx(1)
        assert max(len(due) for due, _ in rounds) == -(-frames // every)


def test_occupancy_holds_all_times_and_forgets_slowly() -> None:
    occupancy = OccupancyGrid(CONFIG)
    assert occupancy.occupied.all()
    generator = torch.Generator().manual_seed(0)
    occupancy.update(ball_density, TIMES, generator)
    centre = ((torch.arange(16) + 0.5) / 8 - 1).abs()
    at = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), torch.arange(16), indexing="ij"), -1)
    centres = (at + 0.5) / 8 - 1
    for time in TIMES:
        inside = ball_density(centres.view(-1, 3), time.expand(16**3)).view(16, 16, 16) > 50
        assert inside.any() and occupancy.occupied[inside].all()
    assert not occupancy.occupied[centre > 0.6].any()
    occupancy.update(lambda x, t: torch.zeros_like(t), TIMES, generator)
    assert occupancy.occupied.any()
    for _ in range(300):
        occupancy.density *= CONFIG.occupancy_decay
    occupancy.update(lambda x, t: torch.zeros_like(t), TIMES, generator)
    again = OccupancyGrid(CONFIG)
    again.load_state_dict(occupancy.state_dict())
    assert torch.equal(again.occupied, occupancy.occupied)


def test_cells_outside_are_empty_and_not_sampled() -> None:
    within = torch.zeros(16, 16, 16, dtype=torch.bool)
    within[4:9, 6:, 2:12] = True
    whole, part = OccupancyGrid(CONFIG), OccupancyGrid(CONFIG)
    part.density.fill_(7.0)
    sampled = []

    def density(x: Tensor, t: Tensor) -> Tensor:
        sampled.append(len(x))
        return ball_density(x, t)

    whole.update(ball_density, TIMES)
    part.update(density, TIMES, within=within)
    assert sampled == [int(within.sum())] * len(TIMES)
    decayed = torch.full_like(whole.density, 7.0 * CONFIG.occupancy_decay)
    torch.testing.assert_close(part.density[within], torch.maximum(whole.density, decayed)[within])
    assert not part.density[~within].any() and not part.occupied[~within].any() and part.occupied.any()


def test_occupancy_is_a_function_of_the_generators_seed() -> None:
    grids = []
    for _ in range(2):
        occupancy = OccupancyGrid(CONFIG)
        occupancy.update(ball_density, TIMES, torch.Generator().manual_seed(7))
        grids.append(occupancy.density)
    assert torch.equal(*grids)


def test_an_empty_scene_shows_the_background_and_can_be_differentiated() -> None:
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    scene = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8))
    occupancy = OccupancyGrid(CONFIG)
    occupancy.occupied[:] = False
    out = render(scene, occupancy, *view(4), WHITE, CONFIG)
    assert torch.equal(out.rgb, torch.ones_like(out.rgb)) and not out.opacity.any() and not out.depth.any()
    out.rgb.sum().backward()
    assert scene.space.params.grad is not None and not scene.space.params.grad.any()


def test_render_image_is_the_picture_of_its_rays() -> None:
    origins, directions = cameras.rays(cameras.orbit(torch.tensor([0.0, 90.0])), 45.0, 6, 5)
    rgb, opacity, depth = render_image(ball, grid_of(), origins, directions, TIMES[:2], WHITE, CONFIG, chunk=7)
    assert rgb.shape == (2, 3, 6, 5) and opacity.shape == depth.shape == (2, 1, 6, 5)
    flat = render(
        ball, grid_of(), origins[1].reshape(-1, 3), directions[1].reshape(-1, 3), TIMES[1].expand(30), WHITE, CONFIG
    )
    torch.testing.assert_close(rgb[1], flat.rgb.view(6, 5, 3).movedim(-1, 0))


def test_bad_arguments_are_named() -> None:
    origins, directions, times = view(4)
    with pytest.raises(ValueError, match="do not fit"):
        render(ball, None, origins, directions, times[:3], WHITE, CONFIG)
    with pytest.raises(ValueError, match="background"):
        render(ball, None, origins, directions, times, torch.ones(1), CONFIG)
    with pytest.raises(ValueError, match="density="):
        render(ball, None, origins, directions, times, WHITE, CONFIG, with_normals=True)
    for settings, message in (
        ({"prune_alpha": 0.01}, "density="),
        ({"prune_weight": 0.01}, "density="),
        ({"early_stop": 0.01}, "density="),
        ({"bounds": "pyramid"}, "bounds='pyramid'"),
        ({"normals": "guessed"}, "normals='guessed'"),
    ):
        with pytest.raises(ValueError, match=message):
            render(ball, None, origins, directions, times, WHITE, dataclasses.replace(CONFIG, **settings))
    with pytest.raises(ValueError, match="positive"):
        OccupancyGrid(RendererConfig(num_samples=0))
