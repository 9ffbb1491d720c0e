"""The fused field against the torch operations: values and all gradients, for any number of threads."""

import pytest
import torch
from torch import Tensor

from fourdiffusion.ops import field_kernels
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.settings import FieldConfig

SIZES = {
    "tiny": FieldConfig(
        space=HashGridConfig(num_levels=8, log2_hashmap_size=12, per_level_scale=1.4),
        spacetime=HashGridConfig(num_levels=8, log2_hashmap_size=12, per_level_scale=1.4),
    ),
    "wide": FieldConfig(  # 32 features as published; a width that is no multiple of the blocks; another radius
        space=HashGridConfig(log2_hashmap_size=10),
        spacetime=HashGridConfig(log2_hashmap_size=11),
        hidden_width=30, radius=1.5, blob_scale=3.0, blob_std=0.9,
    ),
    "narrow": FieldConfig(  # 6 features
        space=HashGridConfig(num_levels=3, log2_hashmap_size=8, base_resolution=4),
        spacetime=HashGridConfig(num_levels=3, log2_hashmap_size=8, base_resolution=4),
        hidden_width=5,
    ),
}  # fmt: skip
CONFIGS = pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
NUM_POINTS = 2 * field_kernels.BLOCK + 77  # two blocks, tiles, and a part of one


def field_of(config: FieldConfig, backend: str) -> DynamicField:
    """A field whose features are of order one and whose densities are below and above one."""
    field = DynamicField(config, seed=1, backend=backend)
    for grid in (field.space, field.spacetime):
        grid.params.data *= 2e4
    return field


def points(radius: float, count: int = NUM_POINTS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(count, 3, generator=generator) * 2.2 - 1.1) * radius  # some outside
    return x, torch.rand(count, generator=generator)


def results(field: DynamicField, density_only: bool = False) -> dict[str, Tensor]:
    x, t = points(field.config.radius)
    generator = torch.Generator().manual_seed(2)
    slope, slopes = torch.randn(len(x), generator=generator), torch.randn(len(x), 3, generator=generator)
    if density_only:
        sigma = field.density(x, t)
        found = {"sigma": sigma.detach()}
        (sigma * slope).sum().backward()
    else:
        sigma, rgb = field(x, t)
        found = {"sigma": sigma.detach(), "rgb": rgb.detach()}
        ((sigma * slope).sum() + (rgb * slopes).sum()).backward()
    gradients = {name: p.grad.clone() for name, p in field.named_parameters() if p.grad is not None}
    field.zero_grad(set_to_none=True)
    return found | gradients


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@CONFIGS
@pytest.mark.parametrize("density_only", [False, True])
def test_equals_the_torch_operations(config: FieldConfig, density_only: bool) -> None:
    fused = results(field_of(config, "numba"), density_only)
    torch_twin = results(field_of(config, "torch"), density_only)
    assert fused.keys() == torch_twin.keys() and len(fused) == (5 if density_only else 8)
    for name, value in torch_twin.items():
        assert value.any() and difference(fused[name], value) < 1e-5, name


def test_goes_through_the_kernels_only_where_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = field_kernels.forward

    def counted(*arguments: object) -> object:
        calls.append(1)
        return forward(*arguments)

    monkeypatch.setattr(field_kernels, "forward", counted)
    field, (x, t) = field_of(SIZES["narrow"], "auto"), points(1.0, 50)
    field(x, t)
    field.density(x, t)
    with torch.no_grad():
        field.density(x.clone().requires_grad_(), t)
    assert len(calls) == 3
    field.density(x.clone().requires_grad_(), t)
    field(x[:0], t[:0])
    field.double()(x.double(), t.double())
    field_of(SIZES["narrow"], "torch")(x, t)
    assert len(calls) == 3


def test_no_gradient_keeps_nothing_and_changes_no_value() -> None:
    field, (x, t) = field_of(SIZES["tiny"], "numba"), points(1.0)
    sigma, rgb = field(x, t)
    with torch.no_grad():
        again, colors = field(x, t)
        alone = field.density(x, t)
    assert not again.requires_grad and sigma.requires_grad
    assert torch.equal(again, sigma) and torch.equal(colors, rgb) and torch.equal(alone, sigma)


def test_does_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3, 2):
            torch.set_num_threads(num_threads)
            found.append(results(field_of(SIZES["tiny"], "numba")))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(other[name], value), name


@pytest.mark.parametrize("frozen", ["space", "spacetime", "density_mlp", "colour_mlp"])
def test_frozen_parts_get_no_gradient_and_the_others_do(frozen: str) -> None:
    field, (x, t) = field_of(SIZES["narrow"], "numba"), points(1.0, 300)
    getattr(field, frozen).requires_grad_(False)
    sigma, rgb = field(x, t)
    (sigma.sum() + rgb.sum()).backward()
    without = {name.partition(".")[0] for name, parameter in field.named_parameters() if parameter.grad is None}
    assert without == {frozen}


def test_large_values_stay_finite_and_not_a_number_stays_visible() -> None:
    field, (x, t) = field_of(SIZES["narrow"], "numba"), points(1.0, 300)
    twin = field_of(SIZES["narrow"], "torch")
    for one in (field, twin):
        one.density_mlp.output.data *= 5000
        one.colour_mlp.output.data *= 5000
    (sigma, rgb), (twin_sigma, twin_rgb) = field(x, t), twin(x, t)
    assert twin_sigma.max() > 100 and twin_rgb.max() == 1
    torch.testing.assert_close(sigma, twin_sigma, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(rgb, twin_rgb, rtol=1e-3, atol=1e-4)
    field.density_mlp.hidden.data[0, 0] = float("nan")
    assert field.density(x, t).isnan().all()
