"""The synthetic world: exact geometry, determinism, and the promises that training relies on."""

import math

import pytest
import torch

from fourdiffusion.cameras import FOVY_DEG, orbit, rays
from fourdiffusion.datasets.synthetic import TEST_SEED_START, make_creature, pose, render
from fourdiffusion.datasets.synthetic.body_plans import PLANS

SEEDS = range(12)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def look(
    seed: int, azimuths: list[float], times: list[float], size: int = 32, supersample: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    c2w = orbit(torch.tensor(azimuths))
    return render(make_creature(seed), c2w, FOVY_DEG, torch.tensor(times), size, size, supersample)


def test_same_seed_same_pixels_other_seed_other_creature() -> None:
    first, _ = look(3, [0.0, 90.0], [0.0, 0.7])
    make_creature(4)
    torch.manual_seed(1)
    again, _ = look(3, [0.0, 90.0], [0.0, 0.7])
    other, _ = look(4, [0.0, 90.0], [0.0, 0.7])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_image_does_not_depend_on_its_batch() -> None:
    azimuths, times = [0.0, 40.0, 200.0], [0.0, 0.3, 1.0]
    rgba, depth = look(5, azimuths, times)
    for k in range(3):
        alone, alone_depth = look(5, [azimuths[k]], [times[k]])
        torch.testing.assert_close(alone[0], rgba[k], atol=1e-6, rtol=0)
        torch.testing.assert_close(alone_depth[0], depth[k], atol=1e-6, rtol=0)


def test_alpha_and_depth_agree_and_ranges_hold() -> None:
    rgba, depth = look(6, [0.0, 120.0], [0.1, 0.9])
    assert rgba.shape == (2, 4, 32, 32) and depth.shape == (2, 32, 32) and rgba.dtype == torch.float32
    assert torch.equal(rgba[:, 3] > 0, depth.isfinite())
    assert float(rgba.min()) >= 0 and float(rgba.max()) <= 1
    seen = rgba[:, 3] > 0
    partly = seen & (rgba[:, 3] < 1)
    assert bool(partly.any())  # antialiased
    assert float(rgba[:, :3].amax(dim=1)[partly].min()) > 0.02  # straight alpha: edges are not darkened
    assert float(rgba[:, :3].amax(dim=1)[~seen].max()) == 0
    near, far = depth[seen].min(), depth[seen].max()
    assert 0.7 <= float(near) and float(far) <= 1.5


@pytest.mark.parametrize("seed", [0, 1, 2, 8, 13])
def test_hit_points_lie_on_the_surface_and_the_misses_miss(seed: int) -> None:
    """Rays of cameras.py against the implicit ellipsoids, without any of the renderer's screen-space mathematics."""
    creature, time, size = make_creature(seed), 0.37, 48
    c2w = orbit(torch.tensor([33.0]), 10.0)
    _, depth = render(creature, c2w, FOVY_DEG, torch.tensor([time]), size, size, supersample=1)
    origin, direction = (a[0].double().reshape(-1, 3) for a in rays(c2w, FOVY_DEG, size, size))
    centre, rotation = (a[0] for a in pose(creature, torch.tensor([time])))
    radii = creature.part_radii * creature.scale
    local_o = torch.einsum("pji,npj->npi", rotation, origin[:, None] - centre) / radii  # [n, P, 3]
    local_d = torch.einsum("pji,nj->npi", rotation, direction) / radii
    a, b, c = (local_d**2).sum(-1), (local_o * local_d).sum(-1), (local_o**2).sum(-1) - 1
    root = b * b - a * c
    exact = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, torch.inf).amin(dim=-1).view(size, size)
    clear = (root / (b * b)).abs().amin(dim=-1).view(size, size) > 1e-5  # not a grazing ray
    assert torch.equal(depth[0].isfinite()[clear], exact.isfinite()[clear])
    both = depth[0].isfinite() & exact.isfinite()
    assert int(both.sum()) > 50
    off = (depth[0].double() - exact)[both].abs()
    assert float(off.quantile(0.99)) < 1e-4 and float(off.max()) < 5e-3


