"""Drive the page of `fourdiffusion app` in headless Chromium: a bad file, then a video to the end, and its downloads.

    fourdiffusion app port=7861 output=runs/app &
    python dev/check_app.py http://127.0.0.1:7861 data/sample/input.mp4 out/

Prints one JSON line; screenshots go into the last argument. Needs playwright (Python) and a chromium on the PATH.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from check_export import CHROMIUM
from playwright.sync_api import Page, sync_playwright

RECIPE = "quick look (100 steps)"


def wait_for_status(page: Page, words: tuple[str, ...], seconds: float) -> list[str]:
    """Return the different status lines until one of them begins with one of ``words``."""
    seen: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = page.locator("#status").inner_text().strip()
        if text and (not seen or seen[-1] != text):
            seen.append(text)
        if text.startswith(words):
            return seen
        page.wait_for_timeout(200)
    raise SystemExit(f"nothing of {words} within {seconds} s, but {seen[-3:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    out, problems = arguments.out, []
    out.mkdir(parents=True, exist_ok=True)
    (out / "notes.mp4").write_text("not a video")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1200, "height": 1400})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(arguments.address)
        page.locator("#video input[type=file]").set_input_files(out / "notes.mp4", timeout=120000)
        bad = wait_for_status(page, ("error:",), 120)[-1]
        page.screenshot(path=str(out / "app_bad_file.png"))
        page.reload()
        page.locator("#video input[type=file]").set_input_files(arguments.video, timeout=120000)
        matte = wait_for_status(page, ("frames",), 120)[-1]
        page.screenshot(path=str(out / "app_matte.png"))
        page.locator("#recipe input").click()
        page.get_by_role("option", name=RECIPE).click()
        page.locator("#start").click()
        seen = wait_for_status(page, ("done", "error:"), 3600)
        page.locator("#model canvas").wait_for(timeout=120000)
        page.wait_for_timeout(10000)
        page.screenshot(path=str(out / "app_done.png"), full_page=True)
        with page.expect_download(timeout=60000) as download:
            page.locator("#downloads a[href*='scene.glb']").first.click()
        download.value.save_as(out / download.value.suggested_filename)
        browser.close()
    steps = [line for line in seen if line.startswith("step")]
    print(json.dumps({
        "console_errors": problems, "bad_file": bad, "matte": matte, "progress_lines": len(seen), "steps": steps[-2:],
        "end": seen[-1], "downloaded": {p.name: p.stat().st_size for p in out.glob("scene*")},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
