"""Random streams that depend only on (seed, rank, step)."""

import torch


def stream(seed: int, rank: int, step: int) -> torch.Generator:
    """Return the generator of one step of one process: a resumed run has the same draws as an uninterrupted one."""
    number = (seed * 1_000_003 + rank) * 1_000_000_007 + step
    return torch.Generator().manual_seed(number % 2**63)