def test_a_point_seen_by_two_cameras_has_one_colour() -> None:
    """Lighting and texture belong to the object: a point keeps its colour from another view and zoom."""
    creature, time = make_creature(9), torch.tensor([0.5])
    size = 96
    near, far = orbit(torch.tensor([20.0])), orbit(torch.tensor([32.0]), 5.0)
    rgba, depth = render(creature, near, FOVY_DEG, time, size, size, supersample=1)
    other_rgba, other_depth = render(creature, far, FOVY_DEG, time, 192, 192, supersample=1)
    origin, direction = rays(near, FOVY_DEG, size, size)
    hit = depth[0].isfinite()
    point = (origin[0] + direction[0] * depth[0][..., None])[hit]  # [n, 3]
    local = (point - far[0, :3, 3]) @ far[0, :3, :3]
    half = math.tan(math.radians(FOVY_DEG) / 2)
    column = ((local[:, 0] / -local[:, 2] / half + 1) * 96).long().clamp(0, 191)
    row = ((1 - local[:, 1] / -local[:, 2] / half) * 96).long().clamp(0, 191)
    visible = (other_depth[0, row, column] - local.norm(dim=-1)).abs() < 0.004
    assert float(visible.float().mean()) > 0.5
    difference = (rgba[0, :3][:, hit].T - other_rgba[0, :3, row, column].T).abs().amax(dim=-1)[visible]
    assert float((difference < 0.06).float().mean()) > 0.9  # the rest: borders of texture within a pixel


def test_every_creature_fits_and_fills_the_ball() -> None:
    """Checked at other times than the fit uses, with points on the surface."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator, dtype=torch.float64), dim=-1)
    for seed in SEEDS:
        creature = make_creature(seed)
        centre, rotation = pose(creature, torch.linspace(0, 1, 23))
        surface = direction[:, None] * creature.part_radii * creature.scale  # [n, P, 3]
        points = centre[:, None] + torch.einsum("tpij,npj->tnpi", rotation, surface)
        reach = float(points.norm(dim=-1).max())
        assert 0.33 <= reach <= 0.40, (seed, reach)


def test_creatures_move_and_front_differs_from_back() -> None:
    for seed in SEEDS:
        heading = math.degrees(make_creature(seed).heading)
        rgba, _ = look(seed, [heading, heading + 180, heading + 90, heading + 90], [0.0, 0.0, 0.0, 0.3])
        white = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
        seen = rgba[:, 3].sum(dim=(1, 2))

        def change(
            a: int, b: int, white: torch.Tensor = white, seen: torch.Tensor = seen
        ) -> float:  # share of the object's area that differs
            return float((white[a] - white[b]).abs().amax(dim=0).sum() / torch.maximum(seen[a], seen[b]))

        assert change(0, 1) > 0.1, seed
        assert change(2, 3) > 0.1, seed


def test_time_is_continuous() -> None:
    creature = make_creature(1)
    centre, _ = pose(creature, torch.tensor([0.4, 0.401], dtype=torch.float64))
    step = (centre[1] - centre[0]).norm(dim=-1).max()
    assert 0 < float(step) < 0.02


def test_body_plans_and_captions_vary() -> None:
    creatures = [make_creature(seed) for seed in range(36)]
    assert {c.plan for c in creatures} == set(PLANS)
    assert len({c.caption for c in creatures}) > 30
    assert all(c.caption.split()[0] in ("a", "an") for c in creatures)


def test_test_seeds_are_other_creatures() -> None:
    train, test = make_creature(0), make_creature(TEST_SEED_START)
    assert (train.caption, train.heading) != (test.caption, test.heading)


def test_close_cameras_and_bad_arguments() -> None:
    creature = make_creature(2)
    inside = torch.eye(4)[None]  # in the middle of the creature: no crash, no NaN
    rgba, _ = render(creature, inside, FOVY_DEG, torch.zeros(1), 16, 24)
    assert rgba.shape == (1, 4, 16, 24) and bool(rgba.isfinite().all())
    with pytest.raises(ValueError, match="times"):
        render(creature, inside, FOVY_DEG, torch.zeros(2), 16, 16)
    with pytest.raises(ValueError, match="supersample"):
        render(creature, inside, FOVY_DEG, torch.zeros(1), 16, 16, supersample=0)
    with pytest.raises(ValueError, match="seed"):
        make_creature(-1)
