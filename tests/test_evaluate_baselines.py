"""Baselines that `evaluate` makes of a run: its base model frame by frame, a static scene a frame, the copied input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_pipeline
from tiny_verbs import tiny_fit, write_frames

from fourdiffusion.api import fit_scene
from fourdiffusion.datasets.clips import read_clip
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.loading import open_pipeline
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.settings import EvaluateConfig, ProtocolConfig
from fourdiffusion.metrics.image import psnr

pytestmark = pytest.mark.slow

PROTOCOL = ProtocolConfig(metrics=["psnr"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    tiny_pipeline(moving=True).save_pretrained(folder / "model")
    settings = tiny_fit(str(folder / "model"))
    settings["model"]["dtype"] = "float32"  # "auto" is bfloat16 on some processors, too coarse to compare
    fit_scene(write_frames(folder / "frames"), folder / "run", seed=3, **settings)
    return folder / "run"


def report_of(run: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """Measured against the run's own generated videos, which are 100 dB near to themselves."""
    config = EvaluateConfig(str(run), str(run / "generated"), str(output), "cpu", protocol=PROTOCOL, **settings)
    evaluate(config)
    report: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return report


def test_the_base_model_is_the_runs_without_its_motion_layers(run: Path, tmp_path: Path) -> None:
    report = report_of(run, tmp_path, baselines=["base_model"])
    assert report["videos"]["mean"]["psnr"] == 100 and report["scene"]["baselines"] == {}
    truth = read_clip(run / "generated")
    images = truth.rgba[0, :, :3].float() / 255
    pipeline = open_pipeline(ModelConfig(path=str(run.parent / "model")), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    expected = generate_views(pipeline, images, "", c2w=truth.c2w, generator=generator, use_motion=False)
    expected = (expected * 255).round() / 255
    values = psnr(expected, truth.rgba[:, :, :3].float() / 255).mean(1).tolist()
    found = report["videos"]["baselines"]["base_model"]
    assert found["per_view"]["psnr"] == pytest.approx(values, abs=1e-3) and max(values) < 60
    assert set(found["mean_by_role"]) == {"input", "generated"}


def test_a_static_scene_is_fitted_to_each_frame(run: Path, tmp_path: Path) -> None:
    begun = report_of(run, tmp_path / "a", baselines=["static_scene"], baseline_steps=2)
    fitted = report_of(run, tmp_path / "b", baselines=["static_scene"], baseline_steps=30)
    values = [each["scene"]["baselines"]["static_scene"] for each in (begun, fitted)]
    assert values[1]["mean"]["psnr"] > values[0]["mean"]["psnr"] + 0.5
    frames = values[1]["per_frame"]["psnr"]
    assert len(frames) == 4 and all(len(set(view)) == len(view) == 4 for view in frames)  # a scene of its own each
    table = json.loads((tmp_path / "b" / "table.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["run", "copied input", "static scene"]
    assert {each["minus"] for each in table["paired"]} == {"copied input", "static scene"}
    assert fitted["baselines"]["static_scene"]["mean"]["psnr"] == pytest.approx(values[1]["mean"]["psnr"])


def test_what_cannot_be_made_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="baselines holds 'base': give some of copied_input, base_model"):
        report_of(run, tmp_path, baselines=["base"])
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    (moved / "config.yaml").unlink()
    report = report_of(moved, tmp_path / "out", baselines=["base_model", "static_scene"])
    assert sum("missing" in note and "holds no config.yaml" in note for note in report["notes"]) == 2
    other = Path(shutil.copytree(run.parent, tmp_path / "other"))
    text = (other / "run" / "config.yaml").read_text()
    (other / "run" / "config.yaml").write_text(text.replace(str(run.parent), str(other)))
    weights = next((other / "model" / "motion").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b"0")
    report = report_of(other / "run", tmp_path / "out2", baselines=["base_model"])
    assert any("is another model by now" in note for note in report["notes"])
