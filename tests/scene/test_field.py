"""The dynamic field: shape of the blob, gradients, and its folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fourdiffusion.errors import UserError
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import CONFIG_FILE, WEIGHTS_FILE, DynamicField
from fourdiffusion.scene.settings import FieldConfig

GRID = HashGridConfig(num_levels=3, log2_hashmap_size=8, base_resolution=4, per_level_scale=1.5)


def tiny(seed: int = 0) -> DynamicField:
    return DynamicField(FieldConfig(space=GRID, spacetime=GRID, hidden_width=8), seed=seed)


def places(num_points: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_points, 3, generator=generator) * 2 - 1, torch.rand(num_points, generator=generator)


def test_a_new_field_is_the_blob() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, -1.0, 0.0]])
    sigma, rgb = tiny()(x, torch.zeros(3))
    torch.testing.assert_close(sigma, torch.nn.functional.softplus(torch.tensor([10.0, 0.0, -10.0])), rtol=0, atol=1e-3)
    torch.testing.assert_close(rgb, torch.full((3, 3), 0.5), rtol=0, atol=1e-3)


def test_density_alone_is_the_density() -> None:
    x, t = places()
    scene = tiny()
    sigma, rgb = scene(x, t)
    torch.testing.assert_close(scene.density(x, t), sigma)
    assert sigma.shape == (50,) and rgb.shape == (50, 3)


def test_time_matters_and_every_parameter_gets_a_finite_gradient() -> None:
    x, t = places(500)
    scene = tiny()
    for grid in (scene.space, scene.spacetime):
        grid.params.data *= 1e4
    sigma, rgb = scene(x, t)
    assert not torch.allclose(sigma, scene.density(x, 1 - t))
    (sigma.sum() + rgb.square().sum()).backward()
    for name, parameter in scene.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_backends_agree() -> None:
    x, t = places(300)
    config = FieldConfig(space=GRID, spacetime=GRID, hidden_width=8)
    results = []
    for backend in ("torch", "numba"):
        scene = DynamicField(config, seed=1, backend=backend)
        for grid in (scene.space, scene.spacetime):
            grid.params.data *= 1e3
        sigma, rgb = scene(x, t)
        (sigma.mean() + rgb.mean()).backward()
        results.append([sigma.detach(), rgb.detach(), *(parameter.grad for parameter in scene.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_gradients_in_double() -> None:
    scene = tiny().double()
    x, t = (value[:2].double() for value in places())
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scene(x, t), (x,))


def test_parameter_groups_hold_every_parameter_once() -> None:
    scene = tiny()
    grids, mlps = scene.parameter_groups()
    assert (grids["lr"], mlps["lr"]) == (1e-2, 1e-3)
    grouped = [*grids["params"], *mlps["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in scene.parameters()} and len(grouped) == 6


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    scene, (x, t) = tiny(seed=4), places()
    for _ in range(2):  # saving over a scene is allowed
        scene.save(tmp_path / "a" / "scene")
    again = DynamicField.load(tmp_path / "a" / "scene", backend="torch")
    assert again.config == scene.config
    for (name, ours), theirs in zip(scene.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    torch.testing.assert_close(again.density(x, t), scene.density(x, t))
    assert sorted(path.name for path in (tmp_path / "a" / "scene").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (CONFIG_FILE, None, "not a scene"),
        (CONFIG_FILE, "{", "not valid JSON"),
        (CONFIG_FILE, "[]", "not a scene's configuration"),
        (CONFIG_FILE, '{"_class_name": "AutoencoderKL"}', "AutoencoderKL"),
        (CONFIG_FILE, '{"_class_name": "DynamicField", "radius": 1.0}', "not a scene's configuration"),
        (WEIGHTS_FILE, None, "not a complete scene"),
        (WEIGHTS_FILE, "rubbish", "does not hold the weights"),
    ],
)
def test_a_folder_that_is_no_scene(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    tiny().save(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        DynamicField.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_bad_values_in_the_folder(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    for key, value in (("hidden_width", "wide"), ("hidden_width", 0), ("surprise", 1)):
        (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match="not a scene's configuration"):
            DynamicField.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    save_file({"space.params": torch.zeros(3)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(UserError, match="does not hold the weights"):
        DynamicField.load(tmp_path)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[5, 2\]"):
        tiny()(torch.zeros(5, 2), torch.zeros(5))
    with pytest.raises(ValueError, match="same num_levels"):
        DynamicField(FieldConfig(space=GRID, spacetime=HashGridConfig(num_levels=4, log2_hashmap_size=8)))
