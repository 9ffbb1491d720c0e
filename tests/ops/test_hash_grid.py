"""The hash grid against a slow loop over corners, and its backends against each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fourdiffusion.ops.backends import INSTALL, installed
from fourdiffusion.ops.hash_grid import HashGrid, resolve_backend, summed_encodings
from fourdiffusion.ops.hash_grid.layout import PRIMES, levels
from fourdiffusion.ops.settings import HashGridConfig

DENSE = HashGridConfig(num_levels=3, log2_hashmap_size=18, base_resolution=3, per_level_scale=1.6)
BOTH = HashGridConfig(num_levels=5, log2_hashmap_size=10, base_resolution=3, per_level_scale=2.0)
HASHED = HashGridConfig(num_levels=3, log2_hashmap_size=6, base_resolution=16)
CONFIGS = pytest.mark.parametrize("config", [DENSE, BOTH, HASHED], ids=["dense", "both", "hashed"])
DIMS = pytest.mark.parametrize("num_dims", [3, 4])


def grid(num_dims: int, config: HashGridConfig, backend: str) -> HashGrid:
    """A grid with parameters of order one, the same for all backends."""
    made = HashGrid(num_dims, config, seed=num_dims, backend=backend)
    made.params.data *= 1e4
    return made


def points(num_points: int, num_dims: int) -> Tensor:
    """Random points, both ends of the cube, and a cell's border."""
    x = torch.rand(num_points, num_dims, generator=torch.Generator().manual_seed(1))
    x[0], x[1], x[2] = 0, 1, 0.5
    return x


