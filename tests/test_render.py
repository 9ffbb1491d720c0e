"""The verb `render` on a small random scene."""

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scene.test_pictures import small_scene

from fourdiffusion.cameras import FOVY_DEG, orbit
from fourdiffusion.errors import UserError
from fourdiffusion.files import save_tensors
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.render import parse_background, render
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.pictures import recorded_camera
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, load_scene, render_views, save_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig
from fourdiffusion.settings import RenderConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as written by fit, with a scene that was not fitted."""
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
        ({"path": "orbitt"}, "path=orbitt: there is no such path, did you mean orbit"),
        ({"path": "nowhere.json"}, "nowhere.json: missing"),
        ({"path": "still", "time": 1.5}, "time=1.5"),
        ({"path": "still", "channel": "heat"}, "channel=heat: use rgb"),
        ({"path": "still", "background": "pinkish"}, "background=pinkish"),
        ({"path": "orbit", "background": "transparent"}, "mp4 holds no transparency"),
        ({"path": "orbit", "format": "avi"}, "format=avi: use mp4"),
        ({"path": "orbit", "output": "a.gif", "format": "webm"}, "a webm file ends in .webm"),
        ({"path": "orbit", "fps": 0.0}, "fps=0.0 must be positive"),
        ({"path": "still", "distance": -1.0}, "distance=-1.0"),
        ({"path": "orbit", "turns": float("inf")}, "turns=inf"),
        ({"path": "still", "width": 0}, "width=0"),
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


TIMES = torch.linspace(0, 1, 3)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"rgba": torch.rand(0, 4, 16, 16), "times": torch.zeros(0)}, "times .* are not those of frames"),
        ({"rgba": torch.rand(3, 4, 16, 16), "times": TIMES * math.nan}, "times .* are not those of frames"),
        ({"rgba": torch.rand(3, 4, 16, 16), "times": TIMES + 1}, "times .* are not those of frames"),
        ({"rgba": torch.rand(2, 4, 16, 16), "times": TIMES}, "rgba .* are not square RGBA pictures of 3 frames"),
        ({"rgba": torch.rand(3, 4, 16, 8), "times": TIMES}, "rgba .* are not square RGBA pictures of 3 frames"),
        ({"rgba": torch.rand(3, 4, 0, 0), "times": TIMES}, "rgba .* are not square RGBA pictures of 3 frames"),
        ({"rgba": torch.full((3, 4, 16, 16), math.nan), "times": TIMES}, "rgba holds values that are not in"),
        ({"rgba": torch.full((3, 4, 16, 16), 255), "times": TIMES}, "rgba holds values that are not in"),
    ],
)
def test_an_input_that_is_damaged_is_named(run: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_tensors(run / "input.safetensors", tensors, {})
    with pytest.raises(UserError, match=message):
        render(config(run))
    assert {path.name for path in run.iterdir()} == {"scene", "input.safetensors"}


@pytest.mark.parametrize("fps", [math.nan, math.inf, -1, 0])
def test_a_path_says_how_fast_it_is(run: Path, tmp_path: Path, fps: float) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"frames": [{"azimuth_deg": 1}, {"azimuth_deg": 2}], "fps": fps}))
    settings = config(run)
    settings.path = str(tmp_path / "p.json")
    with pytest.raises(UserError, match=r"fps=.* give 0.1 to 1000"):
        render(settings)


@pytest.fixture
def solid(tmp_path: Path) -> Path:
    """A run with an opaque ball of random colors, whose clip has the times 0, 0.5 and 1."""
    save_scene(tmp_path / "solid" / "scene", small_scene())
    tensors = {"rgba": torch.rand(3, 4, 8, 8), "times": torch.linspace(0, 1, 3)}
    save_tensors(tmp_path / "solid" / "input.safetensors", tensors, {})
    return tmp_path / "solid"


def truth(run: Path, azimuth_deg: float, elevation_deg: float, time: float) -> np.ndarray:
    """The renderer's picture on white: uint8 [16, 16, 3]."""
    camera = orbit(torch.tensor([azimuth_deg]), elevation_deg)
    rgb, _ = render_views(load_scene(run), camera, FOVY_DEG, torch.tensor([time]), 16)
    return (rgb[0] * 255).round().movedim(0, -1).numpy().astype(np.uint8)


def shot(run: Path, **change: object) -> RenderConfig:
    return RenderConfig(str(run), device="cpu", **({"size": 16, "path": "still"} | change))  # type: ignore[arg-type]


def same(first: np.ndarray, second: np.ndarray, tolerance: int = 2) -> bool:
    return first.shape == second.shape and abs(first.astype(int) - second).max() <= tolerance


def test_a_still_from_anywhere_at_any_time(solid: Path) -> None:
    render(shot(solid, azimuth_deg=70.0, elevation_deg=-20.0, time=0.5))
    assert same(np.array(Image.open(solid / "render" / "still.png")), truth(solid, 70, -20, 0.5))
    # Times between the frames are those of the nearest frame, unless asked for.
    for between, time in ((False, 0.5), (True, 0.3)):
        render(shot(solid, time=0.3, between_frames=between))
        assert same(np.array(Image.open(solid / "render" / "still.png")), truth(solid, 0, 0, time))
    assert not same(truth(solid, 0, 0, 0.3), truth(solid, 0, 0, 0.5))


