"""Measure how well exported meshes agree with the volume renderer, and drive the HTML page in headless Chromium.

    python dev/check_export.py runs/demo out/

Prints one JSON line: mean intersection over union of silhouettes from 8 views, of the GLB of frames and of that with
morph targets, and what Chromium saw of the page. The page needs playwright (Python) and a chromium on
the PATH. Screenshots go into the second folder.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pygltflib import GLTF2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from scene.shapes import iou, silhouette  # noqa: E402
from scene.test_export_files import accessor  # noqa: E402

from fourdiffusion.cameras import FOVY_DEG, orbit  # noqa: E402
from fourdiffusion.export import export  # noqa: E402
from fourdiffusion.scene.export.glb import TO_GLTF  # noqa: E402
from fourdiffusion.scene.export.origin import frame_times  # noqa: E402
from fourdiffusion.scene.export.surface import Mesh  # noqa: E402
from fourdiffusion.scene.scene import load_scene, render_views  # noqa: E402
from fourdiffusion.settings import ExportConfig  # noqa: E402

CHROMIUM = [
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZE = 128


def silhouettes(run: Path, glb: Path) -> dict[str, float]:
    """Return the mean and the smallest IoU over 8 views (azimuth by 45 degrees, elevation 0) of every frame."""
    scene, times, scores = load_scene(run), frame_times(run, None), []
    c2w = orbit(torch.arange(8) * 45.0)
    for mesh, time in zip(frames_of(GLTF2().load(str(glb))), times, strict=True):
        _, alpha = render_views(scene, c2w, FOVY_DEG, time.expand(8), SIZE)
        scores += [iou(silhouette(mesh, c, SIZE), a[0].numpy() > 0.5) for c, a in zip(c2w, alpha, strict=True)]
    return {"iou_mean": float(np.mean(scores)), "iou_min": float(np.min(scores))}


def frames_of(gltf: GLTF2) -> list[Mesh]:
    """Return the meshes of a GLB as it shows them, one a frame, in world coordinates."""
    parts = []
    for mesh in gltf.meshes:
        (primitive,) = mesh.primitives
        vertices = accessor(gltf, primitive.attributes.POSITION)
        shown = [vertices]
        if primitive.targets:
            moved = np.stack([accessor(gltf, target["POSITION"]) for target in primitive.targets])
            weights = accessor(gltf, gltf.animations[0].samplers[0].output).reshape(-1, len(moved))
            shown = list(vertices + np.einsum("ft,tnc->fnc", weights, moved))
        faces = accessor(gltf, primitive.indices).reshape(-1, 3)
        parts += [Mesh(each @ TO_GLTF, faces, np.empty(0), np.empty(0)) for each in shown]
    return parts


def drive_page(page_file: Path, out: Path) -> dict[str, object]:
    """Open the page from disk without network; return console errors and how much the canvas changes."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        context = browser.new_context(viewport={"width": 800, "height": 600}, offline=True)
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("body[data-ready]", timeout=60000)
        page.wait_for_timeout(700)
        moved = page.evaluate("Number(document.getElementById('time').value)")
        plays = False
        for _ in range(40):  # ten seconds on a machine that others use
            page.wait_for_timeout(250)
            plays |= moved != page.evaluate("Number(document.getElementById('time').value)")
            if plays:
                break

        def seek(frame: int) -> None:
            page.evaluate(
                "frame => { const slider = document.getElementById('time'); slider.value = frame; "
                "slider.dispatchEvent(new Event('input')); }",
                frame,
            )
            page.wait_for_timeout(400)

        def shot(name: str) -> np.ndarray:
            page.screenshot(path=str(out / f"{name}.png"))
            return np.asarray(Image.open(out / f"{name}.png").convert("RGB")).astype(int)[60:520]

        seek(0)
        first = shot("html_start")
        seek(4)
        later = shot("html_later")
        seek(0)
        page.mouse.move(400, 300)
        page.mouse.down()
        page.mouse.move(625, 300, steps=5)
        page.mouse.up()
        page.wait_for_timeout(400)
        turned = shot("html_turned")
        browser.close()
    changed = {"time": abs(first - later).max(axis=2) > 20, "azimuth": abs(first - turned).max(axis=2) > 20}
    shown = abs(first - first[0, 0]).max(axis=2) > 20
    return {
        "console_errors": problems, "plays": plays, "object_pixels": int(shown.sum()),
        **{f"pixels_changed_by_{name}": int(mask.sum()) for name, mask in changed.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, object] = {}
    for name in ("glb", "html"):
        export(ExportConfig(str(arguments.run), name, str(arguments.out / f"scene.{name}")))
    found |= silhouettes(arguments.run, arguments.out / "scene.glb")
    export(ExportConfig(str(arguments.run), "glb", str(arguments.out / "morph.glb"), animation="morph"))
    found["morph"] = silhouettes(arguments.run, arguments.out / "morph.glb")
    found["bytes"] = {path.name: path.stat().st_size for path in sorted(arguments.out.glob("*.glb"))}
    found |= drive_page(arguments.out / "scene.html", arguments.out)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
