"""Clips of meshes that are no ellipsoids: what the small model makes of objects from outside its world.

    pip install -e '.[scripts]'    # panda3d: its software renderer, and the models inside the package (BSD)
    python scripts/benchmarks/asset_clips.py .cache/assets

A panda that walks (skinned and textured, seen from four sides), and three rigid objects that rock and turn. Every clip
has 8 views x 8 frames of 64 x 64 pixels, the input at azimuth 0, as `fourdiffusion data synth rig=orbit` writes them.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
import torch.nn.functional as functional
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.cameras import FOVY_DEG, orbit, orthogonal_azimuths
from fourdiffusion.datasets.clips import Clip, write_clip
from fourdiffusion.errors import UserError

VIEWS, FRAMES, SIDE, FINER = 8, 8, 64, 4
RADIUS = 0.39  # of the ball that an object fills, as in the synthetic world
PANDA = "a black and white panda walking"
OBJECTS = {  # name: model, what it does, heading in degrees, caption
    "panda-000": ("panda-model", "panda-walk4", 0.0, PANDA),
    "panda-090": ("panda-model", "panda-walk4", 90.0, PANDA),
    "panda-180": ("panda-model", "panda-walk4", 180.0, PANDA),
    "panda-270": ("panda-model", "panda-walk4", 270.0, PANDA),
    "smiley": ("smiley", None, 95.0, "a white ball with a yellow belly rocking"),
    "frowney": ("frowney", None, 70.0, "a blue ball with black spots rocking"),
    "teapot": ("teapot", None, 40.0, "a white teapot rocking"),
}


def main(output: Path) -> None:
    """Writes the clips that are not there yet."""
    try:
        from direct.showbase.ShowBase import ShowBase
        from panda3d.core import loadPrcFileData
    except ImportError as error:
        raise UserError("panda3d is not installed: pip install -e '.[scripts]'") from error
    size = f"win-size {SIDE * FINER} {SIDE * FINER}"
    for line in ("load-display p3tinydisplay", "window-type offscreen", "audio-library-name null", size):
        loadPrcFileData("", line)
    base = ShowBase()
    base.camLens.setFov(FOVY_DEG, FOVY_DEG)
    base.camLens.setNearFar(0.05, 10)
    _light(base)
    c2w = orbit(orthogonal_azimuths(VIEWS))
    for name, (model, motion, heading, caption) in tqdm(OBJECTS.items(), desc="assets"):
        if (output / name).exists():
            continue
        pose = _load(base, model, motion, heading)
        frames = []
        for frame in range(FRAMES):
            pose(frame)
            frames.append(torch.stack([_picture(base, camera[:3, 3]) for camera in c2w]))
        rgba = torch.stack(frames, dim=1)  # [V, F, 4, H, W]
        times = torch.linspace(0, 1, FRAMES)
        write_clip(
            output / name,
            Clip(name, rgba, c2w, FOVY_DEG, times, caption, "BSD-3-Clause", f"panda3d, models/{model}"),
        )


def _light(base: Any) -> None:
    """A sun and a sky, fixed in the world."""
    from panda3d.core import AmbientLight, DirectionalLight

    sky, sun = AmbientLight("sky"), DirectionalLight("sun")
    sky.setColor((0.7, 0.7, 0.7, 1))
    sun.setColor((0.4, 0.4, 0.4, 1))
    for light in (sky, sun):
        node = base.render.attachNewNode(light)
        base.render.setLight(node)
    node.lookAt(-0.35, -0.25, -0.9)


def _load(base: Any, model: str, motion: str | None, heading: float) -> Callable[[int], None]:
    """A function that poses the object at a frame; over all frames it fills the ball."""
    from direct.actor.Actor import Actor

    for child in base.render.findAllMatches("**/object"):
        child.removeNode()
    holder = base.render.attachNewNode("object")
    inner = holder.attachNewNode("centred")
    if motion is None:
        thing = base.loader.loadModel(f"models/{model}")
    else:
        thing = Actor(f"models/{model}", {"motion": f"models/{motion}"})
    thing.reparentTo(inner)

    def pose(frame: int) -> None:
        share = frame / FRAMES
        if motion is None:
            holder.setHpr(heading + 40 * share, 0, 20 * math.sin(2 * math.pi * share))
        else:
            thing.pose("motion", int(share * thing.getNumFrames("motion")))
            thing.update()

    corners = []
    holder.setH(heading)
    for frame in range(FRAMES):
        pose(frame)
        low, high = thing.getTightBounds(inner)
        corners.append(torch.tensor([list(low), list(high)]))
    low, high = torch.stack(corners)[:, 0].amin(0), torch.stack(corners)[:, 1].amax(0)
    scale = RADIUS / float((high - low).norm() / 2)
    inner.setScale(scale)
    inner.setPos(*(-scale * (low + high) / 2).tolist())
    return pose


def _picture(base: Any, place: Tensor) -> Tensor:
    """RGBA [4, H, W] uint8 with straight alpha, from a camera at ``place`` [3]: told from two backgrounds."""
    base.camera.setPos(*place.tolist())
    base.camera.lookAt(0, 0, 0)
    seen = []
    for shade in (0.0, 1.0):
        base.setBackgroundColor(shade, shade, shade, 1)
        base.graphicsEngine.renderFrame()
        shot = base.win.getScreenshot()
        data = torch.frombuffer(bytearray(shot.getRamImageAs("RGB")), dtype=torch.uint8)
        picture = data.view(shot.getYSize(), shot.getXSize(), 3).flip(0).permute(2, 0, 1).float() / 255
        seen.append(functional.avg_pool2d(picture, FINER))
    alpha = (1 - (seen[1] - seen[0]).mean(0)).clamp(0, 1)
    colour = (seen[0] / alpha.clamp(min=1e-3)).clamp(0, 1) * (alpha > 0)
    return (torch.cat([colour, alpha[None]]) * 255).round().to(torch.uint8)


if __name__ == "__main__":
    report.run(lambda: main(Path(sys.argv[1])))