def test_a_still_with_alpha_composites_to_the_one_without(solid: Path, tmp_path: Path) -> None:
    render(shot(solid, background="transparent", output=str(tmp_path / "a.png"), width=16))
    rgba = np.array(Image.open(tmp_path / "a.png")) / 255
    assert rgba.shape == (16, 16, 4) and 0 < (rgba[..., 3] < 0.5).mean() < 1
    on_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    assert same((on_white * 255).round(), truth(solid, 0, 0, 0), 4)
    render(shot(solid, background="#ff0000", output=str(tmp_path / "b.png"), width=24))
    red = np.array(Image.open(tmp_path / "b.png"))
    assert red.shape == (16, 24, 3) and (red[0, 0] == [255, 0, 0]).all()
    assert same(red[:, 4:20], ((rgba[..., :3] * rgba[..., 3:] + [1, 0, 0] * (1 - rgba[..., 3:])) * 255).round(), 4)


@pytest.mark.parametrize("channel", ["alpha", "depth", "normal"])
def test_channels_are_named_in_the_file(solid: Path, channel: str) -> None:
    render(shot(solid, channel=channel))
    image = np.array(Image.open(solid / "render" / f"still_{channel}.png")).astype(int)
    ball, corner = image[8, 8], image[0, 0]
    if channel == "alpha":
        assert ball.min() > 240 and corner.max() < 60
    elif channel == "depth":
        assert 140 < ball.min() <= ball.max() < 220 and corner.max() < 60  # its front is nearer than the middle
    else:
        assert corner.min() > 200 and image[6:10, 6:10, 0].mean() > 160  # toward the camera at +x


def test_an_orbit_turns_at_one_time(solid: Path) -> None:
    render(shot(solid, path="orbit", time=1.0, format="png", seconds=1.0, fps=4.0, azimuth_deg=10.0, turns=-1.0))
    folder = solid / "render" / "orbit"
    assert sorted(path.name for path in folder.iterdir()) == [f"frame_{i:04d}.png" for i in range(4)]
    for index, azimuth in enumerate((10, -80, -170, -260)):
        assert same(np.array(Image.open(folder / f"frame_{index:04d}.png")), truth(solid, azimuth, 0, 1.0))
    with pytest.raises(UserError, match="is there already"):
        render(shot(solid, path="orbit", format="png"))


def test_videos_play_as_long_as_asked(solid: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "a.webm"):
        render(shot(solid, path="fixed", seconds=0.5, fps=10.0, output=str(tmp_path / name), size=32))
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.video[0]
            assert (stream.height, stream.width, float(stream.average_rate or 0)) == (32, 32, 10.0)
            assert sum(1 for _ in container.decode(stream)) == 5


def test_a_webm_has_the_alpha_of_the_frames(solid: Path, tmp_path: Path) -> None:
    render(shot(solid, path="orbit", seconds=0.3, fps=10.0, output=str(tmp_path / "a.webm"), size=64,
                background="transparent"))  # fmt: skip
    render(shot(solid, size=64, channel="alpha", output=str(tmp_path / "a.png")))
    expected = np.array(Image.open(tmp_path / "a.png"))[..., 0]
    with av.open(str(tmp_path / "a.webm")) as container:
        stream = container.streams.video[0]
        assert stream.metadata.get("alpha_mode") == "1" or stream.metadata.get("ALPHA_MODE") == "1"
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        packet = next(container.demux(stream))
        frame = (decoder.decode(packet) + decoder.decode(None))[0]
    assert frame.format.name == "yuva420p"
    alpha = frame.to_ndarray(format="rgba")[..., 3]
    assert abs(alpha.astype(int) - expected).mean() < 6


def test_a_gif_repeats_and_is_transparent(solid: Path, tmp_path: Path) -> None:
    render(shot(solid, path="fixed", seconds=0.3, fps=10.0, output=str(tmp_path / "a.gif"), background="transparent"))
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["duration"] == 100 and image.info["loop"] == 0
        assert image.n_frames == 3  # type: ignore[attr-defined]
        image.seek(2)
        rgba = np.array(image.convert("RGBA"))
    assert rgba[0, 0, 3] == 0 and rgba[8, 8, 3] == 255
    assert same(rgba[8, 8, :3], truth(solid, 0, 0, 1.0)[8, 8], 40)


def test_a_path_of_a_file(solid: Path, tmp_path: Path) -> None:
    cameras = [{"transform_matrix": orbit(40.0, 20.0).tolist(), "time": 1.0}, {"azimuth_deg": 200.0, "time": 0.0}]
    (tmp_path / "tour.json").write_text(json.dumps({"frames": cameras}))
    render(shot(solid, path=str(tmp_path / "tour.json"), format="png"))
    folder = solid / "render" / "tour"
    assert same(np.array(Image.open(folder / "frame_0000.png")), truth(solid, 40, 20, 1.0))
    assert same(np.array(Image.open(folder / "frame_0001.png")), truth(solid, 200, 0, 0.0))


def test_backgrounds() -> None:
    assert parse_background("transparent") is None
    assert parse_background("#0080ff").tolist() == pytest.approx([0, 128 / 255, 1])  # type: ignore[union-attr]
    assert parse_background("gray").tolist() == [0.5] * 3  # type: ignore[union-attr]


def test_an_input_record_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text("null")
    with pytest.raises(UserError, match="input.json: holds a NoneType, not an object"):
        recorded_camera(tmp_path)
