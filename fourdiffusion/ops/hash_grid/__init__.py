"""Multiresolution hash encoding (Mueller et al. 2022): the op and the flat parameters of tiny-cuda-nn's HashGrid.

A level l of a grid in D dimensions:

    scale      = base_resolution * per_level_scale ** l - 1
    resolution = ceil(scale) + 1
    entries    = min(resolution ** D rounded up to a multiple of 8, 2 ** log2_hashmap_size)
    position   = x * scale + 0.5; its 2 ** D neighbors are interpolated linearly
    index      = sum_d cell_d * resolution ** d             where resolution ** D <= entries ("dense")
               = xor_d (cell_d * prime_d mod 2 ** 32)       elsewhere ("hashed"); both modulo entries

Three backends give equal results: "torch" (eager, any device and float type, differentiable in x too), "numba"
(CPU, float32, gradients of the parameters only, an order of magnitude faster) and "tinycudann" (tiny-cuda-nn itself:
GPU, float32, differentiable in x too).
"""

from collections.abc import Sequence
from dataclasses import astuple
from functools import cache

import torch
from torch import Tensor, nn

from fourdiffusion.ops.backends import INSTALL, choose, installed, tell_step_down
from fourdiffusion.ops.hash_grid.layout import levels
from fourdiffusion.ops.hash_grid.numba_backend import NumbaEncoding
from fourdiffusion.ops.hash_grid.torch_backend import encode
from fourdiffusion.ops.settings import HashGridConfig

BACKENDS = ("numba", "tinycudann", "torch")  # "auto" takes the first that applies
NATIVE_DEVICES = {"numba": "cpu", "tinycudann": "cuda"}


class HashGrid(nn.Module):
    """x [N, D] in [0, 1] -> features [N, L * features_per_level].

    ``params`` is tiny-cuda-nn's flat vector, ordered by level, entry, feature.

    Args:
        num_dims: D, 1 to 4.
        config: sizes.
        seed: of the initial parameters, uniform in [-1e-4, 1e-4].
        backend: "auto" takes numba on a CPU, tinycudann on a GPU, and torch if these do not apply; a backend given by
            name raises ValueError if it does not apply.
    """

    def __init__(self, num_dims: int, config: HashGridConfig, seed: int = 0, backend: str = "auto"):
        super().__init__()
        device = torch.device(NATIVE_DEVICES.get(backend, "cpu"))  # the module is moved there later
        choose("backend", backend, BACKENDS, lambda name: obstacle(name, num_dims, config, device))
        self.num_dims, self.config, self.backend = num_dims, config, backend
        self.levels = levels(num_dims, config)
        self.num_features = config.num_levels * config.features_per_level
        generator = torch.Generator().manual_seed(seed)
        size = int(self.levels.offset[-1]) * config.features_per_level
        self.params = nn.Parameter(torch.empty(size).uniform_(-1e-4, 1e-4, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return summed_encodings(x, (self,))

    def backend_for(self, x: Tensor) -> str:
        """Return the backend for x: torch without points, and for gradients of x, which numba lacks."""
        if len(x) == 0 or (x.requires_grad and self.params.device.type == "cpu"):
            return "torch"
        device, dtype = self.params.device, self.params.dtype
        return choose(
            "backend", self.backend, BACKENDS, lambda name: obstacle(name, self.num_dims, self.config, device, dtype)
        )


def obstacle(
    backend: str, num_dims: int, config: HashGridConfig, device: torch.device, dtype: torch.dtype = torch.float32
) -> str | None:
    """Return why a backend does not apply to a grid with parameters of that device and type; None if it does."""
    if backend == "torch":
        return None
    if not installed(backend):
        return f"needs {backend}, which is not installed: {INSTALL[backend]}"
    if device.type != NATIVE_DEVICES[backend] or dtype != torch.float32:
        return f"serves float32 on {NATIVE_DEVICES[backend]} only, not {dtype} on {device}; torch serves all"
    num_features = config.features_per_level
    if backend == "numba":
        possible = num_dims in (3, 4) and num_features == 2
    else:
        possible = num_dims in (2, 3, 4) and num_features in (1, 2, 4, 8) and config.num_levels * num_features <= 128
    if not possible:
        return f"has no grid of {num_dims} dimensions, {config.num_levels} levels, {num_features} features; torch has"
    return _tinycudann_failure() if backend == "tinycudann" else None


@cache
def _tinycudann_failure() -> str | None:
    """Return why the installed tiny-cuda-nn does not run on this GPU, None if it does."""
    try:
        from fourdiffusion.ops.hash_grid import tinycudann_backend

        difference = tinycudann_backend.trial()
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return f"does not run ({reason}), build it again: {INSTALL['tinycudann']}"
    return None if difference < 1e-3 else f"gives wrong results on this GPU: off by {difference:.1e}"


def resolve_backend(setting: str, name: str, grids: dict[int, HashGridConfig], device: torch.device) -> str:
    """Return the backend of ``name`` for all of {num_dims: config}, on a device. ValueError if it does not apply."""

    def first_obstacle(backend: str) -> str | None:
        reasons = (obstacle(backend, num_dims, config, device) for num_dims, config in grids.items())
        return next(filter(None, reasons), None)

    taken = choose(setting, name, BACKENDS, first_obstacle)
    native = next((backend for backend, kind in NATIVE_DEVICES.items() if kind == device.type), None)
    tell_step_down(setting, name, taken, native, first_obstacle)
    return taken


def summed_encodings(x: Tensor, grids: Sequence[HashGrid]) -> Tensor:
    """Return the sum of several grids' features, each of the first coordinates of x: hash3(x) + hash4(x, t).

    Args:
        x: [N, D] in [0, 1] (clamped), D at least the largest ``num_dims``.
        grids: all of the same number of features C.

    Returns:
        [N, C]; on the numba path a transposed view of a [C, N] tensor.
    """
    dims = max(grid.num_dims for grid in grids)
    if x.ndim != 2 or x.shape[1] < dims:
        raise ValueError(f"points of shape {list(x.shape)}: a grid of {dims} dimensions needs [N, {dims}]")
    if len({grid.num_features for grid in grids}) != 1:
        raise ValueError(f"grids of {[grid.num_features for grid in grids]} features cannot be summed")
    backends = [grid.backend_for(x) for grid in grids]
    if all(backend == "numba" for backend in backends):
        layouts = tuple((grid.num_dims, grid.levels) for grid in grids)
        return NumbaEncoding.apply(x.t().float().contiguous(), layouts, *(grid.params for grid in grids)).t()
    features = []
    for grid, backend in zip(grids, backends, strict=True):
        part = x[:, : grid.num_dims]
        if backend == "tinycudann":
            from fourdiffusion.ops.hash_grid import tinycudann_backend

            features.append(tinycudann_backend.encode(part, grid.params, grid.num_dims, astuple(grid.config)))
        else:
            features.append(encode(part, grid.params, grid.levels, grid.config.features_per_level))
    return sum(features[1:], features[0])
