"""The hash grid on the CPU by numba kernels: float32, gradients of the parameters only."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.ops.hash_grid.layout import Levels
from fourdiffusion.ops.parallel import run_jobs

SEGMENT = 1 << 16  # points per job of the forward pass: enough to reuse a level's table in the cache many times

Layouts = tuple[tuple[int, Levels], ...]  # (num_dims, layout) of each grid


class NumbaEncoding(torch.autograd.Function):
    """Sum of encodings: x [D, N], layouts, one flat parameter vector per grid -> [C, N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layouts: Layouts, *params: Tensor) -> Tensor:
        ctx.layouts = layouts
        ctx.save_for_backward(x)
        return encode_sum(x, layouts, params)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, None, *table_gradients(x, gradient.contiguous(), ctx.layouts, ctx.needs_input_grad[2:])


def encode_sum(x: Tensor, layouts: Layouts, params: tuple[Tensor, ...]) -> Tensor:
    """Return the sum of the grids' features [C, N] at x [D, N]; each grid uses the first coordinates."""
    from fourdiffusion.ops.hash_grid import numba_kernels

    num_levels, num_points = len(layouts[0][1].scale), x.shape[1]
    out = torch.empty(2 * num_levels, num_points)
    points, features = x.numpy(), out.numpy()
    grids = [
        (points[:dims], table_of(vector), arrays_of(layout))
        for (dims, layout), vector in zip(layouts, params, strict=True)
    ]
    segments = -(-num_points // SEGMENT)

    def work(job: int) -> None:
        level, first = job // segments, job % segments * SEGMENT
        last = min(first + SEGMENT, num_points)
        for number, (part, table, levels) in enumerate(grids):
            numba_kernels.encode(part, table, levels, level, first, last, number > 0, features)

    run_jobs(work, num_levels * segments)
    return out


def table_gradients(x: Tensor, gradient: Tensor, layouts: Layouts, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Return gradients of the grids' parameters from the gradient [C, N] of their sum at x [D, N]; None if not needed.

    One job per level: one thread sums a level's entries, in the order of the points.
    """
    from fourdiffusion.ops.hash_grid import numba_kernels

    sums = [
        torch.zeros(2 * int(layout.offset[-1])) if want else None
        for (_, layout), want in zip(layouts, wanted, strict=True)
    ]
    points, slope = x.numpy(), gradient.numpy()
    jobs = [
        (points[:dims], arrays_of(layout), level, table_of(total))
        for (dims, layout), total in zip(layouts, sums, strict=True)
        if total is not None
        for level in range(len(layout.scale))
    ]
    jobs.sort(key=lambda job: -len(job[0]))  # the expensive jobs first, for load balance

    def work(job: int) -> None:
        part, levels, level, table = jobs[job]
        numba_kernels.scatter(part, slope, levels, level, table)

    run_jobs(work, len(jobs))
    return sums


def arrays_of(layout: Levels) -> tuple[np.ndarray, ...]:
    """Return a layout as the kernels' arguments."""
    return layout.scale, layout.multiplier, layout.offset, layout.hashed


def table_of(params: Tensor) -> np.ndarray:
    """Return a view of a flat parameter vector for the kernels: two float32 in each float64."""
    return params.detach().numpy().view(np.float64)
