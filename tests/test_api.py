"""Settings of the Python API: over the config files, with types, ranges and names checked."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

import fourdiffusion
from fourdiffusion.cli import config
from fourdiffusion.evaluate.settings import EvaluateConfig
from fourdiffusion.fit.settings import FitConfig

ROOT = Path(__file__).resolve().parents[1]


def fit_settings(**values: Any) -> FitConfig:
    return config.from_values("fit", FitConfig, {"video": "cat.mp4", "output": "runs/cat"} | values)


def test_defaults_are_those_of_the_command_line() -> None:
    words = ["video=cat.mp4", "output=runs/cat"]
    assert fit_settings() == config.build(config.compose("fit", FitConfig, words), FitConfig)
    paper = fit_settings(experiment="paper", seed=3)
    assert paper == config.build(config.compose("fit", FitConfig, [*words, "experiment=paper", "seed=3"]), FitConfig)
    assert paper.max_steps == 35_000 != fit_settings().max_steps


def test_values_lie_over_recipes_in_sections_and_dotted_names() -> None:
    found = fit_settings(experiment="paper", sds={"source": "off", "resolutions": [8]}, **{"loss.lambda_rgb": 2})
    assert (found.sds.source, found.sds.resolutions, found.loss.lambda_rgb) == ("off", [8], 2.0)
    assert isinstance(found.loss.lambda_rgb, float) and found.sds.t_start == 0.98  # the rest of a section stays
    assert fit_settings(model={"path": Path("models/a")}).model.path == "models/a"
    assert fit_settings(model="imagedream").model.path is None
    assert fit_settings(end=None).end is None and fit_settings(experiment=None).max_steps == 35_000


@pytest.mark.parametrize("text", ["a ${b}", "${oc.env:HOME}", "${seed}", "it's", "null", "1e3", "a=b, c"])
def test_text_is_literal(text: str) -> None:
    assert fit_settings(prompt=text).prompt == text


def test_a_protocol_is_named() -> None:
    values = {"prediction": "a", "reference": "b", "protocol": "consistent4d"}
    assert config.from_values("evaluate", EvaluateConfig, values).protocol.name == "consistent4d"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_step": 3}, "there is no setting 'max_step': did you mean max_steps?"),
        ({"sds": {"sauce": "off"}}, "there is no setting 'sds.sauce': did you mean sds.source?"),
        ({"guidance_rescale": 1}, "there is no setting 'guidance_rescale': did you mean sds.guidance_rescale?"),
        ({"sds": 3}, "there is no setting 'sds': it is a section, set one of sds.source"),
        ({"max_steps": "many"}, "max_steps='many': expected int"),
        ({"max_steps": 1.5}, "max_steps=1.5: expected int"),
        ({"seed": None}, "seed=None: expected int"),
        ({"grid_lr": float("nan")}, "grid_lr=nan: "),
        ({"num_frames": 0}, "num_frames=0: give 1 to"),
        ({"experiment": "quick"}, "experiment=quick: there is no such option, the options are"),
        ({"video": "???"}, "a value is missing: add video=..."),
    ],
)
def test_a_mistake_is_a_value_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        fit_settings(**values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_program_that_uses_hydra_itself_keeps_it() -> None:
    outer = object()
    GlobalHydra.instance().hydra = outer  # type: ignore[assignment]
    try:
        fit_settings()
        with pytest.raises(ValueError):
            fit_settings(max_step=1)
        assert GlobalHydra.instance().hydra is outer
    finally:
        GlobalHydra.instance().hydra = None


def test_names_load_on_demand_and_are_listed() -> None:
    names = ["Scene", "fit_scene", "evaluate_prediction", "generate_views", "render_views", "load_scene", "load_video"]
    assert set(names) <= set(dir(fourdiffusion))
    code = "import sys, fourdiffusion; dir(fourdiffusion); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_functions_are_those_of_the_modules() -> None:
    from fourdiffusion import api
    from fourdiffusion.scene import scene

    assert fourdiffusion.fit_scene is api.fit_scene and fourdiffusion.evaluate_prediction is api.evaluate_prediction
    assert fourdiffusion.Scene is scene.Scene
