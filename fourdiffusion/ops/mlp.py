"""A perceptron with one hidden layer and without biases, for millions of points."""

from typing import Any

import torch
from torch import Tensor

TILE = 4096  # points whose hidden layer is held at a time: it stays in cache


def perceptron(x: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    """relu(x @ hidden.T) @ output.T: x [N, C], hidden [H, C], output [O, H] -> [N, O].

    On a CPU the hidden layer is made tile by tile and made again in the backward pass. It never travels to main memory,
    which is several times faster for the narrow layers of a field; such a call can be differentiated once.
    """
    if x.device.type == "cpu":
        return _TiledPerceptron.apply(x, hidden, output)
    return (x @ hidden.t()).relu() @ output.t()


class _TiledPerceptron(torch.autograd.Function):
    # Results and the gradient of x are stored feature by feature, as the hash grid's CPU path wants them. The tiles'
    # buffers are made once: fresh memory would cost more than the arithmetic.

    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(x, hidden, output)
        result = x.new_empty(output.shape[0], x.shape[0]).t()
        buffer = x.new_empty(min(TILE, x.shape[0]), hidden.shape[0])
        for part, out in zip(x.split(TILE), result.split(TILE), strict=True):
            layer = torch.mm(part, hidden.t(), out=buffer[: len(part)]).relu_()
            torch.mm(layer, output.t(), out=out)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gradient [N, O] -> gradients of x and of both weights, tile by tile; the hidden layer is computed again."""
        x, hidden, output = ctx.saved_tensors
        x_gradient = x.new_empty(x.shape[1], x.shape[0]).t()
        hidden_gradient, output_gradient = torch.zeros_like(hidden), torch.zeros_like(output)
        buffers = x.new_empty(2, min(TILE, x.shape[0]), hidden.shape[0])
        parts = zip(x.split(TILE), gradient.split(TILE), x_gradient.split(TILE), strict=True)
        for part, part_gradient, out in parts:
            layer, layer_gradient = buffers[:, : len(part)]
            torch.mm(part, hidden.t(), out=layer).relu_()
            output_gradient.addmm_(part_gradient.t(), layer)
            torch.mm(part_gradient, output, out=layer_gradient)
            torch.ops.aten.threshold_backward.grad_input(layer_gradient, layer, 0, grad_input=layer_gradient)
            hidden_gradient.addmm_(layer_gradient.t(), part)
            torch.mm(layer_gradient, hidden, out=out)
        return x_gradient, hidden_gradient, output_gradient
