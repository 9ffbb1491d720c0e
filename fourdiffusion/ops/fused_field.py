"""The field sigma(x, t), rgb(x, t) of two hash grids and two MLPs as one operation on a CPU: float32, differentiable
once, in the parameters only. Equal to the torch operations up to rounding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.ops.hash_grid.layout import Levels
from fourdiffusion.ops.hash_grid.numba_backend import Layouts, encode_sum, table_gradients
from fourdiffusion.ops.parallel import run_jobs

CHUNK = 1 << 18  # points per pass without gradient: limits the memory of their features


@dataclass(frozen=True)
class FieldShape:
    """Settings of the field that are not in its parameters."""

    space: Levels
    spacetime: Levels
    radius: float
    blob_scale: float
    blob_std: float

    @property
    def layouts(self) -> Layouts:
        return ((3, self.space), (4, self.spacetime))


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
    x, t = x.detach().contiguous(), t.detach().contiguous()
    if torch.is_grad_enabled() and any(value.requires_grad for value in (space, spacetime, *mlps)):
        return _FusedField.apply(x, t, shape, space, spacetime, *mlps)
    parts = [
        _forward(part, part_t, shape, (space, spacetime), mlps, keep=False)[:2]
        for part, part_t in zip(x.split(CHUNK), t.split(CHUNK), strict=True)
    ]
    sigma, rgb = (torch.cat(values) if len(values) > 1 else values[0] for values in zip(*parts, strict=True))
    return sigma, rgb


def _forward(
    x: Tensor, t: Tensor, shape: FieldShape, grids: tuple[Tensor, ...], mlps: tuple[Tensor, ...], keep: bool
) -> tuple[Tensor, ...]:
    """Return sigma, rgb, and the saved tensors: unit [4, N], features [C, N], raw [N]."""
    from fourdiffusion.ops import field_kernels

    num_points = len(x)
    blocks = _blocks(num_points)
    unit = x.new_empty(4, num_points)
    run_jobs(
        lambda job: field_kernels.units(*blocks[job], x.numpy(), t.numpy(), shape.radius, unit.numpy()), len(blocks)
    )
    features = encode_sum(unit, shape.layouts, grids)
    hidden, output, split = _pack(mlps)
    raw, sigma = x.new_empty(num_points if keep else 0), x.new_empty(num_points)
    rgb = x.new_empty(num_points if len(mlps) == 4 else 0, 3)
    inputs = (x.numpy(), features.numpy(), shape.blob_scale, shape.blob_std, hidden, output, split)
    outputs = tuple(value.numpy() for value in (raw, sigma, rgb))
    run_jobs(lambda job: field_kernels.forward(*blocks[job], *inputs, *outputs), len(blocks))
    return sigma, rgb, unit, features, raw


def _blocks(num_points: int) -> list[tuple[int, int]]:
    """Return first and last (excluded) point of each job."""
    from fourdiffusion.ops.field_kernels import BLOCK

    return [(first, min(first + BLOCK, num_points)) for first in range(0, num_points, BLOCK)]


class _FusedField(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, t: Tensor, shape: FieldShape, space: Tensor, spacetime: Tensor, *mlps: Tensor
    ) -> tuple[Tensor, Tensor]:
        sigma, rgb, unit, features, raw = _forward(x, t, shape, (space, spacetime), mlps, keep=True)
        ctx.shape = shape
        ctx.save_for_backward(unit, features, raw, rgb, *mlps)
        return sigma, rgb

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, sigma_gradient: Tensor, rgb_gradient: Tensor) -> tuple[Tensor | None, ...]:
        from fourdiffusion.ops import field_kernels

        unit, features, raw, rgb, *mlps = ctx.saved_tensors
        hidden, output, split = _pack(mlps)
        blocks = _blocks(len(raw))
        features_gradient = torch.empty_like(features)
        hidden_gradients = np.zeros((len(blocks), *hidden.shape), np.float32)
        output_gradients = np.zeros((len(blocks), *output.shape), np.float32)
        slopes = (sigma_gradient.contiguous().numpy(), rgb_gradient.contiguous().numpy())
        inputs = (features.numpy(), raw.numpy(), rgb.numpy(), *slopes, hidden, output, split, features_gradient.numpy())

        def work(job: int) -> None:
            field_kernels.backward(*blocks[job], *inputs, hidden_gradients[job], output_gradients[job])

        run_jobs(work, len(blocks))
        tables = table_gradients(unit, features_gradient, ctx.shape.layouts, ctx.needs_input_grad[3:5])
        gradients = _unpack(hidden_gradients.sum(0), output_gradients.sum(0), split, mlps)
        return None, None, None, *tables, *gradients


def _pack(mlps: tuple[Tensor, ...] | list[Tensor]) -> tuple[np.ndarray, np.ndarray, int]:
    """Pack weights for field_kernels: hidden [H, C16], output [4, H], and the number of the density's rows."""
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
    """Convert packed gradients to gradients of the weights, the inverse of ``_pack``."""
    gradients = []
    for start, rows, into in zip((0, split), (slice(0, 1), slice(1, 4)), mlps[::2], strict=False):
        gradients.append(torch.from_numpy(hidden[start : start + len(into), : into.shape[1]].copy()))
        gradients.append(torch.from_numpy(output[rows, start : start + len(into)].copy()))
    return gradients
