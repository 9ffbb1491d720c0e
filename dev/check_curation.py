"""Agreement of `data curate` with labels, on clips made for it: 20 each static, turning, out of frame and fine.

    python dev/check_curation.py --assets ASSETS

Half of them show creatures of the synthetic world, half the animated glTF assets of a folder (walk, run, swim, fly and
attack animations), drawn with OpenGL: one pose all the time, one pose before turning cameras, cameras that move away,
or as they are. Prints one JSON line a confusion table.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.datasets.curation.decide import reasons_of_scores
from fourdiffusion.datasets.curation.scores import measure, signed_pictures
from fourdiffusion.datasets.curation.settings import Thresholds
from fourdiffusion.datasets.rendering import plan
from fourdiffusion.datasets.rendering.gltf import AssetError, load_gltf
from fourdiffusion.datasets.rendering.pose import pose
from fourdiffusion.datasets.rendering.rasterizer import Light, Rasterizer
from fourdiffusion.datasets.rendering.settings import RenderAssetsConfig
from fourdiffusion.datasets.synthetic import make_creature, render
from fourdiffusion.prepare.settings import FAULTS
from fourdiffusion.prepare.synth import fault, rig_azimuths

LABELS = ("static", "turning", "leaving", "fine")
REASONS = {"out_of_frame": "leaving", "static": "static", "turning": "turning"}  # in the order that counts
MOVES = re.compile(r"walk|run|swim|fly|attack|dance|gallop|bite", re.I)
SHOWN = tuple[Tensor, Tensor, Tensor]  # times [F], turn of the cameras [F] in degrees, their shift [F, 3]


def shown(label: str, number: int, times: Tensor) -> SHOWN:
    """Return what clip ``number`` of a label shows."""
    if label == "fine":
        return times, torch.zeros_like(times), torch.zeros(len(times), 3)
    return fault(number * len(FAULTS) + FAULTS.index(label), times)


def moving_cameras(azimuths: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """Return cameras [V, F, 4, 4] at azimuths [V] that turn by [F] degrees and move by [F, 3]."""
    moved = cameras.orbit(azimuths[:, None] + turn)
    moved[..., :3, 3] += shift
    return moved


def synthetic_clip(label: str, number: int, size: int, frames: int, views: int) -> tuple[Tensor, Tensor]:
    """Return pictures, uint8 [V, F, 4, H, W], and the cameras that the clip claims, [V, 4, 4]."""
    times = torch.linspace(0, 1, frames)
    seen, turn, shift = shown(label, number, times)
    azimuths = rig_azimuths("two_orthogonal", views, number)
    moved = moving_cameras(azimuths, turn, shift).flatten(0, 1)
    rgba, _ = render(make_creature(number), moved, cameras.FOVY_DEG, seen.repeat(views), size, size)
    return (rgba * 255).round().to(torch.uint8).unflatten(0, (views, frames)), cameras.orbit(azimuths)


def asset_clips(folder: Path, size: int, frames: int, views: int) -> Iterator[Callable[[str, int], Tensor]]:
    """Yield a function (label, number) -> pictures, uint8 [V, F, 4, H, W], for each usable asset of a folder."""
    config = RenderAssetsConfig(width=size, height=size, num_views=views, num_frames=frames, random_offset=False)
    paths = sorted(folder.rglob("*.glb"))
    np.random.default_rng(0).shuffle(paths)  # type: ignore[arg-type]
    for path in paths:
        try:
            asset = load_gltf(path)
        except AssetError:
            continue
        animation = next((a for a in asset.animations if MOVES.search(a.name)), None)
        if animation is None:
            continue
        used = [np.unique(primitive.indices) for primitive in asset.primitives]
        rig = plan.make_rig(config, path.stem)
        clock = np.linspace(animation.start, animation.end, frames)
        posed = [pose(asset, animation, time) for time in clock]
        points = [
            np.concatenate([positions[rows] for (positions, _), rows in zip(each, used, strict=True)]) for each in posed
        ]
        if plan.movement(points) < config.min_movement or plan.travel(points) > config.max_travel:
            continue
        world = plan.normalization(points, plan.scene_from_engine("gltf", 0.0), config, rig)
        rasterizer = Rasterizer(asset, size, size, 1, False)
        lights = [
            Light(tuple(plan.light_direction(x.azimuth_deg, x.elevation_deg)), x.strength, x.angle_deg)
            for x in config.lights
        ]
        rasterizer.set_lights(lights, config.ambient)

        def draw(label: str, number: int) -> Tensor:
            seen, turn, shift = shown(label, number, torch.linspace(0, 1, frames))
            moved = moving_cameras(torch.arange(views) * (360 / views), turn, shift).double().numpy()
            pictures = torch.empty(views, frames, 4, size, size, dtype=torch.uint8)
            for f, time in enumerate(seen.tolist()):
                now = pose(asset, animation, animation.start + time * (animation.end - animation.start))  # noqa: B023
                rasterizer.set_frame(now, now, world)  # noqa: B023
                for v in range(views):
                    picture = rasterizer.render(moved[v, f], cameras.FOVY_DEG)  # noqa: B023
                    pictures[v, f] = torch.from_numpy(picture.rgba.copy()).permute(2, 0, 1)
            return pictures

        yield draw


def found_label(rgba: Tensor, c2w: Tensor) -> tuple[str, list[str]]:
    """Return the label that curation finds, "other" for another reason, and its reasons."""
    reasons = reasons_of_scores(vars(measure(signed_pictures(rgba), rgba[:, :, 3], c2w, rgba.shape[1])), Thresholds())
    if not reasons:
        return "fine", reasons
    return next((label for reason, label in REASONS.items() if reason in reasons), "other"), reasons


def report(name: str, table: Counter[tuple[str, str]]) -> None:
    agreed = sum(count for (truth, found), count in table.items() if truth == found)
    rows = {label: {found: table[label, found] for found in (*LABELS, "other")} for label in LABELS}
    print(json.dumps({"clips": name, "agreement": round(agreed / sum(table.values()), 4), "confusion": rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20, help="clips a label and a world")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--frames", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    views, table = 8, Counter[tuple[str, str]]()
    for number in range(arguments.count):
        for label in LABELS:
            found, reasons = found_label(*synthetic_clip(label, number, arguments.size, arguments.frames, views))
            table[label, found] += 1
            if found != label:
                print(json.dumps({"clip": f"synthetic {number}", "label": label, "reasons": reasons}), flush=True)
    report("synthetic", table)
    table, c2w = Counter(), cameras.orbit(torch.arange(views) * (360 / views))
    draws = asset_clips(arguments.assets, arguments.size, arguments.frames, views)
    for number, draw in zip(range(arguments.count), draws, strict=False):
        for label in LABELS:
            found, reasons = found_label(draw(label, number), c2w)
            table[label, found] += 1
            if found != label:
                print(json.dumps({"clip": f"asset {number}", "label": label, "reasons": reasons}), flush=True)
    report("assets", table)


if __name__ == "__main__":
    main()
