"""Random streams that depend on (seed, rank, step) and on nothing else."""

import torch


def stream(seed: int, rank: int, step: int) -> torch.Generator:
    """Return the generator of one step of one process: a run that resumes draws what an uninterrupted one draws."""
    number = (seed * 1_000_003 + rank) * 1_000_000_007 + step
    return torch.Generator().manual_seed(number % 2**63)
