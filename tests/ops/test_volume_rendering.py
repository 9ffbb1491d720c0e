"""Packed rendering against dense rendering and closed forms."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourdiffusion.ops import volume_rendering
from fourdiffusion.ops.backends import append_flag
from fourdiffusion.ops.geometry import ball_interval
from fourdiffusion.ops.volume_rendering import (
    accumulate,
    march,
    numba_backend,
    render_weights,
    resolve_backend,
    torch_backend,
)

RAYS = 12


def some_rays(num_rays: int = RAYS) -> tuple[Tensor, Tensor]:
    """Rays from all around, some of which miss the unit ball."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(num_rays, 3, generator=generator), dim=-1) * 1.5
    aims = torch.randn(num_rays, 3, generator=generator) * 0.6
    return origins, torch.nn.functional.normalize(aims - origins, dim=-1)


def packed(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sigma, t_start, t_end, ray_index of three rays of 4, 0 and 3 samples."""
    generator = torch.Generator().manual_seed(3)
    ray_index = torch.tensor([0, 0, 0, 0, 2, 2, 2])
    t_start = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.3, 0.4, 0.7], dtype=dtype)
    sigma = torch.rand(7, generator=generator).to(dtype) * 5
    return sigma, t_start, t_start + 0.1, ray_index


def test_constant_density_gives_beer_lambert() -> None:
    origins, directions = some_rays()
    near, far = ball_interval(origins, directions, 1.0)
    length = (far - near).clamp(min=0)
    assert (length == 0).any() and (length > 1).any()
    for jitter in (None, torch.rand(RAYS, generator=torch.Generator().manual_seed(1))):
        ray_index, t_start, t_end = march(origins, directions, 0.03, 1.0, jitter, None)
        weights, _ = render_weights(torch.full_like(t_start, 1.7), t_start, t_end, ray_index, RAYS)
        torch.testing.assert_close(accumulate(weights, None, ray_index, RAYS), 1 - torch.exp(-1.7 * length))


def test_packed_equals_dense() -> None:
    generator = torch.Generator().manual_seed(2)
    rays, samples = 5, 6
    sigma = torch.rand(rays, samples, generator=generator) * 4
    values = torch.rand(rays, samples, 3, generator=generator)
    edges = torch.rand(rays, samples + 1, generator=generator).sort(dim=1).values
    keep = torch.rand(rays, samples, generator=generator) > 0.4
    keep[1] = False
    optical = torch.where(keep, sigma * edges.diff(dim=1), 0)
    before = optical.cumsum(1) - optical
    dense_weights = torch.exp(-before) * (1 - torch.exp(-optical))
    dense = (dense_weights[..., None] * values).sum(1)
    ray_index = keep.nonzero()[:, 0]
    weights, transmittance = render_weights(sigma[keep], edges[:, :-1][keep], edges[:, 1:][keep], ray_index, rays)
    torch.testing.assert_close(weights, dense_weights[keep])
    torch.testing.assert_close(transmittance, torch.exp(-before)[keep])
    torch.testing.assert_close(accumulate(weights, values[keep], ray_index, rays), dense)


def test_gradients_in_double() -> None:
    sigma, t_start, t_end, ray_index = packed(torch.float64)
    values = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def picture(sigma: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        weights, transmittance = render_weights(sigma, t_start, t_end, ray_index, 3)
        return accumulate(weights, values, ray_index, 3), transmittance

    leaves = (sigma.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(picture, leaves)
    assert torch.autograd.gradgradcheck(picture, leaves)


def test_skipping_drops_intervals_and_changes_no_other() -> None:
    origins, directions = some_rays()
    jitter = torch.rand(RAYS, generator=torch.Generator().manual_seed(5))
    ray_index, t_start, t_end = march(origins, directions, 0.05, 1.0, jitter, None)
    full = march(origins, directions, 0.05, 1.0, jitter, torch.ones(8, 8, 8, dtype=torch.bool))
    for ours, theirs in zip((ray_index, t_start, t_end), full, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    occupied = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(6)) > 0.7
    occupied[:2] = occupied[:, 5:] = False  # so that the box around the occupied cells cuts rays short
    middles = origins[ray_index] + ((t_start + t_end) / 2)[:, None] * directions[ray_index]
    cells = ((middles + 1) * 4).long().clamp(0, 7)
    keep = occupied[cells[:, 0], cells[:, 1], cells[:, 2]]
    assert 0 < keep.sum() < len(keep)
    some = march(origins, directions, 0.05, 1.0, jitter, occupied)
    for ours, theirs in zip((ray_index[keep], t_start[keep], t_end[keep]), some, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("bounds", ["ball", "cube"])
@pytest.mark.parametrize("step", [0.05, 0.004])  # 0.004: more intervals than the kernel looks at together
def test_both_backends_march_alike(step: float, bounds: str) -> None:
    origins, directions = some_rays(300)
    jitter = torch.rand(300, generator=torch.Generator().manual_seed(5))
    occupied = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(6)) > 0.7
    for grid in (None, occupied):
        ours = march(origins, directions, step, 1.0, jitter, grid, "numba", bounds)
        for mine, theirs in zip(
            ours, march(origins, directions, step, 1.0, jitter, grid, "torch", bounds), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert len(set(ours[0].tolist())) > 100


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    origins, directions = some_rays()
    whole = march(origins, directions, 0.05, 1.0, None, None)
    monkeypatch.setitem(torch_backend.BLOCK, "cpu", 100)
    monkeypatch.setattr(numba_backend, "BLOCK", 5)
    for backend in ("torch", "numba"):
        for ours, theirs in zip(whole, march(origins, directions, 0.05, 1.0, None, None, backend), strict=True):
            assert torch.equal(ours, theirs)


def test_an_empty_grid_and_no_ray_give_no_sample() -> None:
    origins, directions = some_rays()
    for rays, occupied in ((origins, torch.zeros(4, 4, 4, dtype=torch.bool)), (origins[:0], None)):
        ray_index, t_start, t_end = march(rays, directions[: len(rays)], 0.05, 1.0, None, occupied)
        assert len(ray_index) == len(t_start) == len(t_end) == 0
        weights, _ = render_weights(t_start, t_start, t_end, ray_index, len(rays))
        assert not accumulate(weights, weights[:, None].expand(-1, 3), ray_index, len(rays)).any()


def test_on_a_cpu_rays_go_to_numba_and_other_types_to_torch() -> None:
    cpu = torch.device("cpu")
    assert resolve_backend("ray_backend", "auto", cpu) == "numba"
    origins, directions = some_rays()
    assert march(origins.double(), directions.double(), 0.05, 1.0, None, None)[1].dtype == torch.float64
    with pytest.raises(ValueError, match="backend=numba serves float32 on cpu only"):
        march(origins.double(), directions.double(), 0.05, 1.0, None, None, "numba")
    with pytest.raises(ValueError, match="ray_backend=nerfacc (needs nerfacc.*pip install|serves float32 on cuda)"):
        resolve_backend("ray_backend", "nerfacc", cpu)
    with pytest.raises(ValueError, match="ray_backend=rays is unknown"):
        resolve_backend("ray_backend", "rays", cpu)
    sigma, t_start, t_end, ray_index = packed()
    with pytest.raises(ValueError, match="backend=nerfacc"):
        render_weights(sigma, t_start, t_end, ray_index, 3, "nerfacc")


def test_a_flag_is_appended_once_and_overwrites_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-O2 --threads 2")
    for _ in range(2):
        append_flag("NVCC_APPEND_FLAGS", "-std=c++17")
        assert os.environ["NVCC_APPEND_FLAGS"] == "-O2 --threads 2 -std=c++17"
    monkeypatch.delenv("NVCC_APPEND_FLAGS")
    append_flag("NVCC_APPEND_FLAGS", "-std=c++17")
    assert os.environ["NVCC_APPEND_FLAGS"] == "-std=c++17"


def test_nerfacc_is_imported_after_the_flag_that_it_compiles_with(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nerfacc")
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-O2")
    volume_rendering._nerfacc_backend()
    kept, flag = os.environ["NVCC_APPEND_FLAGS"].split()
    assert kept == "-O2" and "define lerp" in Path(flag.removeprefix("--pre-include=")).read_text()


@pytest.mark.parametrize("bounds", ["ball", "cube"])
def test_the_intervals_cover_the_ray_inside_the_bounds(bounds: str) -> None:
    origins, directions = some_rays(60)
    origins[0], directions[0] = torch.tensor([0.9, 0.9, 0.9]), torch.tensor([-1.0, 0.0, 0.0])  # begins inside the cube
    jitter = torch.rand(60, generator=torch.Generator().manual_seed(1))
    ray_index, t_start, t_end = march(origins, directions, 0.07, 0.95, jitter, None, bounds=bounds)
    ahead = torch.linspace(0, 4, 8001)
    points = origins[:, None] + ahead[:, None] * directions[:, None]
    inside = (points.norm(dim=-1) if bounds == "ball" else points.abs().amax(-1)) <= 0.95
    length = accumulate(t_end - t_start, None, ray_index, 60)
    torch.testing.assert_close(length, inside.float().mean(1) * 4, rtol=0, atol=2e-3)
    assert (t_start >= 0).all()


def test_sums_equal_nerfacc() -> None:
    """The parts of nerfacc that need no GPU: sums of packed samples, and weights of rays with equal sample counts."""
    nerfacc = pytest.importorskip("nerfacc")
    from fourdiffusion.ops.volume_rendering import nerfacc_backend

    rays, samples = 4, 6
    generator = torch.Generator().manual_seed(7)
    edges = torch.rand(rays, samples + 1, generator=generator).sort(dim=1).values
    ray_index = torch.arange(rays).repeat_interleave(samples)
    values = torch.rand(rays * samples, 3, generator=generator)
    results = []
    for native in (False, True):
        sigma = torch.rand(rays, samples, generator=torch.Generator().manual_seed(8)).requires_grad_()
        if native:
            weights, transmittance, _ = nerfacc.render_weight_from_density(edges[:, :-1], edges[:, 1:], sigma)
            sums = nerfacc_backend.accumulate
        else:
            t_start, t_end = edges[:, :-1].flatten(), edges[:, 1:].flatten()
            weights, transmittance = render_weights(sigma.flatten(), t_start, t_end, ray_index, rays)
            sums = accumulate
        colours = sums(weights.flatten(), values, ray_index, rays + 1)  # the last ray has no sample
        opacity = sums(weights.flatten(), None, ray_index, rays + 1)
        (colours.square().sum() + opacity.square().sum() + transmittance.sum()).backward()
        results.append((weights.flatten(), transmittance.flatten(), colours, opacity, sigma.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
