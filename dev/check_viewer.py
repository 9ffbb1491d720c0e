"""Drive a running viewer in headless Chromium: does the picture change with time and camera, does it play, how fast.

    fourdiffusion view scene=runs/demo size=128 &
    python dev/check_viewer.py http://127.0.0.1:8080 out/

Prints one JSON line; screenshots go into the second argument. Needs playwright (Python) and a chromium on the PATH.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from check_export import CHROMIUM
from PIL import Image
from playwright.sync_api import Page, sync_playwright

CANVAS = (slice(80, 620), slice(40, 560))  # of the page, rows and columns without panels


def settle(page: Page, out: Path, name: str) -> np.ndarray:
    """Return the canvas once the picture is fine and still: int [H, W, 3]."""
    page.wait_for_timeout(2500)
    page.screenshot(path=str(out / f"{name}.png"))
    return np.asarray(Image.open(out / f"{name}.png").convert("RGB")).astype(int)[CANVAS]


def changed(first: np.ndarray, second: np.ndarray) -> int:
    return int((abs(first - second).max(axis=2) > 24).sum())


def drag(page: Page, distance: int, steps: int) -> None:
    page.mouse.move(300, 350)
    page.mouse.down()
    page.mouse.move(300 + distance, 350, steps=steps)
    page.mouse.up()


def count_pictures(page: Page, sent: list[int], seconds: float) -> float:
    """Return pictures received a second while the camera turns."""
    sent.clear()
    page.mouse.move(300, 350)
    page.mouse.down()
    for step in range(int(seconds * 20)):
        page.mouse.move(300 + 4 * step, 350)
        page.wait_for_timeout(50)
    page.mouse.up()
    return len(sent) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    out, problems, sent = arguments.out, [], []
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        # A frame of the web socket that holds a JPEG is a picture.
        page.on("websocket", lambda socket: socket.on("framereceived", lambda data: note(data, sent)))
        page.goto(arguments.address)
        page.wait_for_timeout(4000)
        start = settle(page, out, "viewer_start")
        slider = page.locator("[role=slider]").first
        slider.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        later = settle(page, out, "viewer_later")
        drag(page, 200, 10)
        turned = settle(page, out, "viewer_turned")
        rate = count_pictures(page, sent, 4.0)
        label = page.get_by_text("play", exact=True).bounding_box()
        assert label is not None
        page.mouse.click(label["x"] + 105, label["y"] + label["height"] / 2)  # the box stands beside its label
        page.wait_for_timeout(800)
        values = set()
        for _ in range(8):
            values.add(slider.get_attribute("aria-valuenow"))
            page.wait_for_timeout(300)
        plays = len(values) > 2
        page.screenshot(path=str(out / "viewer_plays.png"))
        browser.close()
    found = {
        "console_errors": problems, "plays": plays, "pixels_changed_by_time": changed(start, later),
        "pixels_changed_by_azimuth": changed(later, turned), "pictures_per_second_while_turning": rate,
    }  # fmt: skip
    print(json.dumps(found))


def note(data: str | bytes, sent: list[int]) -> None:
    if isinstance(data, bytes) and b"\xff\xd8\xff" in data:
        sent.append(len(data))


if __name__ == "__main__":
    main()
