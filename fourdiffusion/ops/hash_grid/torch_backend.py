"""The hash grid in eager torch: any device and float type, differentiable in the points too."""

from functools import reduce

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.ops.hash_grid.layout import Levels


def encode(x: Tensor, params: Tensor, layout: Levels, features_per_level: int) -> Tensor:
    """Encode x [N, D] in [0, 1], params flat -> [N, L * features_per_level]."""
    sizes = np.diff(layout.offset).tolist()
    tables = params.view(-1, features_per_level).split(sizes)
    features = []
    for table, scale, multiplier, hashed in zip(
        tables, layout.scale.tolist(), layout.multiplier.tolist(), layout.hashed.tolist(), strict=True
    ):
        # In double and rounded once, like tiny-cuda-nn's fused multiply-add.
        position = (x.clamp(0, 1).double() * scale + 0.5).to(params.dtype)
        cell = position.detach().floor()
        frac = position - cell
        index, weight = _corners(cell.long(), frac, multiplier, hashed)
        entries = table.index_select(0, (index % table.shape[0]).flatten()).view(*index.shape, features_per_level)
        features.append((entries * weight[..., None]).sum(0))
    return torch.cat(features, dim=1)


def _corners(cell: Tensor, frac: Tensor, multiplier: list[int], hashed: bool) -> tuple[Tensor, Tensor]:
    """Return indices (before the modulo) and weights of the 2^D corners: cell, frac [N, D] -> [2^D, N] each."""
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
