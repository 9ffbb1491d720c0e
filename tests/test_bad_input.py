"""User errors through the command itself: one line that names the value, exit code 2, no files left behind."""

import pytest
import torch

from fourdiffusion.cli import main
from fourdiffusion.media.write import write_image

pytestmark = pytest.mark.slow


@pytest.fixture
def bad(tmp_path):
    """A folder of things that are no videos, no scenes and no models."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt.mp4").write_bytes(b"\0\0\0 ftypisom" + bytes(range(256)) * 8)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "notes.png").write_text("not a picture")
    write_image(tmp_path / "one" / "0.png", torch.rand(3, 16, 16))
    for index in range(3):
        write_image(tmp_path / "busy" / f"{index}.png", torch.rand(3, 32, 32))
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "config.json").write_text('{"_class_name": "Somebody", "else": 1}')
    return tmp_path


@pytest.mark.parametrize(
    "words, named",
    [
        ("fit video={bad}/nowhere.mp4", "nowhere.mp4"),
        ("fit video={bad}/empty", "empty"),
        ("fit video={bad}/one", "one"),
        ("fit video={bad}/corrupt.mp4", "corrupt.mp4"),
        ("fit video={bad}/notes.txt", "notes.txt"),
        ("fit video={bad}/notes.png", "notes.png"),
        ("fit video={bad}/busy alpha=plain", "busy"),
        ("fit video={bad}/busy alpha=file", "busy"),
        ("fit video={bad}/busy alpha=magic", "magic"),
        ("fit", "video"),
        ("fit video={bad}/busy stepz=4", "stepz"),
        ("fit video={bad}/busy max_steps=many", "many"),
        ("fit video={bad}/busy model=huge", "huge"),
        ("fit video={bad}/busy prompt=a red bird", "prompt='a red bird'"),
        ("fit video={bad}/busy grid_lr=nan", "grid_lr=nan"),
        ("fit video={bad}/busy num_frames=-3", "num_frames=-3"),
        ("fit video={bad}/busy -m seed=0,x", "seed=0,x"),
        ("fit --config-path {bad}/scene", "config.yaml"),
        ("fit --config-path {bad}/notes.txt", "notes.txt"),
        ("{bad}/empty", "empty"),
        ("{bad}/corrupt.mp4", "corrupt.mp4"),
        ("{bad}/one --explain", "one"),
        ("{bad}/busy -m seed=0,1", "fourdiffusion fit -m"),
        ("{bad}/busy video=a.mp4", "given twice"),
        ("generate video={bad}/nowhere.gif", "nowhere.gif"),
        ("render scene={bad}/nowhere", "nowhere"),
        ("render scene={bad}/empty", "empty"),
        ("render scene={bad}/scene", "scene"),
        ("evaluate prediction={bad}/empty truth={bad}/nowhere", "nowhere"),
        ("train stage=dance data.path={bad}/empty", "dance"),
        ("train stage=motion data.path={bad}/nowhere", "nowhere"),
        ("train stage=motion data.path={bad}/empty", "empty"),
        ("data synth output={bad}/clips rig=square", "square"),
        ("data synth output={bad}/clips num_views=5", "5"),
    ],
)
def test_one_line_code_2_and_nothing_written(bad, capsys, monkeypatch, words, named):
    monkeypatch.chdir(bad)
    before = sorted(bad.rglob("*"))
    assert main(words.format(bad=bad).split()) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and named in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert sorted(bad.rglob("*")) == before


def test_a_folder_that_is_no_model_is_named(bad, capsys, monkeypatch):
    monkeypatch.chdir(bad)
    for index in range(3):
        frame = torch.ones(3, 32, 32)
        frame[:, 10:20, 10 + index : 20 + index] = 0.3
        write_image(bad / "plain" / f"{index}.png", frame)
    assert main(["fit", f"video={bad}/plain", f"model.path={bad}/empty"]) == 2
    assert "empty" in capsys.readouterr().err
    assert not (bad / "runs").exists()
