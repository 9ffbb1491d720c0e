"""Write the first edition's sample: a test creature's video from one camera, and its ground truth from eight.

    python scripts/build/make_creature.py tests/data/creature [SEED]

The video is 256 x 256 and shows the creature from azimuth 0; the truth is 64 x 64, the size of the first edition's
model. Half of its views are where 4DM puts its own, half are between.
"""

import sys
from pathlib import Path

import torch

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import write_clip
from fourdiffusion.datasets.synthetic import TEST_SEED_START, make_creature, render
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import write_video
from fourdiffusion.prepare.settings import SynthConfig
from fourdiffusion.prepare.synth import make_clip

FRAMES = 8


def main(folder: Path, seed: int) -> None:
    """Write ``folder/input.mp4`` and the clip ``folder/truth`` of test creature number ``seed``."""
    creature = make_creature(TEST_SEED_START + seed)
    c2w = cameras.orbit(torch.zeros(FRAMES))
    rgba, _ = render(creature, c2w, cameras.FOVY_DEG, torch.linspace(0, 1, FRAMES), 256, 256)
    write_video(folder / "input.mp4", composite(rgba))
    settings = SynthConfig(output=str(folder), split="test", rig="orbit", num_views=8, num_frames=FRAMES, size=64)
    if not (folder / "truth").exists():
        write_clip(folder / "truth", make_clip(settings, TEST_SEED_START + seed))
    print(f"{folder}: {creature.caption}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
