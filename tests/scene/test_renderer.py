"""The renderer on analytic fields."""

import pytest
import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid, finite_difference_normals, render, render_image
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


def test_early_stop_keeps_the_picture() -> None:
    origins, directions, times = view()
    stopping = RendererConfig(num_samples=64, occupancy_resolution=16, early_stop=1e-3)
    occupancy = grid_of()
    whole = render(ball, occupancy, origins, directions, times, WHITE, CONFIG)
    stopped = render(ball, occupancy, origins, directions, times, WHITE, stopping, density=ball_density)
    torch.testing.assert_close(stopped.rgb, whole.rgb, rtol=0, atol=2e-3)
    assert len(stopped.weights) < len(whole.weights)


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
    with pytest.raises(ValueError, match="positive"):
        OccupancyGrid(RendererConfig(num_samples=0))
