"""One motion module: fresh it does nothing; it mixes frames, never pixels or views."""

import pytest
import torch
from torch import Tensor, nn

from fourdiffusion.diffusion.motion import MotionModule, MotionModules, frame_positions

CHANNELS, FRAMES, VIEWS, SIDE = 32, 5, 3, 4


@pytest.fixture(scope="module")
def module() -> MotionModule:
    torch.manual_seed(0)
    module = MotionModule(CHANNELS, num_heads=2, max_frames=8, norm_groups=8).eval().requires_grad_(False)
    nn.init.normal_(module.proj_out.weight, std=0.3)  # as after training
    nn.init.normal_(module.proj_out.bias, std=0.3)
    return module


def images(frames: int = FRAMES, views: int = VIEWS, batch: int = 2, side: int = SIDE) -> Tensor:
    """[B, F, V, C, h, w]."""
    generator = torch.Generator().manual_seed(frames * 100 + views)
    return torch.randn(batch, frames, views, CHANNELS, side, side, generator=generator)


def run(module: MotionModule, x: Tensor) -> Tensor:
    return module(x.flatten(0, 2), *x.shape[1:3]).view_as(x)


def test_fresh_module_is_the_identity() -> None:
    x = images()
    assert torch.equal(run(MotionModule(CHANNELS, 2, 8, 8), x), x)


@pytest.mark.parametrize("axis, name", [(0, "clips"), (2, "views"), (4, "rows"), (5, "columns")])
def test_order_of_anything_but_frames_does_not_matter(module: MotionModule, axis: int, name: str) -> None:
    x = images()
    order = torch.arange(x.shape[axis]).roll(1)
    expected = run(module, x).index_select(axis, order)
    torch.testing.assert_close(run(module, x.index_select(axis, order)), expected, atol=1e-5, rtol=1e-5)


def test_order_of_frames_matters(module: MotionModule) -> None:
    x = images()
    assert (run(module, x.flip(1)) - run(module, x).flip(1)).abs().max() > 0.01


@pytest.mark.parametrize("axis", [0, 2])
def test_clips_and_views_never_meet(module: MotionModule, axis: int) -> None:
    x = images()
    changed = x.clone()
    changed.select(axis, 1).add_(torch.randn_like(x.select(axis, 1)))
    before, after = run(module, x), run(module, changed)
    others = [i for i in range(x.shape[axis]) if i != 1]
    for i in others:
        torch.testing.assert_close(after.select(axis, i), before.select(axis, i), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(after.select(axis, 1), before.select(axis, 1))


def test_pixels_never_meet(module: MotionModule) -> None:
    """Two pixels of one frame change places: GroupNorm sees the same image statistics, so no other pixel may notice."""
    x = images()
    changed = x.clone()
    changed[:, 2, :, :, 0, 0], changed[:, 2, :, :, 1, 3] = x[:, 2, :, :, 1, 3], x[:, 2, :, :, 0, 0]
    difference = (run(module, changed) - run(module, x)).abs().amax(dim=(0, 2, 3))  # [F, h, w]
    touched = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    touched[0, 0] = touched[1, 3] = True
    assert difference[:, ~touched].max() < 1e-5
    assert difference[:, touched].min() > 1e-3  # in every frame: what happens in one is seen in all


@pytest.mark.parametrize("frames, views, side", [(1, 1, 2), (2, 1, 3), (8, 5, 2), (3, 7, 4)])
def test_any_number_of_frames_and_views(module: MotionModule, frames: int, views: int, side: int) -> None:
    x = images(frames, views, 1, side)
    together = run(module, x)
    assert bool(together.isfinite().all())
    for v in range(views):
        torch.testing.assert_close(together[:, :, v : v + 1], run(module, x[:, :, v : v + 1]), atol=1e-5, rtol=1e-5)


def test_positions() -> None:
    positions = frame_positions(8, CHANNELS)
    assert positions.shape == (8, CHANNELS) and torch.equal(frame_positions(5, CHANNELS), positions[:5])
    torch.testing.assert_close(positions.square().sum(1), torch.full((8,), CHANNELS / 2))  # sin^2 + cos^2
    assert torch.pdist(positions).min() > 0.5
    assert not [name for name in MotionModules([CHANNELS], 2, 8).state_dict() if "positions" in name]


def test_one_module_a_width() -> None:
    motion = MotionModules([32, 64, 32], num_heads=2, max_frames=4)
    assert [layer.proj_out.out_features for layer in motion.layers] == [32, 64, 32]
    assert motion.config.max_frames == 4


def test_gradients_behind_frozen_layers() -> None:
    """In any memory layout, whether or not the input wants a gradient; torch 2.13 crashes in one of the four cases."""
    torch.manual_seed(0)
    module = MotionModule(CHANNELS, 2, 8, 8)
    nn.init.normal_(module.proj_out.weight, std=0.3)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        for wanted in (False, True):
            x = images().flatten(0, 2).contiguous(memory_format=layout).requires_grad_(wanted)
            module.zero_grad(set_to_none=True)
            module(x, FRAMES, VIEWS).square().sum().backward()
            found.append([parameter.grad for parameter in module.parameters()])
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0], atol=1e-3, rtol=1e-4)


def test_the_defaults_are_the_releases() -> None:
    config = MotionModules([32]).config
    assert (config.num_heads, config.max_frames, config.norm_groups) == (8, 32, 32)
