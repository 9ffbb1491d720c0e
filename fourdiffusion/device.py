"""Choose the device, and measure its fastest matrix-product type."""

import time
from functools import cache

import torch

from fourdiffusion.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Return the device ``name``: cpu, cuda, cuda:N, or auto for a GPU if there is one. UserError for other names."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = UserError(f"device={name} is unknown: choose auto, cpu or cuda")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown from error
    if device.type not in ("cpu", "cuda"):
        raise unknown
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}, but torch sees no CUDA GPU: choose device=cpu")
    return device


@cache
def bf16_is_faster(device: torch.device) -> bool:
    """Return whether matrix products in bfloat16 take less than 0.8 of the time of float32 on a device.

    Measured once per process, in at most a second: CPU flags do not tell, since libraries also have slow paths for
    bfloat16, a hundred times slower than float32 on some processors.
    """
    seconds = {dtype: _seconds_of_product(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def _seconds_of_product(device: torch.device, dtype: torch.dtype) -> float:
    """Return the shortest time of several runs: the first is a warm-up, and other processes slow some down."""
    a = torch.ones(256, 256, device=device, dtype=dtype)
    spent, shortest = 0.0, float("inf")
    for _ in range(20):
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for a GPU
        took = time.perf_counter() - began
        spent, shortest = spent + took, min(shortest, took)
        if spent > 0.2:
            break
    return shortest
