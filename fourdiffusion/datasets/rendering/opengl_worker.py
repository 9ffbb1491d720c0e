"""The process of the OpenGL engine: `python -m fourdiffusion.datasets.rendering.opengl_worker`, see `engine.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fourdiffusion.datasets.rendering.engine import ANSWER, MAX_POINTS
from fourdiffusion.datasets.rendering.gltf import Asset, AssetError, load_gltf
from fourdiffusion.datasets.rendering.pose import pose
from fourdiffusion.datasets.rendering.rasterizer import Light, Picture, Rasterizer, create_context


class Worker:
    """One opened asset."""

    def __init__(self) -> None:
        self.asset: Asset | None = None
        self.rasterizer: Rasterizer | None = None

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        work = {"hello": self.hello, "open": self.open, "measure": self.measure, "render": self.render}
        return work[message["do"]](message)

    def hello(self, message: dict[str, Any]) -> dict[str, Any]:
        create_context()
        return {}

    def open(self, message: dict[str, Any]) -> dict[str, Any]:
        self.asset = load_gltf(Path(message["path"]))
        if not any(len(primitive.indices) for primitive in self.asset.primitives):
            raise AssetError("empty", "the scene has no triangles")
        animations = [{"name": a.name, "start": a.start, "end": a.end} for a in self.asset.animations]
        return {"axes": "gltf", "animations": animations}

    def measure(self, message: dict[str, Any]) -> dict[str, Any]:
        """Write the posed vertices of each time to an .npz file, at most about MAX_POINTS of them and the extremes."""
        assert self.asset is not None
        animation = self.asset.animations[message["animation"]]
        used = [np.unique(primitive.indices) for primitive in self.asset.primitives]
        step = 1 + sum(map(len, used)) // MAX_POINTS
        frames: dict[str, Any] = {}
        for k, time in enumerate(message["times"]):
            posed = pose(self.asset, animation, time)
            points = np.concatenate([positions[rows] for (positions, _), rows in zip(posed, used, strict=True)])
            if not np.isfinite(points).all():
                raise AssetError("unreadable", f"vertices are not finite at {time:g} s")
            extremes = np.concatenate([points[points.argmin(axis=0)], points[points.argmax(axis=0)]])
            frames[f"f{k}"] = points if step == 1 else np.concatenate([points[::step], extremes])
        np.savez(message["file"], **frames)
        return {}

    def render(self, message: dict[str, Any]) -> dict[str, Any]:
        """Write the pictures of all cameras and times, and the layers that the message asks for, to its folder."""
        assert self.asset is not None
        if self.rasterizer is None:
            size = (message["width"], message["height"])
            layers = message["depth"] or message["normal"] or message["motion"]
            self.rasterizer = Rasterizer(self.asset, *size, message["supersampling"], layers)
        lights = [Light(tuple(x["direction"]), x["strength"], x["angle_deg"]) for x in message["lights"]]
        self.rasterizer.set_lights(lights, message["ambient"])
        self.rasterizer.cull_backfaces = message["cull_backfaces"]
        animation, world = self.asset.animations[message["animation"]], np.array(message["world"])
        cameras = [np.array(camera) for camera in message["cameras"]]
        poses = [pose(self.asset, animation, time) for time in message["times"]]
        folder = Path(message["folder"])
        for name in ("rgba", *(kind for kind in ("depth", "normal", "motion") if message[kind])):
            (folder / name).mkdir()
        for f in range(len(poses)):
            self.rasterizer.set_frame(poses[f], poses[min(f + 1, len(poses) - 1)], world)
            for v, camera in enumerate(cameras):
                write_picture(
                    folder, f"v{v:02d}_f{f:02d}", self.rasterizer.render(camera, message["fovy_deg"]), message
                )
            reply({"progress": f + 1})
        return {}


def reply(answer: dict[str, Any]) -> None:
    """Print an answer line."""
    print(ANSWER + json.dumps(answer), flush=True)


def write_picture(folder: Path, name: str, picture: Picture, message: dict[str, Any]) -> None:
    """Write one image and the layers requested by ``message``."""
    Image.fromarray(picture.rgba).save(folder / "rgba" / f"{name}.png", compress_level=1)
    layers = {"depth": picture.distance, "normal": picture.normal, "motion": picture.motion}
    for kind, values in layers.items():
        if message[kind] and values is not None:
            np.save(folder / kind / f"{name}.npy", values)


def main() -> None:
    """Answer the requests on standard input until its end."""
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except AssetError as error:
            answer = {"reason": error.reason, "detail": str(error)}
        reply(answer)


if __name__ == "__main__":
    main()
