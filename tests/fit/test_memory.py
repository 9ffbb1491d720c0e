"""The memory model of the torch grids counts what autograd keeps, and refuses with figures."""

from types import SimpleNamespace

import pytest
import torch
from test_presets import composed

from fourdiffusion.errors import UserError
from fourdiffusion.fit.memory import bytes_of_a_step, check_memory
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import analytic_normals
from fourdiffusion.scene.settings import FieldConfig

TORCH, CUDA = {"grid_backend": "torch"}, torch.device("cuda")


def kept(analytic: bool) -> float:
    """Return the bytes a sample that autograd keeps of the published field, whose tables are shortened."""
    grid = HashGridConfig(log2_hashmap_size=10)
    field, count = DynamicField(FieldConfig(space=grid, spacetime=grid), backend="torch"), 200
    known = {value.untyped_storage().data_ptr() for value in field.parameters()}
    held: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        alive.append(value)
        return value

    x, t = torch.rand(count, 3), torch.rand(count)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        if analytic:
            analytic_normals(field.density, x, t)
        else:
            field(x, t)
    return sum(size for pointer, size in held.items() if pointer not in known) / count


def test_the_model_is_what_autograd_keeps() -> None:
    config = composed("experiment=released", "loss.lambda_orientation=0", "sds.ray_chunk=1000")
    samples = 256 / 1.732
    assert bytes_of_a_step(config) == pytest.approx(1000 * samples * kept(False), rel=0.1)
    config = composed("experiment=released", "sds.ray_chunk=1000")
    assert bytes_of_a_step(config) == pytest.approx(1000 * samples * (kept(False) + kept(True)), rel=0.1)


def test_a_gpu_that_cannot_hold_a_step_is_refused_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("experiment=released")
    properties = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with pytest.raises(
        UserError, match=r"needs about 2\d\d GiB .* GPU has 24: install tinycudann .* sds.ray_chunk=4096$"
    ):
        check_memory(config, TORCH, CUDA)
    config.sds.ray_chunk = 4096
    check_memory(config, TORCH, CUDA)
    config.sds.ray_chunk = 0
    check_memory(config, {"grid_backend": "tinycudann"}, CUDA)
    check_memory(config, TORCH, torch.device("cpu"))
