"""Drive a running viewer in headless Chromium: does the picture change with time and camera, does it play, how fast.

    fourdiffusion view scene=runs/demo size=128 moving_seconds=10 fps=30 &
    python dev/check_viewer.py http://127.0.0.1:8080 out/ --pid $!

Prints one JSON line; screenshots go into the second argument. ``moving_seconds=10`` keeps pictures at full size while
something moves, 128 x 128 in the square window in which the rates are measured. While the camera turns, a browser
without a GPU asks for fewer pictures than the viewer draws; while it plays (fps=30) it only receives them. The
processor seconds a picture (--pid) also tell on a busy machine: C cores draw at most C / seconds pictures a second.
Needs playwright (Python) and a chromium on the PATH.
"""

import argparse
import io
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import zstandard
from check_export import CHROMIUM
from PIL import Image
from playwright.sync_api import Page, sync_playwright

CANVAS = (slice(80, 620), slice(40, 560))  # of the page, rows and columns without panels

INPUT = (256, 256)  # size of the input video's frames, which are sent beside the pictures
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF"  # a picture's first bytes


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


def processor_seconds(pid: int) -> float:
    """Return the user and system time of a process so far, Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def count_pictures(page: Page, sent: list[tuple[int, int]], seconds: float) -> float:
    """Return pictures received a second while the camera turns."""
    page.mouse.move(20, 240)
    page.mouse.down()
    sent.clear()
    begin, step = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        page.mouse.move(20 + step % 120, 240)
        page.wait_for_timeout(25)
        step += 1
    rate = len(sent) / (time.monotonic() - begin)
    page.mouse.up()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pid", type=int, help="of the viewer: adds processor seconds a picture")
    arguments = parser.parse_args()
    out, problems = arguments.out, []
    moves: list[int] = []  # messages of the browser, while the camera turns about one each of its own frames
    sent: list[tuple[int, int]] = []  # width and height of each picture
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        # A frame of the web socket that holds a JPEG is a picture.
        page.on("websocket", lambda socket: socket.on("framereceived", lambda data: note(data, sent)))
        page.on("websocket", lambda socket: socket.on("framesent", lambda data: moves.append(len(data))))
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
        page.set_viewport_size({"width": 480, "height": 480})  # small: without a GPU the browser is slow as well
        page.wait_for_timeout(2000)
        count_pictures(page, sent, 2.0)
        spent = processor_seconds(arguments.pid) if arguments.pid else None
        moves.clear()
        rate = count_pictures(page, sent, 6.0)
        turning, asked = sent.copy(), len(moves) / 6.0
        spent = None if spent is None else (processor_seconds(arguments.pid) - spent) / max(len(turning), 1)
        page.set_viewport_size({"width": 1000, "height": 700})
        label = page.get_by_text("play", exact=True).bounding_box()
        assert label is not None
        page.mouse.click(label["x"] + 105, label["y"] + label["height"] / 2)  # the box stands beside its label
        page.wait_for_timeout(800)
        values = set()
        for pause in range(24):
            values.add(slider.get_attribute("aria-valuenow"))
            page.wait_for_timeout(200 + 17 * pause)  # not in step with the frames
        plays = len(values) > 2
        page.screenshot(path=str(out / "viewer_plays.png"))
        page.set_viewport_size({"width": 480, "height": 480})
        page.wait_for_timeout(4000)
        before = processor_seconds(arguments.pid) if arguments.pid else None
        sent.clear()
        begin = time.monotonic()
        page.wait_for_timeout(6000)
        playing = [size for size in sent if size != INPUT]
        playing_rate = len(playing) / (time.monotonic() - begin)
        if before is not None:
            before = (processor_seconds(arguments.pid) - before) / max(len(playing), 1)
        browser.close()
    found = {
        "console_errors": problems, "plays": plays, "pixels_changed_by_time": changed(start, later),
        "pixels_changed_by_azimuth": changed(later, turned), "pictures_per_second_while_turning": round(rate, 2),
        "messages_of_the_browser_a_second": round(asked, 1), "sizes_while_turning": sorted(set(turning)),
        "processor_seconds_a_picture": spent and round(spent, 4),
        "pictures_per_second_while_playing": round(playing_rate, 2), "sizes_while_playing": sorted(set(playing)),
        "processor_seconds_a_picture_playing": before and round(before, 4),
    }  # fmt: skip
    print(json.dumps(found))


def note(data: str | bytes, sent: list[tuple[int, int]]) -> None:
    """Append the sizes of the JPEGs that a message holds.

    A message of viser: two 8-byte numbers, the second the length of the zstd frame that follows.
    """
    if isinstance(data, bytes):
        payload = zstandard.decompress(data[16 : 16 + int.from_bytes(data[8:16], "little")])
        begin = payload.find(JPEG)
        while begin >= 0:
            sent.append(Image.open(io.BytesIO(payload[begin:])).size)
            begin = payload.find(JPEG, begin + 1)


if __name__ == "__main__":
    main()
