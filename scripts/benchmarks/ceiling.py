"""How near a scene comes to the truth when true videos of many views are given: the ceiling of every distillation.

fourdiffusion data render assets=list.txt output=cache/ceiling engine=opengl width=128 height=128 num_views=16 \\
    num_random_views=6 num_frames=24 stride=1
python scripts/benchmarks/ceiling.py cache/ceiling/* --views 16 --frames 24 --seconds 600 --output ceiling.json

Each clip's first ``--views`` cameras are fitted, its last ``--held-out`` cameras are measured, at all frames. All
fields get the same pixels, rays, losses, occupancy grid and number of seconds of processor time (of all threads), so
that a busy machine changes nothing but the wall time:

* ``hash``: the product's field, two hash grids of 3 and 4 dimensions;
* ``kplanes``: six planes over pairs of x, y, z, t at several resolutions, whose features are multiplied
  (Fridovich-Keil et al. 2023), with MLPs of the same width;
* ``static``: the product's field for each frame alone, with a share of the seconds (its fourth dimension is constant).
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from report import run
from torch import Tensor, nn

from fourdiffusion.cli.config import build, compose, load_settings_class
from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.readers import open_views
from fourdiffusion.files import write_atomic
from fourdiffusion.fit_views.loop import Problem, render_frames, update
from fourdiffusion.fit_views.pixels import PixelSet, load_pixels, visual_hull
from fourdiffusion.fit_views.settings import FitViewsConfig
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import contact_sheet, write_image
from fourdiffusion.metrics.image import psnr, ssim
from fourdiffusion.randomness import stream
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.optimization import make_optimizer
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene

FIELDS = ("hash", "kplanes", "static")
PLANES = list(itertools.combinations(range(4), 2))  # pairs of x, y, z, t


class KPlanes(nn.Module):
    """feature(x, t) = concat over resolutions of the product over six planes; MLPs decode density and color."""

    def __init__(self, config: Any, resolutions: tuple[int, ...], num_times: int, num_features: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config, self.planes = config, nn.ParameterList()
        self.resolutions = resolutions
        for resolution in resolutions:
            for a, b in PLANES:
                sizes = [num_times if axis == 3 else resolution for axis in (a, b)]
                plane = torch.ones(1, num_features, sizes[1], sizes[0])  # planes of time begin at 1, as in the paper
                if 3 not in (a, b):
                    plane = 0.1 + 0.4 * torch.rand(plane.shape, generator=generator)
                self.planes.append(nn.Parameter(plane))
        width, inputs = config.hidden_width, num_features * len(resolutions)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.density_mlp = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 1))
            self.color_mlp = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 3))

    def _features(self, x: Tensor, t: Tensor) -> Tensor:
        place = torch.cat([x / self.config.radius, t[:, None] * 2 - 1], dim=1)  # [N, 4] in [-1, 1]
        levels = []
        for level in range(len(self.resolutions)):
            product = torch.ones(())
            for k, (a, b) in enumerate(PLANES):
                plane = self.planes[level * len(PLANES) + k]
                at = place[:, [a, b]][None, :, None]  # [1, N, 1, 2]
                product = product * functional.grid_sample(plane, at, align_corners=True)[0, :, :, 0]  # [C, N]
            levels.append(product)
        return torch.cat(levels).T

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, 3], t [N] -> sigma [N], rgb [N, 3]."""
        features = self._features(x, t)
        return self._activate(self.density_mlp(features), x), self.color_mlp(features).sigmoid()

    def density(self, x: Tensor, t: Tensor) -> Tensor:
        """The sigma of ``forward`` alone."""
        return self._activate(self.density_mlp(self._features(x, t)), x)

    def _activate(self, raw: Tensor, x: Tensor) -> Tensor:
        bias = self.config.blob_scale * (1 - x.norm(dim=-1) / self.config.blob_std)
        return functional.softplus(raw.squeeze(1) + bias)

    def parameter_groups(self, grid_rate: float, mlp_rate: float) -> list[dict[str, Any]]:
        """Groups for an optimizer, as those of DynamicField."""
        mlps = [*self.density_mlp.parameters(), *self.color_mlp.parameters()]
        return [{"params": list(self.planes), "lr": grid_rate}, {"params": mlps, "lr": mlp_rate}]


