"""The hash grid by tiny-cuda-nn, in float32, on the flat parameters of the torch twin.

What differs from the twin: each level's scale comes from the GPU's fast exp2 and may be off by some 2^-22 of itself (at
4096 cells a thousandth of a cell), and gradients of the parameters are summed by atomics in no fixed order, so that two
runs differ in the last bits.
"""

from dataclasses import astuple
from functools import cache

import tinycudann
import torch
from torch import Tensor, nn

from fourdiffusion.ops.hash_grid.layout import levels
from fourdiffusion.ops.settings import HashGridConfig


def encode(x: Tensor, params: Tensor, num_dims: int, sizes: tuple[int, int, int, int, float]) -> Tensor:
    """x [N, num_dims] in [0, 1] (clamped), N > 0, params flat, both float32 on a GPU -> [N, C]; gradients reach both.

    For N = 0 the library leaves the gradient's memory as it found it. ``sizes`` are the fields of a HashGridConfig.
    """
    # The library does not clamp. Its module is run on our parameters: it has none of its own.
    return torch.func.functional_call(_encoding(num_dims, *sizes), {"params": params}, (x.clamp(0, 1),))


def trial() -> float:
    """A tiny forward and backward pass on the GPU: the largest difference from what it must give."""
    config = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    params = torch.ones(2 * int(levels(3, config).offset[-1]), device="cuda", requires_grad=True)
    features = encode(torch.rand(8, 3, device="cuda"), params, 3, astuple(config))
    features.sum().backward()
    assert params.grad is not None
    # The shares of a cell's corners add up to one: so do all features, and each sends its gradient on in full.
    return max(float((features - 1).abs().max()), abs(float(params.grad.sum()) - features.numel()))


@cache
def _encoding(
    num_dims: int, num_levels: int, features_per_level: int, log2_hashmap_size: int, base_resolution: int, growth: float
) -> nn.Module:
    """The library's module of these sizes. It keeps nothing from one call to the next, so equal grids share it."""
    config = {
        "otype": "HashGrid",
        "n_levels": num_levels,
        "n_features_per_level": features_per_level,
        "log2_hashmap_size": log2_hashmap_size,
        "base_resolution": base_resolution,
        "per_level_scale": growth,
        "interpolation": "Linear",
    }
    # Half precision is its default; in float32 it scales no gradient.
    encoding = tinycudann.Encoding(num_dims, config, dtype=torch.float32)
    encoding.params = nn.Parameter(torch.empty(0), requires_grad=False)
    return encoding
