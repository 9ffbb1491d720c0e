"""NaN and infinity put into every weight, scene tensor, schedule value and setting in turn: each is named."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_model import write_model
from torch import nn

from fourdiffusion.cli.overrides import translate
from fourdiffusion.cli.schema import Setting, groups, load_settings_class, settings
from fourdiffusion.cli.verbs import VERBS, Verb
from fourdiffusion.diffusion import loading
from fourdiffusion.errors import UserError
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, load_scene, save_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    renderer = RendererConfig(num_samples=8, occupancy_resolution=4)
    field = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8), backend="torch")
    save_scene(tmp_path / "scene", Scene(field, OccupancyGrid(renderer), renderer))
    return tmp_path / "scene"


def test_every_weight_of_a_model(model: Path) -> None:
    pipeline = loading.load_pipeline(model)
    tried = 0
    for part, module in pipeline.components.items():
        if not isinstance(module, nn.Module):
            continue
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            flat, place = value.view(-1), value.numel() // 2
            kept = flat[place].clone()
            flat[place] = math.nan if tried % 2 else math.inf
            with pytest.raises(ValueError, match=f"^{part}: {name} has numbers that are NaN or infinite"):
                loading._check_part(model, part, module)
            flat[place] = kept
            tried += 1
    loading._check_whole(model, pipeline)
    assert tried > 200


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("scheduler/scheduler_config.json", "beta_start"),
        ("scheduler/scheduler_config.json", "beta_end"),
        ("scheduler/scheduler_config.json", "trained_betas"),
        ("scheduler/scheduler_config.json", "num_train_timesteps"),
        ("vae/config.json", "scaling_factor"),
        ("feature_extractor/preprocessor_config.json", "image_mean"),
        ("feature_extractor/preprocessor_config.json", "image_std"),
        ("generation_config.json", "guidance_scale"),
        ("generation_config.json", "num_inference_steps"),
    ],
)
def test_every_value_of_a_schedule(model: Path, file: str, key: str, value: float) -> None:
    if value in (0.0, -1.0) and key in ("image_mean", "guidance_scale"):
        pytest.skip("it means something")
    path = model / file
    before = path.read_text()
    entry: Any = [value] * 3 if key.startswith("image_") else [value] * 1000 if key == "trained_betas" else value
    path.write_text(json.dumps(json.loads(before) | {key: entry}))
    try:
        with pytest.raises(UserError, match=key if file.startswith("generation") else str(model)):
            loading.load_pipeline(model)
    finally:
        path.write_text(before)


def test_every_number_of_the_small_files_of_a_model(model: Path) -> None:
    """In any JSON file and at any depth: networks' configs, schedule, tokenizer, sampling defaults."""
    tried = 0
    for path in sorted(model.rglob("*.json")):
        before = path.read_text()
        content = json.loads(before)
        for holder, key in [place for place in places(content) if type(place[0][place[1]]) in (int, float)][:40]:
            kept, holder[key] = holder[key], math.nan if tried % 2 else math.inf
            path.write_text(json.dumps(content))
            holder[key] = kept
            with pytest.raises(UserError, match=rf"{path.name}: (.*\.)?{re.escape(str(key))} is NaN or infinite"):
                loading.load_pipeline(model)
            tried += 1
        path.write_text(before)
    loading.load_pipeline(model)
    assert tried > 60


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key) of every value in a JSON value."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from places(content[key])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer/tokenizer_config.json", {"model_max_length": 1.5}, "model_max_length"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**6}, "model_max_length"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 0}, "model_max_length"),
        ("text_encoder/config.json", {"pad_token_id": 10**6}, "pad_token_id"),
        ("text_encoder/config.json", {"pad_token_id": -1}, "pad_token_id"),
        ("scheduler/scheduler_config.json", [1, 2], "scheduler_config.json: holds a list, not an object"),
        ("tokenizer/tokenizer_config.json", "text", "tokenizer_config.json: holds a str, not an object"),
    ],
)
def test_what_the_text_encoder_cannot_read(
    model: Path, file: str, change: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (model / file).read_text()
    (model / file).write_text(json.dumps(json.loads(before) | change if isinstance(change, dict) else change))
    try:
        with pytest.raises(UserError, match=message):
            loading.load_pipeline(model)
    finally:
        (model / file).write_text(before)
    assert "arning" not in capfd.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("file", ["diffusion_pytorch_model.safetensors", "occupancy.safetensors"])
def test_every_tensor_of_a_scene(scene: Path, file: str, value: float) -> None:
    load_scene(scene)
    whole = load_file(scene / file)
    for name in [name for name, tensor in whole.items() if tensor.is_floating_point()]:
        broken = {key: tensor.clone() for key, tensor in whole.items()}
        broken[name].view(-1)[-1] = value
        save_file(broken, scene / file)
        with pytest.raises(UserError, match=f"{name} holds numbers that are NaN or infinite"):
            load_scene(scene)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "x", None, [], True, 10**12])
@pytest.mark.parametrize("file", ["config.json", "renderer.json"])
def test_every_number_of_a_scene(scene: Path, file: str, value: object) -> None:
    whole = json.loads((scene / file).read_text())
    for key in [key for key, number in whole.items() if isinstance(number, (int, float))]:
        (scene / file).write_text(json.dumps(whole | {key: value}))
        with pytest.raises(UserError, match=key):
            load_scene(scene)


def test_a_scene_of_two_radii(scene: Path) -> None:
    path = scene / "renderer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"radius": 0.5}))
    with pytest.raises(UserError, match=r"field.radius=1 and renderer.radius=0.5 differ"):
        load_scene(scene)


def numbers(verb: Verb) -> Iterator[Setting]:
    return (setting for setting in settings(load_settings_class(verb.settings)) if setting.is_number)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.words)
def test_every_number_among_the_settings(verb: Verb) -> None:
    schema, sections = load_settings_class(verb.settings), groups(verb.function)
    for setting in numbers(verb):
        for text in ("nan", "inf", "-inf", "1e400"):
            word = f"[{text}]" if setting.kind.startswith("list") else text
            with pytest.raises(UserError, match=setting.key):
                translate([f"{setting.key}={word}"], schema, sections, sweep=False)


def test_every_number_has_bounds() -> None:
    without = {f"{verb.words}: {setting.key}" for verb in VERBS for setting in numbers(verb) if setting.range is None}
    assert not without
