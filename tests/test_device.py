"""Which type a device multiplies fastest is measured, once."""

import time

import torch

from fourdiffusion.device import bf16_is_faster

CPU = torch.device("cpu")


def test_bf16_speed_is_what_larger_products_show_and_measured_once() -> None:
    faster = bf16_is_faster(CPU)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(384, 384, dtype=dtype)
        seconds[dtype] = min(_clock(a) for _ in range(3))
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    if not 0.5 < ratio < 1.3:  # beside other processes a near tie says nothing
        assert faster == (ratio < 0.8)
    began = time.perf_counter()
    assert bf16_is_faster(CPU) == faster and time.perf_counter() - began < 1e-3


def _clock(a: torch.Tensor) -> float:
    began = time.perf_counter()
    a @ a
    return time.perf_counter() - began
