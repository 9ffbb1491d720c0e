"""The field sigma(x, t), rgb(x, t) of two hash grids and two MLPs as one operation on a CPU: float32, differentiable
once, in the parameters only. Numbers as the torch operations give them, to rounding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.ops.hash_grid.layout import Levels
from fourdiffusion.ops.hash_grid.numba_backend import arrays_of, table_gradients, table_of
from fourdiffusion.ops.parallel import run_jobs


@dataclass(frozen=True)
class FieldShape:
    """What the parameters do not say."""

    space: Levels
    spacetime: Levels
    radius: float
    blob_scale: float
    blob_std: float


def fused_field(
    x: Tensor, t: Tensor, shape: FieldShape, space: Tensor, spacetime: Tensor, density: tuple[Tensor, Tensor],
    color: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x [N, 3], t [N] -> sigma [N] and rgb [N, 3], or [0, 3] without ``color``.

    Args:
        space, spacetime: flat parameters of the grids of 3 and 4 dimensions.
        density, color: hidden [H, C] and output [1 or 3, H] weights of an MLP.
    """
    mlps = density if color is None else (*density, *color)
    # Whether anything is kept for the backward pass: inside a Function torch does not say.
    keep = torch.is_grad_enabled() and any(value.requires_grad for value in (space, spacetime, *mlps))
    return _FusedField.apply(x.detach().contiguous(), t.detach().contiguous(), shape, keep, space, spacetime, *mlps)


class _FusedField(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, t: Tensor, shape: FieldShape, keep: bool, space: Tensor, spacetime: Tensor, *mlps: Tensor
    ) -> tuple[Tensor, Tensor]:
        from fourdiffusion.ops import field_kernels

        num_points, channels = len(x), 2 * len(shape.space.scale)
        hidden, output, split = _pack(mlps)
        kept = num_points if keep else 0
        unit, features, raw = x.new_empty(4, kept), x.new_empty(channels, kept), x.new_empty(kept)
        sigma, rgb = x.new_empty(num_points), x.new_empty(num_points if len(mlps) == 4 else 0, 3)
        sizes = (shape.radius, shape.blob_scale, shape.blob_std)
        grids = (table_of(space), arrays_of(shape.space), table_of(spacetime), arrays_of(shape.spacetime))
        outputs = tuple(value.numpy() for value in (unit, features, raw, sigma, rgb))
        inputs = (x.numpy(), t.numpy())

        def work(block: int) -> None:
            first = block * field_kernels.BLOCK
            last = min(first + field_kernels.BLOCK, num_points)
            field_kernels.forward(first, last, *inputs, *sizes, *grids, hidden, output, split, *outputs)

        run_jobs(work, -(-num_points // field_kernels.BLOCK))
        ctx.shape = shape
        ctx.save_for_backward(unit, features, raw, rgb, *mlps)
        return sigma, rgb

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, sigma_gradient: Tensor, rgb_gradient: Tensor) -> tuple[Tensor | None, ...]:
        from fourdiffusion.ops import field_kernels

        unit, features, raw, rgb, *mlps = ctx.saved_tensors
        num_points = len(raw)
        hidden, output, split = _pack(mlps)
        blocks = -(-num_points // field_kernels.BLOCK)
        features_gradient = torch.empty_like(features)
        hidden_gradients = np.zeros((blocks, *hidden.shape), np.float32)
        output_gradients = np.zeros((blocks, *output.shape), np.float32)
        slopes = (sigma_gradient.contiguous().numpy(), rgb_gradient.contiguous().numpy())
        kept = (features.numpy(), raw.numpy(), rgb.numpy())
        target = features_gradient.numpy()

        def work(block: int) -> None:
            first = block * field_kernels.BLOCK
            last = min(first + field_kernels.BLOCK, num_points)
            sums = hidden_gradients[block], output_gradients[block]
            field_kernels.backward(first, last, *kept, *slopes, hidden, output, split, target, *sums)

        run_jobs(work, blocks)
        layouts = ((3, ctx.shape.space), (4, ctx.shape.spacetime))
        tables = table_gradients(unit, features_gradient, layouts, ctx.needs_input_grad[4:6])
        gradients = _unpack(hidden_gradients.sum(0), output_gradients.sum(0), split, mlps)
        return None, None, None, None, *tables, *gradients


def _pack(mlps: tuple[Tensor, ...] | list[Tensor]) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights as field_kernels wants them: hidden [H, C16], output [4, H], and the number of the density's rows."""
    from fourdiffusion.ops.field_kernels import LANES, ROWS

    channels = mlps[0].shape[1]
    starts = np.cumsum([0] + [-(-len(weights) // ROWS) * ROWS for weights in mlps[::2]])
    hidden = np.zeros((starts[-1], -(-channels // LANES) * LANES), np.float32)
    output = np.zeros((4, starts[-1]), np.float32)
    for start, rows, into, outof in zip(starts, (slice(0, 1), slice(1, 4)), mlps[::2], mlps[1::2], strict=False):
        hidden[start : start + len(into), :channels] = into.detach().numpy()
        output[rows, start : start + len(into)] = outof.detach().numpy()
    return hidden, output, int(starts[1])


def _unpack(hidden: np.ndarray, output: np.ndarray, split: int, mlps: list[Tensor]) -> list[Tensor]:
    """Gradients in the places of ``_pack`` as those of the weights."""
    gradients = []
    for start, rows, into in zip((0, split), (slice(0, 1), slice(1, 4)), mlps[::2], strict=False):
        gradients.append(torch.from_numpy(hidden[start : start + len(into), : into.shape[1]].copy()))
        gradients.append(torch.from_numpy(output[rows, start : start + len(into)].copy()))
    return gradients
