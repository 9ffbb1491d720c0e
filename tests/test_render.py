"""The verb `render` on a small random scene."""

from pathlib import Path

import av
import pytest
import torch

from fourdiffusion.errors import UserError
from fourdiffusion.files import save_tensors
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.render import render
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, save_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig
from fourdiffusion.settings import RenderConfig


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as fit leaves it, with a scene that nobody fitted."""
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    renderer = RendererConfig(num_samples=16, occupancy_resolution=8)
    field = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8), backend="torch")
    save_scene(tmp_path / "run" / "scene", Scene(field, OccupancyGrid(renderer), renderer))
    return tmp_path / "run"


def config(scene: Path, output: Path | None = None) -> RenderConfig:
    where = str(output) if output else None
    return RenderConfig(str(scene), where, size=16, orbit_pictures=6, num_azimuths=2, num_frames=3, device="cpu")


def test_render_writes_the_pictures_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tensors(run / "input.safetensors", {"rgba": torch.rand(3, 4, 16, 16), "times": torch.linspace(0, 1, 3)}, {})
    render(config(run))
    names = {"orbit.mp4", "contact_sheet.png", "input_view.png", "input_view.mp4"}
    assert names == {path.name for path in run.iterdir()} - {"scene", "input.safetensors"}
    assert str(run / "orbit.mp4") in capsys.readouterr().out
    with av.open(str(run / "orbit.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_render_of_a_bare_scene_folder_into_another_one(run: Path, tmp_path: Path) -> None:
    render(config(run / "scene", tmp_path / "pictures"))
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"orbit.mp4", "contact_sheet.png"}
    assert {path.name for path in run.iterdir()} == {"scene"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scene": "nowhere"}, "nowhere: no such folder"),
        ({"size": 0}, "size=0 is too small"),
        ({"orbit_pictures": 0}, "orbit_pictures=0"),
        ({"elevation_deg": 90.0}, "elevation_deg=90.0"),
        ({"device": "tpu9"}, "device=tpu9"),
    ],
)
def test_wrong_settings_are_named(run: Path, change: dict, message: str) -> None:
    settings = config(run)
    for name, value in change.items():
        setattr(settings, name, value)
    with pytest.raises(UserError, match=message):
        render(settings)
    assert {path.name for path in run.iterdir()} == {"scene"}


def test_a_folder_that_is_no_scene_and_an_input_that_is_none(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no scene"):
        render(config(tmp_path / "empty"))
    save_tensors(run / "input.safetensors", {"rgba": torch.rand(3, 4, 16, 16)}, {})
    with pytest.raises(UserError, match="lacks times"):
        render(config(run))
