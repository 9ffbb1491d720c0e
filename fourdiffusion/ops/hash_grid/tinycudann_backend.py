"""The hash grid by tiny-cuda-nn, in float32, on the flat parameters of the torch backend.

Differences from the torch backend: each level's scale is computed with the GPU's fast exp2, with a relative error of
about 2^-22 (at 4096 cells a thousandth of a cell), and gradients of the parameters are summed by atomics in no fixed
order, so two runs differ in the last bits.
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

    For N = 0 the library does not initialize the gradient. ``sizes`` are the fields of a HashGridConfig.
    """
    # The library does not clamp. Its module runs with the given parameters and has none of its own.
    return torch.func.functional_call(_encoding(num_dims, *sizes), {"params": params}, (x.clamp(0, 1),))


def trial() -> float:
    """Run a tiny forward and backward pass on the GPU; return the largest difference from the expected result."""
    config = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    params = torch.ones(2 * int(levels(3, config).offset[-1]), device="cuda", requires_grad=True)
    features = encode(torch.rand(8, 3, device="cuda"), params, 3, astuple(config))
    features.sum().backward()
    assert params.grad is not None
    # The weights of a cell's corners sum to one, so all features are one and each passes its full gradient.
    return max(float((features - 1).abs().max()), abs(float(params.grad.sum()) - features.numel()))


@cache
def _encoding(
    num_dims: int, num_levels: int, features_per_level: int, log2_hashmap_size: int, base_resolution: int, growth: float
) -> nn.Module:
    """Return the library's module of these sizes. It is stateless, so equal grids share it."""
    config = {
        "otype": "HashGrid",
        "n_levels": num_levels,
        "n_features_per_level": features_per_level,
        "log2_hashmap_size": log2_hashmap_size,
        "base_resolution": base_resolution,
        "per_level_scale": growth,
        "interpolation": "Linear",
    }
    # The default is half precision; in float32 it does not scale gradients.
    encoding = tinycudann.Encoding(num_dims, config, dtype=torch.float32)
    encoding.params = nn.Parameter(torch.empty(0), requires_grad=False)
    return encoding
