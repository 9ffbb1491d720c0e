"""The hash grid on the CPU by numba kernels: float32, gradients of the parameters only."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.ops.hash_grid.layout import Levels
from fourdiffusion.ops.parallel import run_jobs

BLOCK = 4096  # points a job of the forward pass: a level's table is read from cache many times over


class NumbaEncoding(torch.autograd.Function):
    """x [D, N], layouts ((num_dims, Levels), ...), a flat parameter vector each -> [C, N], the encodings' sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layouts: tuple[tuple[int, Levels], ...], *params: Tensor) -> Tensor:
        from fourdiffusion.ops.hash_grid import numba_kernels

        ctx.layouts = layouts
        ctx.save_for_backward(x)
        num_points = x.shape[1]
        out = torch.empty(2 * len(layouts[0][1].scale), num_points)
        points, features, tables = x.numpy(), out.numpy(), [table_of(vector) for vector in params]

        def work(block: int) -> None:
            first, last = block * BLOCK, min((block + 1) * BLOCK, num_points)
            for number, ((dims, layout), table) in enumerate(zip(layouts, tables, strict=True)):
                target = features[:, first:last]
                numba_kernels.encode(points[:dims], table, arrays_of(layout), first, last, number > 0, target)

        run_jobs(work, -(-num_points // BLOCK))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, None, *table_gradients(x, gradient.contiguous(), ctx.layouts, ctx.needs_input_grad[2:])


def table_gradients(
    x: Tensor, gradient: Tensor, layouts: tuple[tuple[int, Levels], ...], wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of the flat parameters of grids from the gradient [C, N] of their sum at x [D, N]; None if not wanted.

    One job a level: a level's entries are added up by one thread, in the order of the points.
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
    jobs.sort(key=lambda job: -len(job[0]))  # the dear ones first: the others fill the end

    def work(job: int) -> None:
        part, levels, level, table = jobs[job]
        numba_kernels.scatter(part, slope, levels, level, table)

    run_jobs(work, len(jobs))
    return sums


def arrays_of(layout: Levels) -> tuple[np.ndarray, ...]:
    """A layout as the kernels take it."""
    return layout.scale, layout.multiplier, layout.offset, layout.hashed


def table_of(params: Tensor) -> np.ndarray:
    """A flat parameter vector as the kernels take it: two float32 in each float64, memory shared."""
    return params.detach().numpy().view(np.float64)
