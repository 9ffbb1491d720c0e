"""Multiresolution hash encoding (Mueller et al. 2022): the op and the flat parameters of tiny-cuda-nn's HashGrid.

A level l of a grid in D dimensions:

    scale      = base_resolution * per_level_scale ** l - 1
    resolution = ceil(scale) + 1
    entries    = min(resolution ** D rounded up to a multiple of 8, 2 ** log2_hashmap_size)
    position   = x * scale + 0.5; its 2 ** D neighbours are mixed linearly
    index      = sum_d cell_d * resolution ** d             where resolution ** D <= entries ("dense")
               = xor_d (cell_d * prime_d mod 2 ** 32)       elsewhere ("hashed"); both modulo entries

Three backends give the same numbers: "torch" (eager, any device and float type, differentiable in x too), "numba"
(CPU, float32, gradients of the parameters only, an order of magnitude faster) and "tinycudann" (tiny-cuda-nn itself:
GPU, float32, differentiable in x too).
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourdiffusion.ops.backends import INSTALL, choose, installed

PRIMES = (1, 2654435761, 805459861, 3674653429)
BACKENDS = ("numba", "tinycudann", "torch")  # "auto" takes the first that can
NATIVE_DEVICES = {"numba": "cpu", "tinycudann": "cuda"}


@dataclass
class HashGridConfig:
    """Names and defaults as in tiny-cuda-nn; these reach 16 -> 4096 cells a side."""

    num_levels: int = 16
    features_per_level: int = 2
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    per_level_scale: float = 1.447269237440378


@dataclass(frozen=True)
class Levels:
    """What the rule above gives for each of L levels."""

    scale: np.ndarray  # float64 [L], the values of float32 arithmetic
    multiplier: np.ndarray  # uint32 [L, D]: strides of a dense level, primes of a hashed one
    offset: np.ndarray  # int64 [L + 1]: first entry of each level
    hashed: np.ndarray  # bool [L]


def levels(num_dims: int, config: HashGridConfig) -> Levels:
    """The table layout of a grid. Raises ValueError for sizes that make none."""
    if not 1 <= num_dims <= len(PRIMES):
        raise ValueError(f"num_dims={num_dims}: a hash grid has 1 to {len(PRIMES)} dimensions")
    for name, least, most in (
        ("num_levels", 1, 64), ("features_per_level", 1, 8), ("log2_hashmap_size", 3, 30),
        ("base_resolution", 1, 1 << 16), ("per_level_scale", 1, 16),
    ):  # fmt: skip
        value = getattr(config, name)
        if not least <= value <= most:
            raise ValueError(f"{name}={value} of a hash grid lies outside {least}..{most}")
    # float32, as tiny-cuda-nn computes it: the ceiling below depends on the last bit.
    log2_scale = np.log2(np.float32(config.per_level_scale))
    scale = np.exp2(np.arange(config.num_levels, dtype=np.float32) * log2_scale) * np.float32(config.base_resolution)
    scale = (scale - np.float32(1)).astype(np.float64)
    sizes, multipliers, hashed = [], [], []
    for resolution in (math.ceil(value) + 1 for value in scale):
        size = min(math.ceil(resolution**num_dims / 8) * 8, 1 << config.log2_hashmap_size)
        hashed.append(resolution**num_dims > size)
        multipliers.append(PRIMES[:num_dims] if hashed[-1] else [resolution**axis for axis in range(num_dims)])
        sizes.append(size)
    offset = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Levels(scale, np.array(multipliers, dtype=np.uint32), offset, np.array(hashed))


class HashGrid(nn.Module):
    """x [N, D] in [0, 1] -> features [N, L * features_per_level].

    ``params`` is tiny-cuda-nn's flat vector: level after level, entry after entry, feature after feature.

    Args:
        num_dims: D, 1 to 4.
        config: sizes.
        seed: of the initial parameters, uniform in [-1e-4, 1e-4].
        backend: "auto" takes numba on a CPU, tinycudann on a GPU, and torch where these do not apply; a backend asked
            for by name raises ValueError where it does not apply.
    """

    def __init__(self, num_dims: int, config: HashGridConfig, seed: int = 0, backend: str = "auto"):
        super().__init__()
        device = torch.device(NATIVE_DEVICES.get(backend, "cpu"))  # the module moves there later
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
        """The backend that serves x. Without points, and for gradients of x that numba lacks, it is torch."""
        if len(x) == 0 or (x.requires_grad and self.params.device.type == "cpu"):
            return "torch"
        device, dtype = self.params.device, self.params.dtype
        return choose(
            "backend", self.backend, BACKENDS, lambda name: obstacle(name, self.num_dims, self.config, device, dtype)
        )


def obstacle(
    backend: str, num_dims: int, config: HashGridConfig, device: torch.device, dtype: torch.dtype = torch.float32
) -> str | None:
    """Why a backend cannot serve a grid whose parameters are on that device, of that type; None where it can."""
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
    """Why the installed tiny-cuda-nn does not load, None where it does."""
    try:
        from fourdiffusion.ops import hash_grid_cuda  # noqa: F401
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        return f"does not load ({reason}), build it again: {INSTALL['tinycudann']}"
    return None


def resolve_backend(setting: str, name: str, grids: dict[int, HashGridConfig], device: torch.device) -> str:
    """The backend that ``name`` means for all of {num_dims: config}, on a device. ValueError where it cannot serve."""

    def first_obstacle(backend: str) -> str | None:
        reasons = (obstacle(backend, num_dims, config, device) for num_dims, config in grids.items())
        return next(filter(None, reasons), None)

    return choose(setting, name, BACKENDS, first_obstacle)


def summed_encodings(x: Tensor, grids: Sequence[HashGrid]) -> Tensor:
    """Sum of several grids' features, each grid seeing the first of x's coordinates: hash3(x) + hash4(x, t).

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
        return _NumbaEncoding.apply(x.t().float().contiguous(), layouts, *(grid.params for grid in grids)).t()
    features = []
    for grid, backend in zip(grids, backends, strict=True):
        part = x[:, : grid.num_dims]
        if backend == "tinycudann":
            from fourdiffusion.ops import hash_grid_cuda

            features.append(hash_grid_cuda.encode(part, grid.params, grid.num_dims, astuple(grid.config)))
        else:
            features.append(encode(part, grid.params, grid.levels, grid.config.features_per_level))
    return sum(features[1:], features[0])


