"""Seconds a training step of the renderer: all frames and views in one packed batch, beside a loop over pictures.

python scripts/benchmarks/bench_renderer.py SCENE   # the run folder of a fit

The loop does what the original code does: picture after picture, 256 uniform samples on each ray, no cell skipped. Ours
takes the rays of all F x V pictures at once and visits occupied cells only: with the loop's step length, then with the
scene's own. Same field, cameras and times; forward and backward of a squared error. The pictures are compared, too.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.scene.renderer import render
from fourdiffusion.scene.scene import load_scene
from fourdiffusion.scene.settings import RendererConfig

FRAMES, VIEWS, SIDE, REPEATS = 8, 4, 32, 3


def main(folder: Path) -> None:
    """Prints both times, their ratio, and the PSNR between the pictures."""
    scene = load_scene(folder, torch.device("cpu"))
    field, grid = scene.field, scene.occupancy
    fine = RendererConfig(num_samples=256, radius=scene.renderer.radius)
    c2w = cameras.orbit(cameras.orthogonal_azimuths(VIEWS))
    origins, directions = (x.reshape(VIEWS, -1, 3) for x in cameras.rays(c2w, cameras.FOVY_DEG, SIDE, SIDE))
    times, white = torch.linspace(0, 1, FRAMES), torch.ones(3)

    def packed(renderer: RendererConfig) -> Tensor:
        o, d = (x.expand(FRAMES, *x.shape).reshape(-1, 3) for x in (origins, directions))
        t = times.repeat_interleave(VIEWS * SIDE * SIDE)
        rgb = render(field, grid, o, d, t, white, renderer, density=field.density).rgb
        rgb.square().mean().backward()
        return rgb.detach()

    def one_by_one() -> Tensor:
        pictures = []
        for time_ in times:
            for o, d in zip(origins, directions, strict=True):
                rgb = render(field, None, o, d, time_.expand(len(o)), white, fine).rgb
                (rgb.square().mean() / (FRAMES * VIEWS)).backward()
                pictures.append(rgb.detach())
        return torch.cat(pictures)

    def clock(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
        seconds = []
        for _ in range(REPEATS):
            field.zero_grad()
            began = time.perf_counter()
            pictures = run()
            seconds.append(time.perf_counter() - began)
        return min(seconds), pictures

    loop, expected = clock(one_by_one)
    print(f"{FRAMES} x {VIEWS} pictures of {SIDE} x {SIDE}, {torch.get_num_threads()} threads, best of {REPEATS}")
    print(f"picture by picture, {fine.num_samples} samples a ray: {loop:.2f} s")
    for renderer in (fine, scene.renderer):
        ours, pictures = clock(partial(packed, renderer))
        psnr = -10 * (pictures - expected).square().mean().log10()
        print(
            f"one batch, skipping, {renderer.num_samples} samples across the ball: {ours:.2f} s, "
            f"ratio {loop / ours:.1f}, PSNR between the pictures {psnr:.1f} dB"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