def main() -> None:
    """Fit each clip with each field, print a Markdown table, keep every figure in a JSON file."""
    options = _options()
    torch.set_num_threads(options.threads)
    lines = []
    for folder in options.clips:
        for name in options.fields:
            line, sheet = measure(open_views(folder), name, options)
            lines.append(line)
            print(json.dumps(line), flush=True)
            text = json.dumps(lines, indent=1) + "\n"
            write_atomic(options.output, lambda partial, text=text: partial.write_text(text))  # type: ignore[misc]
            if options.sheets:
                write_image(options.sheets / f"{line['clip']}-{name}.png", sheet)
    print("\n| clip | " + " | ".join(options.fields) + " |\n|---" + "|---" * len(options.fields) + "|")
    for clip in dict.fromkeys(line["clip"] for line in lines):
        found = {line["field"]: line for line in lines if line["clip"] == clip}
        print(f"| {clip} | " + " | ".join(f"{found[name]['psnr']:.2f}" for name in options.fields) + " |")


def measure(clip: ClipFiles, name: str, options: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """Return the figures of one field on one clip, and a sheet of truth above render of the held-out views."""
    num_views = clip.pictures.shape[0]
    views, held_out = list(range(options.views)), list(range(num_views - options.held_out, num_views))
    frames = list(range(options.frames))
    schema = load_settings_class("fourdiffusion.fit_views.settings:FitViewsConfig")
    config = build(compose("fit_views", schema, [f"views={clip.uid}", *options.set]), FitViewsConfig)
    pixels = load_pixels(clip, views, frames, clip.c2w)
    began, steps = time.monotonic(), 0
    if name == "static":
        scenes = []
        for frame in frames:
            one = load_pixels(clip, views, [frame], clip.c2w)
            scene, count = _fit(config, replace(one, times=torch.zeros(1)), "hash", options.seconds / len(frames))
            scenes.append((scene, torch.zeros(1)))
            steps += count
    else:
        scene, steps = _fit(config, pixels, name, options.seconds)
        scenes = [(scene, pixels.times[k : k + 1]) for k in range(len(frames))]
    wall = time.monotonic() - began
    rows, scores, likeness = [], [], []
    for view in held_out:
        truth = composite(clip.pictures[view, frames].float() / 255)
        size = truth.shape[-2], truth.shape[-1]
        drawn = torch.cat([render_frames(s, clip.c2w[view], clip.fovy_deg, t, *size) for s, t in scenes])
        scores.append(psnr(drawn, truth).mean())
        likeness.append(ssim(drawn, truth).mean())
        rows += [truth[:: max(1, len(frames) // 8)], drawn[:: max(1, len(frames) // 8)]]
    return {
        "clip": clip.uid,
        "field": name,
        "psnr": round(float(torch.stack(scores).mean()), 3),
        "ssim": round(float(torch.stack(likeness).mean()), 4),
        "steps": steps,
        "cpu_seconds": options.seconds,
        "wall_seconds": round(wall),
        "views": options.views,
        "frames": options.frames,
        "size": size[0],
        "parameters": sum(p.numel() for s in {id(s): s for s, _ in scenes}.values() for p in s.field.parameters()),
    }, contact_sheet(torch.stack(rows))


def _fit(config: FitViewsConfig, pixels: PixelSet, name: str, seconds: float) -> tuple[Scene, int]:
    """Fit for so many seconds of processor time; return the scene and the number of steps."""
    renderer = config.scene.renderer
    began = time.process_time()
    field: Any = DynamicField(config.scene.field, config.seed)
    if name == "kplanes":
        field = KPlanes(config.scene.field, (64, 128, 256), max(2, len(pixels.times) // 2), 16, config.seed)
    scene = Scene(field, OccupancyGrid(renderer), renderer)
    hull = visual_hull(pixels, renderer.occupancy_resolution, renderer.radius)
    scene.occupancy.occupied.copy_(hull)
    problem = Problem(config, pixels, scene, hull, "random" if pixels.has_alpha else "white")
    optimizer = make_optimizer(scene, config.grid_lr, config.mlp_lr)
    number = 0
    for progress in _until(began, seconds):
        update(problem, optimizer, number, progress, stream(config.seed, 0, number))
        number += 1
    return scene, number


def _until(began: float, seconds: float) -> Iterator[float]:
    """Yield the share of the seconds of processor time that has passed, until all have."""
    while (spent := time.process_time() - began) < seconds:
        yield spent / seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--views", type=int, default=16, help="how many of the first cameras are fitted")
    parser.add_argument("--held-out", type=int, default=6, help="how many of the last cameras are measured")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1200.0, help="processor time of each fit, of all threads")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fields", nargs="+", choices=FIELDS, default=list(FIELDS))
    parser.add_argument("--set", nargs="*", default=[], help="further settings of `fit views=`, as KEY=VALUE")
    parser.add_argument("--sheets", type=Path, help="folder of contact sheets")
    parser.add_argument("--output", type=Path, default=Path("ceiling.json"))
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