# ---------------------------------------------------------------- torch twin


def encode(x: Tensor, params: Tensor, layout: Levels, features_per_level: int) -> Tensor:
    """The rule at the head of this file. x [N, D] in [0, 1], params flat -> [N, L * features_per_level]."""
    sizes = np.diff(layout.offset).tolist()
    tables = params.view(-1, features_per_level).split(sizes)
    features = []
    for table, scale, multiplier, hashed in zip(
        tables, layout.scale.tolist(), layout.multiplier.tolist(), layout.hashed.tolist(), strict=True
    ):
        # In double and rounded once, as tiny-cuda-nn's fused multiply-add does.
        position = (x.clamp(0, 1).double() * scale + 0.5).to(params.dtype)
        cell = position.detach().floor()
        frac = position - cell
        index, weight = _corners(cell.long(), frac, multiplier, hashed)
        entries = table.index_select(0, (index % table.shape[0]).flatten()).view(*index.shape, features_per_level)
        features.append((entries * weight[..., None]).sum(0))
    return torch.cat(features, dim=1)


def _corners(cell: Tensor, frac: Tensor, multiplier: list[int], hashed: bool) -> tuple[Tensor, Tensor]:
    """Indices (before the modulo) and weights of the 2^D corners: cell, frac [N, D] -> [2^D, N] each."""
    indices, weights = [], []
    for corner in range(1 << cell.shape[1]):
        upper = [corner >> axis & 1 for axis in range(cell.shape[1])]
        terms = [(cell[:, d] + upper[d]) * multiplier[d] for d in range(cell.shape[1])]
        if hashed:
            indices.append(reduce(torch.bitwise_xor, terms) & 0xFFFFFFFF)
        else:
            indices.append(reduce(torch.add, terms))
        weights.append(reduce(torch.mul, [frac[:, d] if upper[d] else 1 - frac[:, d] for d in range(cell.shape[1])]))
    return torch.stack(indices), torch.stack(weights)


# ---------------------------------------------------------------- numba


class _NumbaEncoding(torch.autograd.Function):
    """x [D, N], layouts ((num_dims, Levels), ...), a flat parameter vector each -> [C, N], the encodings' sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layouts: tuple[tuple[int, Levels], ...], *params: Tensor) -> Tensor:
        ctx.layouts = layouts
        ctx.save_for_backward(x)
        out = torch.zeros(2 * len(layouts[0][1].scale), x.shape[1])
        for (dims, layout), vector in zip(layouts, params, strict=True):
            _run_numba("forward", x[:dims], vector, layout, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        gradients: list[Tensor | None] = []
        for (dims, layout), wanted in zip(ctx.layouts, ctx.needs_input_grad[2:], strict=True):
            total = torch.zeros(2 * int(layout.offset[-1])) if wanted else None
            if total is not None:
                _run_numba("backward", x[:dims], gradient, layout, total)
            gradients.append(total)
        return None, None, *gradients


def _run_numba(name: str, x: Tensor, source: Tensor, layout: Levels, target: Tensor) -> None:
    """Calls a kernel of hash_grid_cpu, which adds to target."""
    from fourdiffusion.ops import hash_grid_cpu

    num_threads = torch.get_num_threads()
    arrays = (layout.scale, layout.multiplier, layout.offset, layout.hashed)
    getattr(hash_grid_cpu, name)(x.numpy(), source.detach().numpy(), *arrays, target.numpy(), num_threads)
    if torch.get_num_threads() != num_threads:  # numba's start sets the number that torch's OpenMP library shares
        torch.set_num_threads(num_threads)
