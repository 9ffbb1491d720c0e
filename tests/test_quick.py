"""`fourdiffusion VIDEO`: what it chooses and says, and that its files are there in the end."""

from pathlib import Path

import pytest
import torch
from tiny_model import FRAMES, SIZE, balls, picture, write_model

from fourdiffusion import cameras
from fourdiffusion.cli import main, quick
from fourdiffusion.errors import UserError
from fourdiffusion.fit.settings import DistillationConfig, FitConfig
from fourdiffusion.media.write import write_image

pytestmark = pytest.mark.slow

SMALL = (
    "num_frames=3 crop=frame device=cpu max_steps=2 preview_minutes=0 trackers=[] model.num_inference_steps=1 "
    "sds.source=off scene.renderer.num_samples=24 scene.renderer.occupancy_resolution=8 scene.field.blob_scale=40"
).split()
SMALL += [f"scene.field.{g}.{k}" for g in ("space", "spacetime") for k in ("num_levels=2", "log2_hashmap_size=8")]


@pytest.fixture
def video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "balls"
    times = torch.linspace(0, 1, FRAMES)
    for index, frame in enumerate(picture(cameras.orbit(torch.zeros(FRAMES)), balls(0, times))):
        write_image(folder / f"{index}.png", frame)
    return folder


def test_a_video_becomes_a_run_a_turntable_a_glb_and_a_page(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "tiny")
    assert main([str(video), f"model.path={model}", "author=Ann", "license=CC0-1.0", *SMALL]) == 0
    told = capsys.readouterr().out.splitlines()
    run = Path("runs/balls")
    for name in quick.RESULTS:
        assert (run / name).stat().st_size > 500, name
    assert [line.partition(":")[0] for line in told[:4]] == ["video", "model", "time", "results"]
    assert "3 of 4 frames" in told[0] and "the file" in told[0] and f"{SIZE} x {SIZE} pixels; 2 steps" in told[1]
    assert "runs/balls/scene.html" in told[-1] and "fourdiffusion view scene=runs/balls" in told[-1]
    assert b'"copyright":"Ann, CC0-1.0"' in (run / "scene.glb").read_bytes().replace(b'": "', b'":"')


def test_explain_writes_nothing(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["balls", "--explain", "max_steps=7"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "7 steps" in told[1] and told[1].startswith("model: the small model that ships")
    assert told[-1] == "command: fourdiffusion fit video=balls output=runs/balls max_steps=7"
    assert sorted(tmp_path.rglob("*")) == before


def test_the_demo_is_the_sample_and_takes_settings(capsys: pytest.CaptureFixture[str]) -> None:
    video, words = quick.of_demo(["output=elsewhere", "seed=3"])
    assert Path(video).is_file() and Path(video).name == "input.mp4"
    assert words[0] == "crop=frame" and words[1].startswith("prompt=") and words[2:] == ["output=elsewhere", "seed=3"]
    assert main(["demo", "--explain", "output=elsewhere"]) == 0
    assert "elsewhere/turntable.mp4" in "".join(capsys.readouterr().out).replace(": ", "/")


@pytest.mark.parametrize("words", [["demo", "--help"], ["a.mp4", "max_steps=7", "--help"]])
def test_help_is_that_of_fit(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("fourdiffusion fit: ") and ("max_steps=7" in told) == ("max_steps=7" in words)


def test_the_released_model_is_taken_on_a_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert quick.choose_model(set())[0] == []
    (tmp_path / "models/4dm").mkdir(parents=True)
    (tmp_path / "models/4dm/model_index.json").write_text("{}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words, why = quick.choose_model(set())
    assert words == [] and "needs a GPU" in why and "model.path=models/4dm" in why
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gib, expected in (
        (8, []),
        (20, ["experiment=fast", "model.path=models/4dm", "model.offload=model"]),
        (80, ["experiment=fast", "model.path=models/4dm"]),
    ):
        properties = type("Properties", (), {"total_memory": gib * 2**30})()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=properties: found)
        assert quick.choose_model(set())[0] == expected
    assert quick.choose_model({"model.path"})[0] == []


def test_the_time_grows_with_steps_and_with_a_slow_machine() -> None:
    sds = DistillationConfig(start_step=100, every=4)
    short, long = (FitConfig(max_steps=steps, sds=sds) for steps in (100, 500))
    at = quick.PROBE_SECONDS
    assert quick.estimate(short, at) == pytest.approx(quick.COST.fixed + 100 * quick.COST.step)
    grown = quick.estimate(long, at) - quick.estimate(short, at)
    assert grown == pytest.approx(400 * quick.COST.step + 100 * quick.COST.sds)
    assert quick.estimate(long, 3 * at) == pytest.approx(3 * quick.estimate(long, at))
    off = FitConfig(max_steps=500, sds=DistillationConfig(source="off"))
    assert quick.estimate(off, at) == pytest.approx(quick.COST.fixed + 500 * quick.COST.step)


def test_names_of_outputs_and_words_that_are_refused() -> None:
    assert quick.default_output("a/cat.mp4") == "runs/cat" and quick.default_output("a/cat/*.png") == "runs/cat"
    assert quick.default_output("a/cat") == "runs/cat"
    with pytest.raises(UserError, match="given twice"):
        quick.settings_of("a.mp4", ["video=b.mp4"])
    with pytest.raises(UserError, match="fourdiffusion fit -m"):
        quick.run(["a.mp4", "-m", "seed=0,1"], print)


def test_the_default_recipe_and_the_first_editions_each_have_their_model_and_weights() -> None:
    def settings(*words: str) -> FitConfig:
        return quick.composed(["video=a.mp4", *words])

    small, tiny = settings(), settings("experiment=tiny")
    assert Path(str(small.model.path)).name == "small" and Path(str(tiny.model.path)).name == "tiny"
    assert (small.loss.lambda_input, small.loss.lambda_empty) == (
        2 * tiny.loss.lambda_input,
        5 * tiny.loss.lambda_empty,
    )
    for name in ("max_steps", "sds", "scene", "grid_lr"):
        assert getattr(small, name) == getattr(tiny, name), name
