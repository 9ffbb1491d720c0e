"""Folders that version 0.1.0 (commit 365a7e0) wrote still open, resume and are evaluated."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fourdiffusion import cli
from fourdiffusion.datasets.clips import read_clip
from fourdiffusion.scene.scene import load_scene, render_views

DATA = Path(__file__).parent / "data/v0_1_0"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of the runs, at their original paths in the working directory."""
    shutil.copytree(DATA, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_clip_opens(former: Path) -> None:
    clip = read_clip(former / "clips/clip-0")
    assert clip.rgba.shape == (8, 4, 4, 16, 16) and clip.license == "Apache-2.0"  # the file says "licence"
    assert clip.caption == "two balls, one red"


def test_a_scene_renders_what_it_rendered(former: Path) -> None:
    scene = load_scene(former / "fit")
    clip = read_clip(former / "fit/generated")
    rgb, opacity = render_views(scene, clip.c2w[:1], clip.fovy_deg, clip.times[:1], 16)
    assert rgb.shape == (1, 3, 16, 16) and bool(rgb.isfinite().all()) and 0.05 < float(opacity.mean()) < 1


def test_a_fit_resumes_under_former_and_present_names(former: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert steps(former / "fit") == [1, 2, 3]
    before = load_scene(former / "fit").field.space.params.detach().clone()
    words = ["fit", "--config-path", "fit", "output=fit"]
    assert cli.main([*words, "steps=4"]) == 0, capsys.readouterr().err
    assert "steps is now max_steps" in capsys.readouterr().err
    assert cli.main([*words, "max_steps=5"]) == 0
    assert steps(former / "fit") == [1, 2, 3, 4, 5]
    assert not torch.equal(load_scene(former / "fit").field.space.params, before)


def test_a_training_run_resumes(former: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (former / "clips/clip-1").mkdir()
    shutil.copytree(former / "clips/clip-0", former / "clips/clip-1", dirs_exist_ok=True)
    assert steps(former / "train") == [1, 2]
    assert cli.main(["train", "--config-path", "train", "output=train", "max_steps=3"]) == 0, capsys.readouterr().err
    assert steps(former / "train") == [1, 2, 3] and (former / "train/model/model_index.json").is_file()


def test_a_fit_is_evaluated(former: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prediction=fit", "reference=fit/generated", "output=measured", "protocol.metrics=[psnr]"]
    assert cli.main(["evaluate", *words]) == 0, capsys.readouterr().err
    assert (former / "measured/metrics.json").is_file()
