"""`generate` from a video file to pictures and a clip, and its mistakes."""

import dataclasses
import shutil
from pathlib import Path

import av
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import SIZE, tiny_clip, tiny_config, write_model

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import read_clip
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.errors import UserError
from fourdiffusion.generate import generate
from fourdiffusion.settings import GenerateConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An animated gif with transparency, of another size than the model's."""
    path = tmp_path_factory.mktemp("video") / "balls.gif"
    frames = [Image.fromarray(image.permute(1, 2, 0).numpy().copy()).resize((40, 24)) for image in tiny_clip(0).rgba[0]]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0, disposal=2)
    return path


def settings(model: Path, video: Path, output: Path, /, **changes: object) -> GenerateConfig:
    values: dict[str, object] = {
        "video": str(video),
        "output": str(output),
        "prompt": "two balls",
        "num_frames": 3,
        "num_views": 2,
        "device": "cpu",
        "model": tiny_config(str(model)),
    }
    return GenerateConfig(**values | changes)  # type: ignore[arg-type]


def test_video_to_views(model: Path, video: Path, tmp_path: Path) -> None:
    generate(settings(model, video, tmp_path / "run", elevation_deg=10.0))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml", "input.json", "matte.png", ".lock", "view_000.mp4", "view_180.mp4", "contact_sheet.png", "clip"
    }  # fmt: skip
    for name in ("view_000.mp4", "view_180.mp4"):
        with av.open(str(tmp_path / "run" / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 3
    with Image.open(tmp_path / "run/contact_sheet.png") as sheet:
        assert sheet.width > 3 * SIZE and sheet.height > 3 * SIZE
    clip = read_clip(tmp_path / "run/clip")
    assert clip.rgba.shape == (2, 3, 4, SIZE, SIZE) and bool((clip.rgba[:, :, 3] == 255).all())
    torch.testing.assert_close(clip.c2w, cameras.orbit(torch.tensor([0.0, 180.0]), 10.0))
    assert clip.caption == "two balls" and clip.times.tolist() == [0.0, 0.5, 1.0]


def test_seed_decides(model: Path, video: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate(settings(model, video, tmp_path / name, seed=seed))
    a, b, c = (read_clip(tmp_path / name / "clip").rgba for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
    generate(settings(model, video, tmp_path / "a"))  # the same command again
    with pytest.raises(UserError, match="holds a run with seed=0, this one has seed=1"):
        generate(settings(model, video, tmp_path / "a", seed=1))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"video": "/no/such/video.mp4"}, "/no/such/video.mp4 does not exist"),
        ({"num_frames": 0}, "num_frames=0: give 1 to"),
        ({"num_views": 0}, "num_views=0: give 1 to"),
        ({"elevation_deg": 90.0}, "elevation_deg=90.0: give -89 to 89"),
        ({"device": "gpu"}, "device=gpu is unknown"),
        ({"model": tiny_config()}, "model.path=None holds no model"),
        ({"model": tiny_config("/no/such/folder")}, "model.path=/no/such/folder holds no model"),
        ({"alpha": "guess"}, "alpha=guess is unknown"),
        ({"model": dataclasses.replace(tiny_config(), dtype="half")}, "model.dtype=half is not one of float32"),
        ({"guidance_scale": float("nan")}, "model.guidance_scale=nan: give 0 to 100"),
        ({"image_size": 18}, "model.image_size=18: the model in model.path=.* makes pictures of 16 pixels"),
        ({"head_dim": 8}, "model.head_dim=8 contradicts the weights"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    model: Path, video: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = settings(model, video, tmp_path / "run")
    target = config if changes.keys() <= vars(config).keys() else config.model
    for name, value in changes.items():
        setattr(target, name, value)
    with pytest.raises(UserError, match=message) as caught:
        generate(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["windows", "interleaved"])
def test_more_frames_than_the_motion_layers_know(model: Path, video: Path, tmp_path: Path, kind: str) -> None:
    config = settings(model, video, tmp_path / "run", num_frames=11)
    config.model.long_video, config.model.window = kind, 4
    generate(config)
    assert read_clip(tmp_path / "run/clip").rgba.shape[:2] == (2, 11)


@pytest.mark.parametrize(
    "key, value, message", [("window", 9, "model.window=9: .* 1 to 8"), ("long_video", "cut", "model.long_video=cut")]
)
def test_windows_the_model_cannot_have(
    model: Path, video: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    config = settings(model, video, tmp_path / "run")
    setattr(config.model, key, value)
    with pytest.raises(UserError, match=message):
        generate(config)
    assert not (tmp_path / "run").exists()


def test_in_half_precision(model: Path, video: Path, tmp_path: Path) -> None:
    config = settings(model, video, tmp_path / "run")
    generate(config)
    config.model.dtype = "bfloat16"
    with pytest.raises(UserError, match="holds a run with model.dtype=float32, this one has model.dtype=bfloat16"):
        generate(config)
    config.output = str(tmp_path / "half")
    generate(config)
    whole, half = (read_clip(tmp_path / name / "clip").rgba.float() / 255 for name in ("run", "half"))
    assert not torch.equal(half, whole) and (half - whole).abs().max() < 0.03


def test_too_many_sampling_steps(model: Path, video: Path, tmp_path: Path) -> None:
    config = settings(model, video, tmp_path / "run")
    config.model.num_inference_steps = 1000  # leading steps, shifted by one, would end past the schedule
    with pytest.raises(UserError, match="model.num_inference_steps=1000: give 1 to 999"):
        generate(config)


def test_output_that_is_something_else(model: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        generate(settings(model, video, tmp_path))
    with pytest.raises(UserError, match="notes.txt cannot be made"):
        generate(settings(model, video, tmp_path / "notes.txt"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resolve_device() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "", "cpu:x", "meta"):
        with pytest.raises(UserError, match="is unknown: choose auto, cpu or cuda"):
            resolve_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device=cuda:1, but torch sees no CUDA GPU"):
            resolve_device("cuda:1")


def test_the_models_own_settings_are_used_and_recorded(model: Path, video: Path, tmp_path: Path) -> None:
    """With only the path set; the run folder records the settings, and the run resumes with them given explicitly."""
    config = settings(model, video, tmp_path / "run", model=ModelConfig(str(model)))
    generate(config)
    assert read_clip(tmp_path / "run/clip").rgba.shape[-1] == SIZE
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["settings"]["model"]
    assert (recorded["image_size"], recorded["num_inference_steps"], recorded["guidance_scale"]) == (SIZE, 3, 2.0)
    assert recorded["channels"] == [32, 32] and recorded["prediction_type"] == "epsilon"
    generate(dataclasses.replace(config, model=tiny_config(str(model))))
    config.model.num_inference_steps = 2
    with pytest.raises(UserError, match="holds a run with model.num_inference_steps=3, this one has .*=2"):
        generate(config)


def test_a_run_recorded_under_former_names_and_values_goes_on(model: Path, video: Path, tmp_path: Path) -> None:
    velocity = shutil.copytree(model, tmp_path / "model")
    path = velocity / "unet/config.json"
    path.write_text(path.read_text().replace('"epsilon"', '"v_prediction"'))
    config = settings(velocity, video, tmp_path / "run", num_frames=1, model=ModelConfig(str(velocity)))
    generate(config)
    path = tmp_path / "run/config.yaml"
    path.write_text(path.read_text().replace("prediction_type: v_prediction", "prediction: velocity"))
    assert "prediction: velocity" in path.read_text()
    generate(config)


def test_nothing_is_written_of_a_model_that_makes_nan(model: Path, video: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "model")
    path = broken / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"].fill_(3e38)  # finite, and no image is
    tensors["decoder.conv_out.weight"].fill_(3e38)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="decoding: the VAE's images"):
        generate(settings(broken, video, tmp_path / "run", model=ModelConfig(str(broken))))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "input.json", "matte.png", ".lock"}
