"""Settings of the ops. This module imports no torch."""

from dataclasses import dataclass


@dataclass
class HashGridConfig:
    """Names and defaults as in tiny-cuda-nn; these reach 16 -> 4096 cells a side."""

    num_levels: int = 16
    features_per_level: int = 2
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    per_level_scale: float = 1.447269237440378
