"""The parameter layout of a hash grid: offsets of the levels and indexing of their entries."""

import math
from dataclasses import dataclass

import numpy as np

from fourdiffusion.ops.settings import HashGridConfig

PRIMES = (1, 2654435761, 805459861, 3674653429)


@dataclass(frozen=True)
class Levels:
    """The layout of L levels."""

    scale: np.ndarray  # float64 [L], the values of float32 arithmetic
    multiplier: np.ndarray  # uint32 [L, D]: strides of a dense level, primes of a hashed one
    offset: np.ndarray  # int64 [L + 1]: first entry of each level
    hashed: np.ndarray  # bool [L]


def levels(num_dims: int, config: HashGridConfig) -> Levels:
    """Return the table layout of a grid. Raises ValueError for invalid sizes."""
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
