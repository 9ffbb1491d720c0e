"""Render passes: the gradient in chunks is the whole one, in memory that does not grow with the rays."""

import pytest
import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene import losses
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.render_pass import BACKGROUND, RenderPass, random_pixel_rays, view_rays
from fourdiffusion.scene.renderer import OccupancyGrid, render
from fourdiffusion.scene.scene import Scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

GRID = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
RENDERER = RendererConfig(num_samples=24, occupancy_resolution=8)
CAMERAS = cameras.orbit(torch.tensor([10.0, 130.0]))
TIMES = torch.tensor([0.0, 0.4, 1.0])
SIDE = 6


@pytest.fixture
def scene() -> Scene:
    field = DynamicField(FieldConfig(space=GRID, spacetime=GRID, hidden_width=8))
    return Scene(field, OccupancyGrid(RENDERER), RENDERER)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def loss_of(rgb: Tensor, opacity: Tensor, facing_away: Tensor) -> Tensor:
    return (rgb**3).sum() + losses.opacity_entropy(opacity) + 5 * losses.orientation(facing_away, opacity)


def gradient(scene: Scene) -> Tensor:
    parts = [value.grad.flatten() for value in scene.field.parameters() if value.grad is not None]
    scene.field.zero_grad(set_to_none=True)
    return torch.cat(parts)


def through_pass(scene: Scene, chunk: int) -> tuple[Tensor, Tensor]:
    p = RenderPass(scene, view_rays(CAMERAS, TIMES, SIDE, generator()), chunk, with_normals=True)
    assert p.facing_away is not None
    loss = loss_of(p.rgb, p.opacity, p.facing_away)
    loss.backward()
    assert all(value.grad is None for value in scene.field.parameters())  # it stops at the pass
    p.backward()
    return loss.detach(), gradient(scene)


def test_the_gradient_is_that_of_the_renderer_whole_and_in_chunks(scene: Scene) -> None:
    rays = view_rays(CAMERAS, TIMES, SIDE, generator())
    out = render(
        scene.field, scene.occupancy, rays.origins, rays.directions, rays.times, BACKGROUND, RENDERER, rays.jitter,
        scene.field.density, with_normals=True,
    )  # fmt: skip
    assert out.normals is not None
    away = losses.facing_away(out.weights, out.normals, rays.directions, out.ray_index, len(rays))
    loss = loss_of(out.rgb, out.opacity, away)
    loss.backward()
    expected = gradient(scene)
    assert away.sum() > 0 and expected.norm() > 0
    for chunk in (0, 50, len(rays)):
        found = through_pass(scene, chunk)
        torch.testing.assert_close(found[0], loss.detach())
        assert (found[1] - expected).norm() < 1e-5 * expected.norm()


def test_a_pass_has_the_background_and_the_distortion_that_are_asked_for(scene: Scene) -> None:
    rays = view_rays(CAMERAS, TIMES, SIDE, generator())
    white = RenderPass(scene, rays)
    assert white.distortion is None
    colors = torch.rand(len(rays), 3, generator=generator())
    gradients = []
    for chunk in (0, 50):
        other = RenderPass(scene, rays, chunk, with_distortion=True, background=colors)
        expected = white.rgb + (1 - white.opacity[:, None]) * (colors - 1)
        torch.testing.assert_close(other.rgb.detach(), expected.detach())
        assert other.distortion is not None and (other.distortion >= 0).all() and other.distortion.sum() > 0
        other.distortion.sum().backward()
        other.backward()
        gradients.append(gradient(scene))
    assert 0 < gradients[0].norm() and (gradients[1] - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_random_rays_are_those_of_their_pixels() -> None:
    rays, frame, view, row, column = random_pixel_rays(CAMERAS, TIMES, SIDE, 200, generator())
    whole = view_rays(CAMERAS, TIMES, SIDE, generator())
    index = ((frame * len(CAMERAS) + view) * SIDE + row) * SIDE + column
    for name in ("origins", "directions", "times"):
        torch.testing.assert_close(getattr(rays, name), getattr(whole, name)[index])
    assert len(rays.jitter.unique()) > 190 and rays.jitter.min() >= 0 and rays.jitter.max() < 1


class Held:
    """A tensor that autograd keeps for the backward pass."""

    live = peak = 0

    def __init__(self, tensor: Tensor):
        self.tensor, self.size = tensor, tensor.numel()
        Held.live += self.size
        Held.peak = max(Held.peak, Held.live)

    def __del__(self) -> None:
        Held.live -= self.size


def peak(scene: Scene, side: int, chunk: int) -> int:
    """Return the most numbers that autograd kept at a time."""
    Held.live = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        p = RenderPass(scene, view_rays(CAMERAS, TIMES, side, generator()), chunk)
        (p.rgb**2).sum().backward()
        p.backward()
    gradient(scene)
    return Held.peak


def test_memory_in_chunks_does_not_grow_with_the_rays(scene: Scene) -> None:
    chunk = 2 * 3 * SIDE**2
    assert peak(scene, 2 * SIDE, 0) > 3 * peak(scene, SIDE, 0)
    assert peak(scene, 2 * SIDE, chunk) < 1.5 * peak(scene, SIDE, chunk)


def test_rays_run_over_frames_views_rows_and_columns() -> None:
    rays = view_rays(CAMERAS, TIMES, SIDE, generator())
    origins, directions = cameras.rays(CAMERAS, cameras.FOVY_DEG, SIDE, SIDE)
    index = ((2 * len(CAMERAS) + 1) * SIDE + 4) * SIDE + 5  # frame 2, view 1, row 4, column 5
    assert rays.times[index] == TIMES[2]
    assert torch.equal(rays.origins[index], origins[1, 4, 5])
    assert torch.equal(rays.directions[index], directions[1, 4, 5])
    part = rays[torch.tensor([index])]
    assert torch.equal(part.jitter, rays.jitter[index : index + 1]) and len(part) == 1


def test_without_a_gradient_nothing_happens_and_bad_arguments_are_named(scene: Scene) -> None:
    rays = view_rays(CAMERAS, TIMES, 2, generator())
    p = RenderPass(scene, rays)
    assert p.facing_away is None and len(p.rgb) == len(rays)
    p.backward()
    assert all(value.grad is None for value in scene.field.parameters())
    with pytest.raises(ValueError, match="chunk=-1"):
        RenderPass(scene, rays, -1)
    with pytest.raises(ValueError, match="got 0 rays"):
        RenderPass(scene, rays[:0])
