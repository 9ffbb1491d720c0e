"""Rays of some pixels are those of the whole pictures."""

import pytest
import torch

from fourdiffusion import cameras
from fourdiffusion.scene.rays import random_rays, rays_at

C2W = cameras.orbit(torch.tensor([0.0, 90.0, 200.0]), torch.tensor([0.0, 20.0, -30.0]))
FOVY = torch.tensor([45.0, 30.0, 60.0])
SIZE = 7


def test_equal_the_rays_of_all_pixels() -> None:
    origins, directions = (value.reshape(-1, 3) for value in cameras.rays(C2W, FOVY, SIZE, SIZE))
    index = torch.randperm(len(origins), generator=torch.Generator().manual_seed(0))
    some_origins, some_directions = rays_at(C2W, FOVY, SIZE, index)
    torch.testing.assert_close(some_origins, origins[index])
    torch.testing.assert_close(some_directions, directions[index])


def test_random_rays_cover_frames_views_and_pixels_and_say_which() -> None:
    times = torch.tensor([0.0, 0.3, 1.0])
    drawn = random_rays(C2W, 45.0, times, SIZE, 5000, torch.Generator().manual_seed(1))
    origins, directions, at, index = drawn
    all_origins, all_directions = cameras.rays(C2W, 45.0, SIZE, SIZE)
    all_rays = (value.expand(3, *value.shape).reshape(-1, 3) for value in (all_origins, all_directions))
    for value, whole in zip((origins, directions), all_rays, strict=True):
        torch.testing.assert_close(value, whole[index])
    assert torch.equal(at, times.repeat_interleave(3 * SIZE * SIZE)[index])
    assert len(index.unique()) == 9 * SIZE * SIZE  # 5000 draws of 441: all but surely each
    again = random_rays(C2W, 45.0, times, SIZE, 5000, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_half_of_the_rays_are_drawn_from_the_focus() -> None:
    place = torch.tensor([100])
    generator = torch.Generator().manual_seed(1)
    index = random_rays(C2W, 45.0, torch.tensor([0.0, 1.0]), SIZE, 40, generator, focus=place)[3]
    assert (index[:20] == 100).all() and len(index[20:].unique()) > 15
    index = random_rays(C2W, 45.0, torch.tensor([0.0, 1.0]), SIZE, 40, generator, focus=place[:0])[3]
    assert len(index[:20].unique()) > 15


def test_bad_arguments_are_named() -> None:
    for index in (torch.tensor([-1]), torch.tensor([3 * SIZE * SIZE])):
        with pytest.raises(ValueError, match="pixel_index"):
            rays_at(C2W, 45.0, SIZE, index)
    with pytest.raises(ValueError, match=r"\[4, 4\]"):
        rays_at(C2W[0], 45.0, SIZE, torch.tensor([0]))
    assert len(rays_at(C2W, 45.0, SIZE, torch.zeros(0, dtype=torch.int64))[0]) == 0
