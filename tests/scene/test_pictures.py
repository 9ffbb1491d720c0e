"""Scene folders and pictures of a small random scene: an opaque ball with random colours."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fourdiffusion.cameras import FOVY_DEG, orbit, rays
from fourdiffusion.errors import UserError
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.pictures import render_grid, render_orbit, write_pictures
from fourdiffusion.scene.renderer import OccupancyGrid, render
from fourdiffusion.scene.scene import Scene, load_scene, render_views, save_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

TIMES = torch.linspace(0, 1, 3)


def small_scene(seed: int = 0) -> Scene:
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4, per_level_scale=1.5)
    field = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=16), seed, backend="torch")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (field.space.params, field.spacetime.params):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    renderer = RendererConfig(num_samples=24, occupancy_resolution=8)
    occupancy = OccupancyGrid(renderer)
    occupancy.update(field.density, TIMES)
    return Scene(field, occupancy, renderer)


def test_saved_scene_gives_the_same_pictures(tmp_path: Path) -> None:
    scene, c2w = small_scene(), orbit(torch.tensor([0.0, 100.0]))
    rgb, opacity = render_views(scene, c2w, FOVY_DEG, TIMES[:2], 12)
    assert rgb.shape == (2, 3, 12, 12) and opacity.shape == (2, 1, 12, 12)
    save_scene(tmp_path / "scene", scene)
    for folder in (tmp_path, tmp_path / "scene"):
        again = load_scene(folder)
        assert again.renderer == scene.renderer
        torch.testing.assert_close(render_views(again, c2w, FOVY_DEG, TIMES[:2], 12)[0], rgb, atol=1e-4, rtol=0)


def test_pictures_are_those_of_the_renderer_on_white() -> None:
    scene, c2w = small_scene(), orbit(torch.tensor([30.0]), 10.0)
    rgb, opacity = render_views(scene, c2w, 50.0, TIMES[2:], 10)
    origins, directions = (value.reshape(-1, 3) for value in rays(c2w, 50.0, 10, 10))
    with torch.no_grad():
        out = render(scene.field, scene.occupancy, origins, directions, torch.ones(100), torch.ones(3), scene.renderer)
    torch.testing.assert_close(rgb[0], out.rgb.T.view(3, 10, 10))
    torch.testing.assert_close(opacity[0, 0], out.opacity.view(10, 10))
    assert opacity[0, 0, 5, 5] > 0.9 and (rgb >= 1 - opacity - 1e-6).all()  # what shines through is white


def test_orbit_turns_once_while_the_clip_plays_forward_and_back() -> None:
    scene = small_scene()
    video = render_orbit(scene, TIMES, 8, 16, 5.0)
    moments = [0, 0, 1, 1, 2, 2, 1, 1, 0, 0, 1, 1, 2, 2, 1, 1]
    c2w = orbit(torch.arange(16) * 22.5, 5.0)
    assert torch.equal(video, render_views(scene, c2w, FOVY_DEG, TIMES[moments], 8)[0])


def test_grid_is_azimuth_by_time() -> None:
    scene = small_scene()
    grid, azimuths = render_grid(scene, TIMES, 8, 4, 0.0)
    assert grid.shape == (4, 3, 3, 8, 8) and azimuths == [0, 90, 180, 270]
    assert torch.equal(grid[2, 1], render_views(scene, orbit(torch.tensor([180.0])), FOVY_DEG, TIMES[1:2], 8)[0][0])


def test_pictures_with_and_without_an_input(tmp_path: Path) -> None:
    scene = small_scene()
    written = write_pictures(tmp_path / "a", scene, torch.rand(3, 3, 12, 12), 8, orbit_pictures=4, num_azimuths=2)
    assert [path.name for path in written] == ["orbit.mp4", "contact_sheet.png", "input_view.png", "input_view.mp4"]
    assert all(path.is_file() for path in written)
    assert Image.open(written[1]).height > 2 * 128
    written = write_pictures(tmp_path / "b", scene, None, 8, orbit_pictures=4, num_azimuths=2)
    assert [path.name for path in written] == ["orbit.mp4", "contact_sheet.png"]


def test_what_is_no_scene_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_scene(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no scene"):
        load_scene(tmp_path)
    save_scene(tmp_path / "scene", small_scene())
    renderer = tmp_path / "scene" / "renderer.json"
    values = json.loads(renderer.read_text())
    for damage in ("{", json.dumps(values | {"colour": 1}), json.dumps(values | {"occupancy_resolution": 5})):
        renderer.write_text(damage)
        with pytest.raises(UserError, match="renderer.json.*fit it again"):
            load_scene(tmp_path)
    renderer.unlink()
    with pytest.raises(UserError, match="renderer.json is missing"):
        load_scene(tmp_path)
    renderer.write_text(json.dumps(values))
    (tmp_path / "scene" / "occupancy.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="occupancy.safetensors is damaged"):
        load_scene(tmp_path)