def slow_encoding(x: list[float], params: list[float], config: HashGridConfig, number: type) -> list[float]:
    """One point, by the rule as written, corner by corner; positions are rounded to ``number``."""
    features, offset = [], 0
    for level in range(config.num_levels):
        growth = np.exp2(np.float32(level) * np.log2(np.float32(config.per_level_scale)))
        scale = float(growth * np.float32(config.base_resolution) - np.float32(1))
        resolution = math.ceil(scale) + 1
        entries = min(-(-(resolution ** len(x)) // 8) * 8, 2**config.log2_hashmap_size)
        position = [float(number(value * scale + 0.5)) for value in x]
        total = [0.0] * config.features_per_level
        for corner in itertools.product((0, 1), repeat=len(x)):
            weight, dense, hashed = 1.0, 0, 0
            for axis, upper in enumerate(corner):
                cell, frac = math.floor(position[axis]), position[axis] - math.floor(position[axis])
                weight *= frac if upper else 1 - frac
                dense += (cell + upper) * resolution**axis
                hashed ^= (cell + upper) * PRIMES[axis] % 2**32
            index = (dense if resolution ** len(x) <= entries else hashed) % entries
            for k in range(config.features_per_level):
                total[k] += weight * params[offset + index * config.features_per_level + k]
        features += total
        offset += entries * config.features_per_level
    assert offset == len(params)
    return features


@DIMS
@CONFIGS
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_equals_a_slow_loop_over_corners(num_dims: int, config: HashGridConfig, backend: str) -> None:
    hash_grid, x = grid(num_dims, config, backend), points(40, num_dims)
    params = hash_grid.params.tolist()
    expected = torch.tensor([slow_encoding(point, params, config, np.float32) for point in x.tolist()])
    torch.testing.assert_close(hash_grid(x), expected, rtol=0, atol=1e-6)


@DIMS
@CONFIGS
def test_equals_the_slow_loop_in_double(num_dims: int, config: HashGridConfig) -> None:
    hash_grid, x = grid(num_dims, config, "auto").double(), points(20, num_dims).double()
    params = hash_grid.params.tolist()
    expected = torch.tensor([slow_encoding(point, params, config, np.float64) for point in x.tolist()])
    torch.testing.assert_close(hash_grid(x).float(), expected, rtol=0, atol=1e-6)


def test_sizes_follow_tiny_cuda_nn() -> None:
    layout = levels(3, HashGridConfig())  # the published 3-D grid
    assert layout.offset[1] == 16**3 and layout.offset[2] - layout.offset[1] == 24**3  # ceil(22.16) + 1 = 24
    assert (layout.offset[-1] - layout.offset[-2]) == 2**19
    assert layout.scale[-1] == pytest.approx(4095, abs=1e-2)
    assert layout.hashed.tolist() == [False] * 5 + [True] * 11
    small = levels(3, HashGridConfig(num_levels=1, base_resolution=3))
    assert small.offset.tolist() == [0, 32]  # 27 entries, rounded up to a multiple of 8
    assert levels(4, HashGridConfig()).offset[1] == 16**4
    assert HashGrid(3, HashGridConfig(num_levels=1, base_resolution=3)).params.shape == (64,)


def test_initial_parameters() -> None:
    params = HashGrid(3, HashGridConfig(num_levels=4, log2_hashmap_size=12), seed=3).params.detach()
    assert params.abs().max() <= 1e-4 and params.std().item() == pytest.approx(1e-4 / math.sqrt(3), rel=0.05)
    assert torch.equal(params, HashGrid(3, HashGridConfig(num_levels=4, log2_hashmap_size=12), seed=3).params)


@DIMS
@CONFIGS
def test_numba_equals_torch_forward_and_gradient(num_dims: int, config: HashGridConfig) -> None:
    x = points(1000, num_dims)  # several tiles and a part of one
    results = []
    for backend in ("torch", "numba"):
        hash_grid = grid(num_dims, config, backend)
        features = hash_grid(x)
        features.backward(torch.randn(features.shape, generator=torch.Generator().manual_seed(2)))
        assert hash_grid.params.grad is not None
        results.append((features.detach(), hash_grid.params.grad))
    (features, gradient), (numba_features, numba_gradient) = results
    torch.testing.assert_close(numba_features, features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(numba_gradient, gradient, rtol=1e-5, atol=1e-5)


def test_numba_is_deterministic_for_any_number_of_threads() -> None:
    x, threads = points(3000, 4), torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 2):
            torch.set_num_threads(num_threads)
            hash_grid = grid(4, BOTH, "numba")
            features = hash_grid(x)
            features.square().sum().backward()
            assert hash_grid.params.grad is not None
            results.append(torch.cat([features.detach().flatten(), hash_grid.params.grad]))
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


@DIMS
def test_gradients_in_double(num_dims: int) -> None:
    config = HashGridConfig(num_levels=2, log2_hashmap_size=3, base_resolution=2, per_level_scale=1.7)
    hash_grid = grid(num_dims, config, "auto").double()
    x = points(5, num_dims)[3:].double().requires_grad_()

    def encoding(x: Tensor, params: Tensor) -> Tensor:
        return torch.func.functional_call(hash_grid, {"params": params}, (x,))

    assert torch.autograd.gradcheck(encoding, (x, hash_grid.params))


def test_summed_encodings_equal_the_sum() -> None:
    config = HashGridConfig(num_levels=3, log2_hashmap_size=8)
    x = points(300, 4)
    for backend in ("torch", "numba"):
        space, spacetime = grid(3, config, backend), grid(4, config, backend)
        both = summed_encodings(x, (space, spacetime))
        torch.testing.assert_close(both, space(x[:, :3]) + spacetime(x), rtol=1e-6, atol=1e-6)


def test_points_outside_and_not_a_number_stay_in_the_table() -> None:
    x = torch.tensor([[-5.0, 2.0, 0.5], [float("nan"), 0.5, 0.5]])
    hash_grid = grid(3, BOTH, "numba")
    assert torch.equal(hash_grid(x)[:1], hash_grid(x[:1].clamp(0, 1)))
    assert hash_grid(x).isfinite().all()


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_points_outside_have_the_features_of_the_border(backend: str) -> None:
    x, hash_grid = torch.tensor([[-5.0, 1.75, 0.5], [1.25, -0.25, 3.0]]), grid(3, BOTH, backend)
    assert torch.equal(hash_grid(x), hash_grid(x.clamp(0, 1)))


def test_no_points() -> None:
    for backend in ("torch", "numba"):
        hash_grid = grid(3, BOTH, backend)
        features = hash_grid(torch.zeros(0, 3))
        assert features.shape == (0, hash_grid.num_features)
        features.sum().backward()
        assert hash_grid.params.grad is not None and not hash_grid.params.grad.any()


def test_auto_takes_the_first_backend_that_serves_all_grids() -> None:
    cpu, wide = torch.device("cpu"), HashGridConfig(num_levels=2, features_per_level=4)
    for grids, taken in (({3: BOTH, 4: BOTH}, "numba"), ({3: BOTH, 4: wide}, "torch"), ({2: BOTH}, "torch")):
        assert resolve_backend("backend", "auto", grids, cpu) == taken
        assert resolve_backend("backend", "torch", grids, cpu) == "torch"
    assert grid(3, BOTH, "auto").backend_for(points(5, 3)) == "numba"
    assert grid(3, BOTH, "auto").backend_for(points(5, 3).requires_grad_()) == "torch"


def test_auto_says_in_one_line_why_it_steps_down(caplog: pytest.LogCaptureFixture) -> None:
    cpu, wide = torch.device("cpu"), HashGridConfig(num_levels=2, features_per_level=4)
    assert resolve_backend("scene.grid_backend", "auto", {3: BOTH, 4: BOTH}, cpu) == "numba"
    resolve_backend("scene.grid_backend", "torch", {3: wide}, cpu)
    assert not caplog.records
    resolve_backend("scene.grid_backend", "auto", {3: BOTH, 4: wide}, cpu)
    (line,) = caplog.messages
    assert line.startswith("scene.grid_backend=auto takes torch, which is slower") and "\n" not in line
    assert "numba has no grid of 4 dimensions" in line


def test_a_backend_that_cannot_serve_is_refused_with_the_reason() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="backend=tinycudann") as refused:
        resolve_backend("backend", "tinycudann", {3: BOTH}, cpu)
    assert (INSTALL["tinycudann"] in str(refused.value)) != installed("tinycudann")
    for name, grids, words in (
        ("numba", {3: BOTH, 2: BOTH}, "backend=numba has no grid of 2 dimensions"),
        ("cuda_magic", {3: BOTH}, "backend=cuda_magic is unknown: choose auto, numba"),
    ):
        with pytest.raises(ValueError, match=words):
            resolve_backend("backend", name, grids, cpu)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="cuda_magic"):
        HashGrid(3, BOTH, backend="cuda_magic")
    with pytest.raises(ValueError, match="num_levels=0"):
        HashGrid(3, HashGridConfig(num_levels=0))
    with pytest.raises(ValueError, match="features"):
        HashGrid(3, HashGridConfig(features_per_level=4), backend="numba")
    with pytest.raises(ValueError, match=r"\[5, 2\]"):
        grid(3, BOTH, "torch")(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="float64"):
        grid(3, BOTH, "numba").double()(torch.zeros(5, 3).double())
