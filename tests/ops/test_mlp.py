"""The tiled perceptron is the plain one."""

import torch

from fourdiffusion.ops import mlp


def test_equals_the_plain_perceptron_and_its_gradient(monkeypatch) -> None:
    monkeypatch.setattr(mlp, "TILE", 8)
    generator = torch.Generator().manual_seed(0)
    x, hidden, output = (torch.randn(shape, generator=generator) for shape in ((21, 6), (16, 6), (3, 16)))
    weights = torch.randn(21, 3, generator=generator)
    results = []
    for function in (mlp.perceptron, lambda x, hidden, output: (x @ hidden.t()).relu() @ output.t()):
        leaves = [value.clone().requires_grad_() for value in (x, hidden, output)]
        out = function(*leaves)
        (out * weights).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for tiled, plain in zip(*results, strict=True):
        torch.testing.assert_close(tiled, plain)


def test_gradient_in_double_and_no_points() -> None:
    generator = torch.Generator().manual_seed(1)
    leaves = [torch.randn(s, generator=generator).double().requires_grad_() for s in ((5, 4), (6, 4), (2, 6))]
    assert torch.autograd.gradcheck(mlp.perceptron, leaves)
    assert mlp.perceptron(torch.zeros(0, 4).double(), *leaves[1:]).shape == (0, 2)
