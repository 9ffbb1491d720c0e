"""Make the animated picture at the README's top from a run of the demo: input video beside the turning scene.

make demo && .venv/bin/python scripts/build/make_readme_animation.py runs/demo docs/demo.webp
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fourdiffusion.cameras import FOVY_DEG, orbit
from fourdiffusion.files import load_tensors, write_atomic
from fourdiffusion.media.image import composite
from fourdiffusion.scene.frames import render_path
from fourdiffusion.scene.paths import CameraPath
from fourdiffusion.scene.scene import load_scene

SIZE = 192  # pixels of each of the two pictures
PICTURES, FPS = 64, 12.0  # of one turn around the object
PICTURES_A_FRAME = 2  # of the clip: eight frames in 16 pictures, four times a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    tensors, _ = load_tensors(arguments.run / "input.safetensors")
    times = tensors["times"]
    frames = (torch.arange(PICTURES) // PICTURES_A_FRAME) % len(times)
    c2w = orbit(torch.arange(PICTURES) * (360 / PICTURES), 5.0)
    path = CameraPath(c2w, times[frames], torch.full((PICTURES,), FOVY_DEG))
    turning = render_path(load_scene(arguments.run), path, SIZE, SIZE, "rgb", torch.ones(3), "turn")[..., :3]
    given = (composite(tensors["rgba"]) * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    enlarged = np.stack(
        [np.asarray(Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for each in given]
    )
    pictures = [
        Image.fromarray(np.concatenate([enlarged[f], view], axis=1)) for f, view in zip(frames, turning, strict=True)
    ]
    write_atomic(
        arguments.output,
        lambda partial: pictures[0].save(
            partial, format="WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 / FPS), loop=0,
            quality=80, method=6,
        ),
    )  # fmt: skip
    print(f"written: {arguments.output}, {arguments.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
