"""The hash grid on the CPU by numba kernels: float32, gradients of the parameters only."""

from typing import Any

import torch
from torch import Tensor

from fourdiffusion.ops.hash_grid.layout import Levels


class NumbaEncoding(torch.autograd.Function):
    """x [D, N], layouts ((num_dims, Levels), ...), a flat parameter vector each -> [C, N], the encodings' sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layouts: tuple[tuple[int, Levels], ...], *params: Tensor) -> Tensor:
        ctx.layouts = layouts
        ctx.save_for_backward(x)
        out = torch.zeros(2 * len(layouts[0][1].scale), x.shape[1])
        for (dims, layout), vector in zip(layouts, params, strict=True):
            _run_numba("forward", x[:dims], vector, layout, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        gradients: list[Tensor | None] = []
        for (dims, layout), wanted in zip(ctx.layouts, ctx.needs_input_grad[2:], strict=True):
            total = torch.zeros(2 * int(layout.offset[-1])) if wanted else None
            if total is not None:
                _run_numba("backward", x[:dims], gradient, layout, total)
            gradients.append(total)
        return None, None, *gradients


def _run_numba(name: str, x: Tensor, source: Tensor, layout: Levels, target: Tensor) -> None:
    """Calls a kernel of numba_kernels, which adds to target."""
    from fourdiffusion.ops.hash_grid import numba_kernels

    num_threads = torch.get_num_threads()
    arrays = (layout.scale, layout.multiplier, layout.offset, layout.hashed)
    getattr(numba_kernels, name)(x.numpy(), source.detach().numpy(), *arrays, target.numpy(), num_threads)
    if torch.get_num_threads() != num_threads:  # numba's start sets the number that torch's OpenMP library shares
        torch.set_num_threads(num_threads)
