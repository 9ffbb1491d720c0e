"""The HTML report of `evaluate` in headless Chromium: it plays, and predictions keep step with their references."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_folder import write_benchmark

from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.page import Film, write_page
from fourdiffusion.evaluate.settings import EvaluateConfig, load_protocol

pytestmark = pytest.mark.slow

CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
            "--disable-sync"]  # fmt: skip
FRAMES = 8
READ = """() => [...document.querySelectorAll('video')].map(video => {
  const canvas = document.createElement('canvas');
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.drawImage(video, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 0; i < pixels.length; i += 4) sum += (i % 9973) * pixels[i];
  return {time: video.currentTime / video.duration, width: video.videoWidth, sum};
})"""


@pytest.fixture
def browser() -> Any:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a chromium on the PATH; Debian: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=CHROMIUM)
        yield opened
        opened.close()


def test_the_report_plays_in_a_browser_without_network(browser: Any, tmp_path: Path) -> None:
    write_benchmark(tmp_path, 1, 2, FRAMES, 48, {"pred": 0.2})
    protocol = dataclasses.replace(load_protocol("consistent4d"), views=["0", "1"], size=None, metrics=["psnr", "ssim"])
    config = EvaluateConfig(str(tmp_path / "pred"), str(tmp_path / "gt"), str(tmp_path / "out"), page=True)
    evaluate(dataclasses.replace(config, protocol=dataclasses.replace(protocol, fvd="")))
    page = browser.new_context(viewport={"width": 1000, "height": 700}, offline=True).new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "out" / "report.html").as_uri())
    page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")

    seen, said = [], []
    for _ in range(6):
        page.wait_for_timeout(500)
        seen.append(page.evaluate(READ))
        said.append(page.inner_text("figcaption b"))
    assert len({round(videos[0]["time"] * FRAMES) for videos in seen}) >= 3 and len(set(said)) >= 3
    assert len({videos[0]["sum"] for videos in seen}) >= 3  # the pictures change, not the clock alone
    for videos in seen:
        assert len(videos) == 2 and videos[0]["width"] >= 2 * 48  # prediction and reference in one film
        assert abs(videos[0]["time"] - videos[1]["time"]) < 1.5 / FRAMES
    page.click("#play")
    page.wait_for_timeout(300)
    rest = page.evaluate(READ)
    page.wait_for_timeout(500)
    assert page.evaluate(READ) == rest  # paused
    sums = []
    for place in (0, 1000):  # the first frame and the last one, wherever the film was paused
        page.evaluate("([bar, place]) => { bar.value = place; bar.oninput(); }", [page.query_selector("#frame"), place])
        page.wait_for_timeout(500)
        sums.append(page.evaluate(READ)[0]["sum"])
    assert sums[0] != sums[1]
    assert page.inner_text("figcaption b").startswith("frame 7: ")
    assert problems == []


def test_another_methods_folder_is_one_more_column(tmp_path: Path) -> None:
    write_benchmark(tmp_path, 1, 2, 4, 32, {"pred": 0.2, "other": 0.4})
    protocol = dataclasses.replace(load_protocol("consistent4d"), views=["0", "1"], size=None, metrics=["psnr"], fvd="")
    paths = {name: str(tmp_path / name) for name in ("pred", "other", "gt", "out", "out2")}
    evaluate(EvaluateConfig(paths["other"], paths["gt"], paths["out2"], protocol=protocol))
    config = EvaluateConfig(
        paths["pred"], paths["gt"], paths["out"], protocol=protocol, compare=[paths["out2"]], page=True
    )
    evaluate(config)
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("left to right: prediction, other, reference") == 2
    assert text.count('class="other"') == 2 and "<td>prediction</td><td>other</td>" in text
    shutil.rmtree(tmp_path / "other")  # its numbers stay, its videos are gone
    evaluate(config)
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("left to right: prediction, reference") == 2 and text.count('class="other"') == 2


@pytest.mark.parametrize("metric, worst", [("clip_i [x]", "low"), ("lpips_alex", "high"), ("psnr", "low")])
def test_the_worst_video_comes_first(tmp_path: Path, metric: str, worst: str) -> None:
    picture = torch.zeros(2, 3, 32, 32)
    films = [Film(name, "0", picture, picture, {metric: [value] * 2}) for name, value in (("low", 0.1), ("high", 0.9))]
    report = {"prediction": "p", "mean": {metric: 0.5}, "notes": [], "missing": []}
    write_page(tmp_path / "page.html", report, {}, films, load_protocol("synthetic"))
    text = (tmp_path / "page.html").read_text()
    first = text.index("<h2>low") < text.index("<h2>high")
    assert first == (worst == "low")
