"""What holds for every verb: a misspelled setting is named, progress is shown, Ctrl-C leaves nothing half-written."""

import re
import shutil
import signal
import time
from pathlib import Path

import forks
import pytest
import tiny_commands
import torch
from scene.test_pictures import small_scene

from fourdiffusion import cli
from fourdiffusion.cli.verbs import VERBS
from fourdiffusion.files import load_tensors, save_tensors
from fourdiffusion.scene.scene import save_scene

pytestmark = pytest.mark.slow

LIMIT = 240.0  # seconds, on a machine that others use


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.words)
def test_a_misspelled_setting_is_answered_with_the_nearest(verb, capsys: pytest.CaptureFixture[str]) -> None:
    known = next(name for name in verb.basic if "." not in name and len(name) >= 4)
    wrong = known[:2] + known[3] + known[2] + known[4:]
    assert cli.main([*verb.words.split(), f"{wrong}=1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"there is no setting '{wrong}': did you mean {known}?" in error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_scene(folder / "scene", small_scene())
    inputs = {"rgba": torch.rand(3, 4, 8, 8), "times": torch.linspace(0, 1, 3)}
    save_tensors(folder / "input.safetensors", inputs, {})
    return folder


@pytest.mark.parametrize(
    ("words", "begun", "end"),
    [
        (["export", "format=glb", "resolution=192", "output=out/a.glb"], "density", "interrupted"),
        (["export", "format=images", "size=1024", "output=out/images"], "images", "interrupted"),
        (["render", "size=512", "output=out"], "%", "interrupted"),
        (["view", "port=8431"], "viewer: http", "viewer closed"),
        (["app", "port=8432", "output=out"], "page: http", "page closed"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_ctrl_c_ends_in_one_line_and_leaves_nothing_half_written(
    run: Path, tmp_path: Path, words: list[str], begun: str, end: str
) -> None:
    if words[0] in ("view", "app"):
        pytest.importorskip({"view": "viser", "app": "gradio"}[words[0]])
    scene = [] if words[0] == "app" else [f"scene={run}"]
    code, said = interrupted([*words, *scene], tmp_path, begun)
    assert end in said and "Traceback" not in said and code == (0 if end.endswith("closed") else 130)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ctrl_c_of_a_video_saves_a_checkpoint_and_no_scene(base: Path, tmp_path: Path) -> None:
    fit = tiny_commands.command("fit", f"model.path={base / 'model'}", "max_steps=100000", "output=out")
    words = [str(base / "in"), *(word for word in fit[1:] if not word.startswith("video="))]
    code, said = interrupted(words, tmp_path, "loss=")
    assert code == 130 and "interrupted" in said and "Traceback" not in said
    step = load_tensors(tmp_path / "out" / "checkpoint.safetensors")[1]["step"]
    assert 0 < step < 100000 and not list(tmp_path.rglob("*.partial")) and not (tmp_path / "out" / "scene").exists()


def interrupted(words: list[str], folder: Path, begun: str) -> tuple[int | None, str]:
    """Run a command in a folder, press Ctrl-C once it has said ``begun``; return its exit code and all that it said."""
    # a process that a shell starts in the background ignores Ctrl-C
    process = forks.command(words, folder, lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    limit = time.monotonic() + LIMIT
    try:
        while begun not in process.said() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        assert process.poll() is None, process.said()
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
    finally:
        process.kill()
    return process.returncode, process.said()


PROGRESS = {  # what each verb counts that takes more than 3 seconds with inputs of a usual size
    "generate": "sampling", "fit": "fit", "fit views": "fit", "train": "train motion", "render": "render",
    "export": "density", "export images": "images", "view": "density", "evaluate": "evaluate",
    "evaluate scene": "render", "convert": "convert", "data synth": "synth train", "data render": "render",
    "data curate": "curate", "data pack": "data pack",
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRESS)
def test_what_takes_long_shows_how_far_it_is(
    base: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in tiny_commands.ALL[name][1]:
        shutil.copytree(base / each, each)
    assert cli.main(tiny_commands.command(name)) == 0
    bars = re.findall(r"([\w ]+): +\d+%\|.*?\| \d+/\d+ \[\d\d:\d\d<", capsys.readouterr().err)
    assert PROGRESS[name] in {bar.strip() for bar in bars}
