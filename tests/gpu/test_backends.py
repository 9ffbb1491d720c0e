"""The native backends against the torch backend on the same GPU: forward, gradients, and rendered pictures."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fourdiffusion import cameras
from fourdiffusion.ops import hash_grid as grids
from fourdiffusion.ops import volume_rendering
from fourdiffusion.ops.backends import installed
from fourdiffusion.ops.geometry import ball_interval, bounds_interval
from fourdiffusion.ops.hash_grid import HashGrid
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.ops.volume_rendering import accumulate, march, render_weights
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid, RenderOutput, render
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

pytestmark = pytest.mark.gpu
needs_tinycudann = pytest.mark.skipif(not installed("tinycudann"), reason="tinycudann is not installed")
needs_nerfacc = pytest.mark.skipif(not installed("nerfacc"), reason="nerfacc is not installed")

DENSE = HashGridConfig(num_levels=3, log2_hashmap_size=18, base_resolution=3, per_level_scale=1.6)
BOTH = HashGridConfig(num_levels=5, log2_hashmap_size=10, base_resolution=3, per_level_scale=2.0)
HASHED = HashGridConfig(num_levels=3, log2_hashmap_size=6, base_resolution=16)
PUBLISHED = HashGridConfig()
RAYS = 300


def error(ours: Tensor, theirs: Tensor) -> float:
    """Return the error relative to the reference, both as one vector."""
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def grid(num_dims: int, config: HashGridConfig, backend: str) -> HashGrid:
    """A grid with parameters of order one, the same for all backends."""
    made = HashGrid(num_dims, config, seed=num_dims, backend=backend)
    made.params.data *= 1e4
    return made.cuda()


# At 4096 cells the GPU's exp2 moves a point by a thousandth of a cell. A wrong entry is an error of order one.
@needs_tinycudann
@pytest.mark.parametrize("num_dims", [3, 4])
@pytest.mark.parametrize(
    "config, tolerance", [(DENSE, 1e-4), (BOTH, 1e-4), (HASHED, 1e-4), (PUBLISHED, 5e-3)],
    ids=["dense", "both", "hashed", "published"],
)  # fmt: skip
def test_hash_grid_equals_torch_forward_and_gradient(num_dims: int, config: HashGridConfig, tolerance: float) -> None:
    results = []
    for backend in ("torch", "tinycudann"):
        hash_grid = grid(num_dims, config, backend)
        x = random(1000, num_dims) * 1.2 - 0.1  # some outside; 1000 is no multiple of the library's 256
        features = hash_grid(x.requires_grad_())
        features.backward(random(*features.shape, seed=1) - 0.5)
        assert features.dtype == torch.float32 and hash_grid.params.grad is not None and x.grad is not None
        results.append((features.detach(), hash_grid.params.grad, x.grad))
    (features, gradient, x_gradient), (native, native_gradient, native_x_gradient) = results
    assert error(native, features) < tolerance
    assert error(native_gradient, gradient) < tolerance
    # The slope jumps between cells: of a point at a border, rounding may give the neighbour's.
    same = (native_x_gradient - x_gradient).norm(dim=1) < 1e-2 * x_gradient.norm(dim=1).mean()
    assert same.float().mean() > 0.9


def test_what_is_installed_runs_or_says_why() -> None:
    device = torch.device("cuda")
    for library, reason in (
        ("tinycudann", grids.obstacle("tinycudann", 3, PUBLISHED, device)),
        ("nerfacc", volume_rendering.obstacle("nerfacc", device)),
    ):
        assert (reason is None) == installed(library), reason


@needs_tinycudann
@pytest.mark.parametrize("num_points", [0, 1, 256])
def test_any_number_of_points(num_points: int) -> None:
    x, results = random(num_points, 3), []
    for backend in ("torch", "tinycudann"):
        hash_grid = grid(3, BOTH, backend)
        features = hash_grid(x)
        features.sum().backward()
        assert hash_grid.params.grad is not None
        results.append((features.detach(), hash_grid.params.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@needs_tinycudann
def test_the_native_grid_owns_no_parameter_and_sees_every_change_of_ours() -> None:
    hash_grid, x = grid(4, BOTH, "tinycudann"), random(50, 4)
    assert list(hash_grid.state_dict()) == ["params"]
    before = hash_grid(x).detach()
    torch.optim.SGD(hash_grid.parameters(), lr=1.0).step()  # nothing to do: no gradient yet
    assert torch.equal(hash_grid(x), before)
    hash_grid.params.data *= 2
    torch.testing.assert_close(hash_grid(x), 2 * before)


@needs_tinycudann
def test_a_field_is_the_same_with_either_backend() -> None:
    config = FieldConfig(space=BOTH, spacetime=BOTH, hidden_width=16)
    x, t = 2 * random(500, 3) - 1, random(500, seed=1)
    results = []
    for backend in ("torch", "tinycudann"):
        scene = DynamicField(config, seed=1, backend=backend).cuda()
        for hash_grid in (scene.space, scene.spacetime):
            hash_grid.params.data *= 1e3
        sigma, rgb = scene(x, t)
        (sigma.mean() + rgb.mean()).backward()
        results.append([sigma.detach(), rgb.detach(), *(parameter.grad for parameter in scene.parameters())])
    for theirs, ours in zip(*results, strict=True):
        assert error(ours, theirs) < 1e-3


def some_rays() -> tuple[Tensor, Tensor]:
    """Rays from all around, some of which miss the unit ball, one along an axis."""
    origins = normalize(random(RAYS, 3) - 0.5, dim=-1) * 1.5
    directions = normalize((random(RAYS, 3, seed=1) - 0.5) * 2 - origins, dim=-1)
    origins[0], directions[0] = torch.tensor([1.5, 0, 0]), torch.tensor([-1.0, 0, 0])
    return origins, directions


@needs_nerfacc
def test_weights_and_sums_equal_torch_forward_and_gradient() -> None:
    origins, directions = some_rays()
    occupied = random(8, 8, 8) > 0.5
    ray_index, t_start, t_end = march(origins, directions, 0.02, 1.0, None, occupied, "torch")
    assert len(ray_index.unique()) < RAYS  # some rays have no sample
    results = []
    for backend in ("torch", "nerfacc"):
        sigma = (20 * random(len(ray_index), seed=2)).requires_grad_()
        values = random(len(ray_index), 3, seed=3).requires_grad_()
        weights, transmittance = render_weights(sigma, t_start, t_end, ray_index, RAYS, backend)
        colours = accumulate(weights, values, ray_index, RAYS, backend)
        opacity = accumulate(weights, None, ray_index, RAYS, backend)
        (colours.square().sum() + opacity.square().sum() + transmittance.sum()).backward()
        results.append((weights, transmittance, colours, opacity, sigma.grad, values.grad))
    for theirs, ours in zip(*results, strict=True):
        assert error(ours, theirs) < 1e-4


@needs_nerfacc
@pytest.mark.parametrize("bounds", ["ball", "cube"])
@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("step", [0.3, 0.02])
def test_the_march_covers_each_ray_exactly_once(step: float, jittered: bool, bounds: str) -> None:
    origins, directions = some_rays()
    near, far = bounds_interval(origins, directions, 1.0, bounds)
    assert (far <= near).any()
    jitter = random(RAYS, seed=4) if jittered else None
    ray_index, t_start, t_end = march(origins, directions, step, 1.0, jitter, None, "nerfacc", bounds)
    assert (ray_index.diff() >= 0).all() and (t_end > t_start).all() and (t_end - t_start < step + 1e-5).all()
    next_on_ray = ray_index.diff() == 0
    torch.testing.assert_close(t_start[1:][next_on_ray], t_end[:-1][next_on_ray], rtol=0, atol=1e-6)
    length = accumulate(t_end - t_start, None, ray_index, RAYS, "torch")
    torch.testing.assert_close(length, (far - near).clamp(min=0), rtol=0, atol=1e-4)


@needs_nerfacc
def test_the_march_keeps_the_intervals_that_torch_keeps_inside_the_ball() -> None:
    origins, directions = some_rays()
    occupied, jitter, step = random(8, 8, 8) > 0.5, random(RAYS, seed=4), 0.02
    near, far = ball_interval(origins, directions, 1.0)
    kept = []
    for backend in ("torch", "nerfacc"):
        ray_index, t_start, t_end = march(origins, directions, step, 1.0, jitter, occupied, backend)
        inside = (t_start > near[ray_index] + step) & (t_end < far[ray_index] - step)
        number = ((t_start - near[ray_index]) / step + jitter[ray_index]).round().long()
        kept.append(set(zip(ray_index[inside].tolist(), number[inside].tolist(), strict=True)))
    theirs, ours = kept
    # A middle on a border of cells may fall to either side.
    assert len(theirs) > 1000 and len(theirs ^ ours) < 0.005 * len(theirs)


@needs_nerfacc
def test_nothing_to_march_through() -> None:
    origins, directions = some_rays()
    empty = torch.zeros(4, 4, 4, dtype=torch.bool, device="cuda")
    for rays, occupied in ((origins, empty), (origins[:0], None)):
        ray_index, t_start, t_end = march(rays, directions[: len(rays)], 0.05, 1.0, None, occupied, "nerfacc")
        assert len(ray_index) == len(t_start) == len(t_end) == 0
        weights, _ = render_weights(t_start, t_start, t_end, ray_index, len(rays), "nerfacc")
        assert not accumulate(weights, weights[:, None].expand(-1, 3), ray_index, len(rays), "nerfacc").any()


def picture(grid_backend: str, ray_backend: str) -> tuple[RenderOutput, Tensor]:
    """Three views of a colored blob, with jitter and skipping; and the gradient of the space grid."""
    renderer = RendererConfig(num_samples=128, occupancy_resolution=16)
    scene = DynamicField(FieldConfig(space=BOTH, spacetime=BOTH, hidden_width=16), 1, grid_backend)
    for hash_grid in (scene.space, scene.spacetime):
        hash_grid.params.data *= 3e3
    scene, occupancy = scene.cuda(), OccupancyGrid(renderer, ray_backend).cuda()
    for seed in range(10):
        occupancy.update(scene.density, torch.linspace(0, 1, 3), torch.Generator().manual_seed(seed))
    c2w = cameras.orbit(torch.tensor([0.0, 90.0, 30.0]))
    origins, directions = (rays.reshape(-1, 3).cuda() for rays in cameras.rays(c2w, 45.0, 24, 24))
    times, jitter = random(len(origins), seed=5), random(len(origins), seed=6)
    background = torch.ones(3, device="cuda")
    out = render(scene, occupancy, origins, directions, times, background, renderer, jitter)
    out.rgb.square().mean().backward()
    assert scene.space.params.grad is not None
    return out, scene.space.params.grad


@pytest.mark.parametrize(
    "grid_backend, ray_backend",
    [
        pytest.param("tinycudann", "torch", marks=needs_tinycudann),
        pytest.param("torch", "nerfacc", marks=needs_nerfacc),
        pytest.param("tinycudann", "nerfacc", marks=[needs_tinycudann, needs_nerfacc]),
        pytest.param("auto", "auto"),
    ],
)
def test_pictures_and_their_gradients_agree(grid_backend: str, ray_backend: str) -> None:
    theirs, their_gradient = picture("torch", "torch")
    ours, our_gradient = picture(grid_backend, ray_backend)
    assert 0.1 < theirs.opacity.mean() < 0.9
    assert (ours.rgb - theirs.rgb).abs().mean() < 1e-3 and (ours.opacity - theirs.opacity).abs().mean() < 1e-3
    assert error(our_gradient, their_gradient) < 0.02
