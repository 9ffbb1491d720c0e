"""Play an animated GLB with three.js in headless Chromium and compare the pictures at two times.

    npm install three            # anywhere
    python dev/check_glb.py scene.glb node_modules/three out/

Prints one JSON line; screenshots go into the last argument. Needs playwright (Python) and a chromium on the PATH.
"""

import argparse
import functools
import http.server
import json
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking"]
PAGE = """<!doctype html><link rel="icon" href="data:,"><body style="margin:0"><script type="importmap">
{"imports": {"three": "./three/build/three.module.js"}}</script><script type="module">
import * as THREE from "three";
import { GLTFLoader } from "./three/examples/jsm/loaders/GLTFLoader.js";
const renderer = new THREE.WebGLRenderer();
renderer.setSize(512, 512);
document.body.append(renderer.domElement);
const scene = new THREE.Scene(), camera = new THREE.PerspectiveCamera(45, 1, .01, 10);
scene.background = new THREE.Color("white");
camera.position.set(0, 0, 1.4);
const gltf = await new GLTFLoader().loadAsync("scene.glb");
scene.add(gltf.scene);
const mixer = new THREE.AnimationMixer(gltf.scene);
mixer.clipAction(gltf.animations[0]).play();
window.show = time => {
  mixer.setTime(time);
  renderer.render(scene, camera);
  let visible = 0;
  gltf.scene.traverse(node => { if (node.isMesh && node.scale.x === 1) visible++; });
  return visible;
};
window.duration = gltf.animations[0].duration;
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("glb", "three", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        (root / "index.html").write_text(PAGE)
        (root / "three").symlink_to(arguments.three.resolve())
        shutil.copy(arguments.glb, root / "scene.glb")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 512, "height": 512})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.wait_for_function("window.duration > 0", timeout=120000)
        duration, visible, shots = page.evaluate("window.duration"), [], []
        for name, share in ((f"three_{arguments.glb.stem}_start", 0.01), (f"three_{arguments.glb.stem}_later", 0.3)):
            visible.append(page.evaluate("time => window.show(time)", share * duration))
            page.screenshot(path=str(arguments.out / f"{name}.png"))
            shots.append(np.asarray(Image.open(arguments.out / f"{name}.png").convert("RGB")).astype(int))
        browser.close()
        server.shutdown()
    print(json.dumps({
        "console_errors": problems, "duration": duration, "meshes_visible": visible,
        "object_pixels": int((shots[0].min(axis=2) < 230).sum()),
        "pixels_changed_by_time": int((abs(shots[0] - shots[1]).max(axis=2) > 24).sum()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
