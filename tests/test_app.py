"""The verb `app`: its jobs are real commands on the smallest model; the page is opened where a browser is."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import forks
import pytest
import torch
from test_quick import SMALL
from tiny_model import FRAMES, balls, picture, write_model

from fourdiffusion import app, cameras
from fourdiffusion.cli.schema import shipped
from fourdiffusion.media.write import write_image

pytestmark = pytest.mark.slow


@pytest.fixture
def video(tmp_path: Path) -> Path:
    folder = tmp_path / "balls"
    times = torch.linspace(0, 1, FRAMES)
    for index, frame in enumerate(picture(cameras.orbit(torch.zeros(FRAMES)), balls(0, times))):
        write_image(folder / f"{index}.png", frame)
    return folder


def test_a_look_shows_the_matte_or_says_what_is_wrong(video: Path, tmp_path: Path) -> None:
    matte, line = app.look(str(video), "auto", "object")
    assert matte is not None and matte.ndim == 3 and "alpha from the file" in line
    (tmp_path / "notes.mp4").write_text("not a video")
    matte, line = app.look(str(tmp_path / "notes.mp4"), "auto", "object")
    assert matte is None and line.startswith("error: ") and "notes.mp4" in line and "\n" not in line


def test_the_page_words_a_command() -> None:
    words = app.words_of("a.mp4", Path("out"), "quick look (100 steps)", " a  red\nbird ", "plain", "frame")
    assert words[:4] == ["a.mp4", "output=out", "alpha=plain", "crop=frame"]
    assert "max_steps=100" in words and words[-1] == "prompt=a red bird"
    assert not any(word.startswith("prompt") for word in app.words_of("a.mp4", Path("o"), app.AUTOMATIC, " ", "a", "b"))


def test_a_job_runs_to_the_end_and_gives_its_files(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(words: list[str], stdout: IO[str], stderr: IO[str], **_: object) -> forks.Fork:
        def redirect() -> None:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)

        assert words[:3] == [sys.executable, "-m", "fourdiffusion"]
        return forks.command(words[3:], tmp_path, redirect)

    monkeypatch.setattr(app, "subprocess", SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))
    model, run = write_model(tmp_path / "tiny"), tmp_path / "run"
    words = [*app.words_of(str(video), run, app.AUTOMATIC, "balls", "auto", "frame"), f"model.path={model}"]
    kept = {word.partition("=")[0] for word in words}
    states = list(app.run_job([*words, *(w for w in SMALL if w.partition("=")[0] not in kept)], run))
    assert states[0].text == "reads the video and the model" and states[-1].text == "done" and not states[-1].failed
    assert sorted(states[-1].files) == sorted(app.FILES)
    assert all(Path(path).stat().st_size > 500 for path in states[-1].files.values())
    assert states[-1].preview == str(run / "contact_sheet.png")


def test_a_job_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    [*_, last] = app.run_job([str(tmp_path), f"output={tmp_path / 'run'}"], tmp_path / "run")
    assert last.failed and last.text.startswith("error: ") and "\n" not in last.text and not last.files
    assert app.reason_of("fit: 1%\rerror: no\n") == "error: no" and app.reason_of("").startswith("error: ")


def test_a_job_that_is_left_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = app.subprocess.Popen  # type: ignore[attr-defined]
    monkeypatch.setattr(app.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])  # type: ignore[attr-defined, func-returns-value]
    job = app.run_job([str(shipped("data/sample/input.mp4")), f"output={tmp_path / 'run'}"], tmp_path / "run")
    next(job)
    time.sleep(0.5)
    job.close()  # type: ignore[attr-defined]
    assert started[0].poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


def test_a_job_is_stopped_that_ignores_ctrl_c() -> None:
    """As every process does that a shell starts in the background."""
    program = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    app.stop(process)
    process.stdout.close()
    assert process.returncode == -signal.SIGTERM


def test_progress_is_read_from_the_run(tmp_path: Path) -> None:
    assert app.progress(tmp_path).share == 0
    (tmp_path / "config.yaml").write_text("settings: {max_steps: 40}")
    assert app.progress(tmp_path).text == "generates the views"
    (tmp_path / "log.jsonl").write_text('{"step": 5}\n{"step": 10}\n')
    assert app.progress(tmp_path).share == 0.25 and app.progress(tmp_path).text == "step 10 of 40"
    (tmp_path / "log.jsonl").write_text('{"step": 40}\n')
    assert app.progress(tmp_path).text == "writes the results"


def test_the_page_in_a_browser_shows_the_line_of_a_bad_file(tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium")
    (tmp_path / "notes.mp4").write_text("not a video")
    page = app.build_page(gradio, tmp_path)
    page.queue()
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, server_port=17861)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            view = browser.new_page()
            view.goto(address)
            view.locator("#video input[type=file]").set_input_files(tmp_path / "notes.mp4", timeout=60000)
            view.wait_for_function("document.querySelector('#status').innerText.includes('error:')", timeout=60000)
            text = view.locator("#status").inner_text()
            browser.close()
    finally:
        page.close(verbose=False)
    assert "notes.mp4" in text
